"""Makes ICC profiles: of primaries and curves, of grey, of tables."""

from __future__ import annotations

import struct

Xyz = tuple[float, float, float]
# Colorants on the white of D50, as profiles hold them.
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(65536 * value)) for value in values)


def gamma_curve(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * value))


SRGB_CURVE = b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
SRGB_TABLE = b"curv\0\0\0\0" + struct.pack(
    ">I1024H", 1024, *(round(65535 * (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4)) for v in
    (i / 1023 for i in range(1024)))
)  # fmt: skip


def icc_profile(space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"sRGB\0" + bytes(78),
        b"wtpt": xyz((0.9642, 1, 0.8249)),
        **tags,
    }
    at, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", at + len(body), b"none", 0x02400000, b"scnr", space, pcs)
    head += bytes(12) + b"acsp" + bytes(28) + fixed(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + table + body


def xyz(colorant: Xyz) -> bytes:
    return b"XYZ \0\0\0\0" + fixed(*colorant)


def rgb_profile(colorants: tuple[Xyz, Xyz, Xyz], curve: bytes, **more: bytes) -> bytes:
    tags = {name: xyz(one) for name, one in zip((b"rXYZ", b"gXYZ", b"bXYZ"), colorants, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    return icc_profile(b"RGB ", b"XYZ ", tags | {name.encode(): data for name, data in more.items()})


def cmyk_profile() -> bytes:
    """Every ink makes the same grey: L* falls from 100 to 0 with the most of the four."""
    corners = [bytes([0 if any(index >> bit & 1 for bit in range(4)) else 255, 128, 128]) for index in range(16)]
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += bytes(range(256)) * 4 + b"".join(corners) + bytes(range(256)) * 3
    return icc_profile(b"CMYK", b"Lab ", {b"A2B0": table})
