"""What the first bytes of a file say it is."""

from __future__ import annotations

_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_SIGNATURES = (
    ("JPEG", b"\xff\xd8\xff"),
    ("PNG", b"\x89PNG\r\n\x1a\n"),
    ("GIF", b"GIF8"),
    ("TIFF", b"II*\0"),
    ("TIFF", b"MM\0*"),
)


def announced_format(content: bytes) -> str | None:
    """The format that the first bytes announce."""
    if content[4:8] == b"ftyp" and content[8:12] in (b"avif", b"avis"):
        return "AVIF"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WebP"
    return next((name for name, start in _SIGNATURES if content.startswith(start)), None)


def is_heif(content: bytes) -> bool:
    """Whether it is HEIC or HEIF, which share their container with AVIF."""
    if content[4:8] != b"ftyp":
        return False
    size = min(int.from_bytes(content[:4], "big"), 256)
    brands = {content[8:12], *(content[at : at + 4] for at in range(16, size, 4))}
    return bool(brands & _HEIF_BRANDS) and not brands & {b"avif", b"avis"}
