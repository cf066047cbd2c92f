"""A fuzzer over what reads foreign bytes: images with their metadata, manifests, bundles, result rows.

    python tests/support/fuzz.py --seconds 600 [--seed N] [--keep FOLDER]

Whole files are damaged in the ways that find defects (bytes changed, cut, doubled, lengths made absurd); whatever comes
out but a result or an error of ours is printed with its seed and kept as a file. `tests/test_fuzz.py` runs it for a few
seconds, and over every case that it ever found (`tests/data/fuzz/`). It mutates rather than follows coverage: the
decoders are C, which a coverage-guided fuzzer of Python does not see into.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from hostile import encoded, good_files, picture

from aivsreal.runtime.bundle.folder import SHIPPED, Bundle
from aivsreal.runtime.bundle.manifest import manifest_from_json
from aivsreal.runtime.errors import BundleError, ResultsError
from aivsreal.runtime.files.decode import DecodePlan, decoded_from_file
from aivsreal.runtime.files.own_process import set_up_pillow
from aivsreal.runtime.results.file import rows_from_file
from aivsreal.runtime.results.row import row_from_line

MAX_PIXELS = 4_000_000  # a damaged header that announces more is not worth the time
SLOW_S = 20.0


def image_target(content: bytes, folder: Path) -> None:
    """Any bytes end in pixels or in an error that has a kind."""
    path = folder / "image"
    path.write_bytes(content)
    decoded = decoded_from_file(path, DecodePlan(frames=2, max_pixels=MAX_PIXELS))
    assert (decoded.error is None) == (decoded.fault is None) == bool(decoded.pixels)


def manifest_target(content: bytes, folder: Path) -> None:
    """Any bytes are a manifest whose files stay in the bundle, or a `BundleError`."""
    bundle = folder / "bundle"
    bundle.mkdir(exist_ok=True)
    (bundle / "manifest.json").write_bytes(content)
    try:
        opened = Bundle.open(bundle)
    except BundleError:
        return
    for name in opened.manifest.files:
        assert (bundle / name).resolve().parent == bundle.resolve()
    manifest_from_json(json.loads(json.dumps(opened.manifest.to_json())))


def row_target(content: bytes, folder: Path) -> None:
    """Any bytes are a row or a `ValueError`."""
    try:
        row_from_line(content)
    except ValueError:
        return


def results_target(content: bytes, folder: Path) -> None:
    """Any bytes are rows, or a `ResultsError`."""
    (folder / "results.jsonl").write_bytes(content)
    try:
        list(rows_from_file(folder / "results.jsonl"))
    except ResultsError:
        return


TARGETS: dict[str, Callable[[bytes, Path], None]] = {
    "image": image_target,
    "manifest": manifest_target,
    "row": row_target,
    "results": results_target,
}


def seeds() -> dict[str, list[bytes]]:
    """Whole inputs of each target."""
    images = [content for _, content in good_files() if len(content) < 60_000]
    images += [encoded(kind, picture(1)) for kind in ("GIF", "BMP", "AVIF", "WEBP")]
    manifest = json.loads((SHIPPED / "manifest.json").read_bytes())
    small = json.dumps({**manifest, "files": {}}).encode()
    row = (
        b'{"path": "a", "label": "ai", "p_ai": 0.5, "logit": 1, "reason": "r", '
        b'"evidence": [{"source": "c2pa", "origin": "ai", "detail": "d"}], "size": 1, "mtime_ns": 2, '
        b'"bundle": "b", "operating_point": "o", "backend": "k"}'
    )
    error = b'{"path": "a", "error": "e", "fault": "empty", "size": null, "mtime_ns": null, "bundle": "b"}'
    return {"image": images, "manifest": [small], "row": [row, error], "results": [row + b"\n" + error + b"\n"]}


def damaged(content: bytes, rng: random.Random) -> bytes:
    """One to four changes of the kinds that break parsers."""
    broken = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        if not broken:
            return bytes(broken)
        at = rng.randrange(len(broken)) if rng.random() < 0.5 else rng.randrange(min(len(broken), 200))
        kind = rng.randrange(7)
        if kind == 0:
            broken[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            broken[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del broken[at:]
        elif kind == 3:
            del broken[at : at + rng.choice((1, 2, 4, 64))]
        elif kind == 4:
            broken[at:at] = broken[at : at + rng.choice((1, 4, 16, 256))]
        elif kind == 5:
            broken[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0"))
        else:
            broken[at:at] = rng.choice((b'"', b"[" * 5000, b"{}", b"1e999", b"null", b"\\ud800", b"-1", b"../x"))
    return bytes(broken)


def findings(seconds: float, seed: int) -> Iterator[tuple[str, bytes, str]]:
    """Target, input and traceback of each defect that is found in that time."""
    rng, whole, end_s, count = random.Random(seed), seeds(), time.monotonic() + seconds, 0
    with tempfile.TemporaryDirectory() as scratch:
        while time.monotonic() < end_s:
            target = rng.choice(("image", "image", "image", "manifest", "row", "results"))
            content = damaged(rng.choice(whole[target]), rng)
            begin_s = time.monotonic()
            count += 1
            try:
                TARGETS[target](content, Path(scratch))
            except Exception:
                yield target, content, traceback.format_exc()
            took_s = time.monotonic() - begin_s
            if took_s > SLOW_S:
                yield target, content, f"took {took_s:.1f} s\n"
    print(f"{count} inputs in {seconds:g} s, seed {seed}", file=sys.stderr)


def main() -> None:
    """Run for a time; exit status 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--keep", type=Path, default=Path(__file__).resolve().parents[1] / "data" / "fuzz")
    options = parser.parse_args()
    set_up_pillow(MAX_PIXELS)
    found = set[str]()
    for target, content, trace in findings(options.seconds, options.seed):
        where = "".join(trace.strip().splitlines()[-3:])
        if where not in found:
            found.add(where)
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / f"{target}-{len(found)}-{options.seed}").write_bytes(content)
            print(trace)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
