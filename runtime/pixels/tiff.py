"""Which pages of a TIFF are pictures of their own, and which files are no picture but a camera's raw data."""

from __future__ import annotations

from collections.abc import Sequence

from aivsreal.runtime.errors import Fault
from aivsreal.runtime.pixels.containers import TiffDirectory, TiffReader, camera_raw, is_tiff
from aivsreal.runtime.pixels.integrity import Unfit

_NEW_SUBFILE_TYPE, _OLD_SUBFILE_TYPE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC = 254, 255, 256, 257, 258, 262
_SAMPLES, _SUB_DIRECTORIES, _SAMPLE_FORMAT, _DNG_VERSION = 277, 330, 339, 50706
_READ = frozenset(
    {_NEW_SUBFILE_TYPE, _OLD_SUBFILE_TYPE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC}
    | {_SAMPLES, _SUB_DIRECTORIES, _SAMPLE_FORMAT, _DNG_VERSION}
)
_SENSOR = frozenset({32803, 34892})  # a colour filter array, linear raw
_FORMS = {2: "signed integers", 3: "floats", 5: "complex integers", 6: "complex floats"}
_FEW = 64
_RAW = "{}: only a preview in it could be read, not the picture: develop it to TIFF, PNG or JPEG"


def check_kind(content: bytes) -> None:
    """Refuse what Pillow would open as a preview, or not at all, though it is whole.

    Raises:
        Unfit: it is a camera raw file, only a preview, or a TIFF of samples that cannot be read here.
    """
    raw = camera_raw(content)
    if raw is not None:
        raise Unfit(_RAW.format(raw), Fault.UNSUPPORTED)
    if is_tiff(content):
        shown_pages(content)


def shown_pages(content: bytes) -> Sequence[int]:
    """Indices of the pages of a TIFF that are pictures of their own, and no previews or masks of others.

    Raises:
        Unfit: there are none, or the file is a camera's raw file, of which the pages are previews.
    """
    tiff = TiffReader(content, _READ)
    shown, largest, beside, pages = list[int](), 0, dict[int, None](), 0
    for page in tiff.pages():  # one in memory at a time
        _refuse_raw(page)
        if pages < _FEW:
            beside |= dict.fromkeys(page.tags.get(_SUB_DIRECTORIES, ())[:_FEW])
        if _is_picture(page):
            shown.append(pages)
            largest = max(largest, _pixels(page))
        pages += 1
    hidden = False
    for one in map(tiff.directory, beside):
        _refuse_raw(one)
        hidden = hidden or (_is_picture(one) and _pixels(one) > largest)
    if hidden:
        raise Unfit(_RAW.format("camera raw, or a TIFF whose picture lies beside its pages"), Fault.UNSUPPORTED)
    if pages and not shown:
        raise Unfit(
            "every page of it is marked as a preview or a mask of a picture that is not there", Fault.UNSUPPORTED
        )
    return shown or (0,)


def _refuse_raw(one: TiffDirectory) -> None:
    if _DNG_VERSION in one.tags or _first(one, _PHOTOMETRIC) in _SENSOR:
        raise Unfit(_RAW.format("camera raw"), Fault.UNSUPPORTED)


def _is_picture(one: TiffDirectory) -> bool:
    # A reduced version, a mask and a depth map; in old files 2 is a reduced version
    return not _first(one, _NEW_SUBFILE_TYPE) & 0b1101 and _first(one, _OLD_SUBFILE_TYPE) != 2


def _pixels(one: TiffDirectory) -> int:
    return _first(one, _WIDTH) * _first(one, _HEIGHT)


def _first(one: TiffDirectory, tag: int) -> int:
    return next(iter(one.tags.get(tag, ())), 0)


def kind_of_samples(content: bytes) -> str | None:
    """What a TIFF's first page consists of, in words, where that is a kind that is not read here."""
    if content[:4] == b"MM\0+":
        return "a BigTIFF whose larger bytes come first"
    page = next(TiffReader(content, _READ).pages(), None) if is_tiff(content) else None
    bits = page.tags.get(_BITS, ()) if page else ()
    if page is None or not bits or not all(1 <= one <= 64 for one in bits) or not _pixels(page):
        return None
    count = max(_first(page, _SAMPLES), len(bits))
    form = _FORMS.get(_first(page, _SAMPLE_FORMAT), "integers")
    if count > _FEW or (count <= 4 and bits[0] in (8, 16) and form == "integers"):
        return None  # damage, or a usual kind, damaged elsewhere
    return f"a TIFF of {count} {form} of {bits[0]} bits a pixel"
