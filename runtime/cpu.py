"""What this processor can do for INT8."""

from __future__ import annotations

from pathlib import Path

_WORDS = frozenset({"avx512_vnni", "avx_vnni", "asimddp"})  # x86 twice, and ARM's dot product


def has_int8_products(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether it multiplies and adds four bytes at once: without that, INT8 is slower than FP32 or about as fast."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return any(_WORDS & set(words) for words in flags)
