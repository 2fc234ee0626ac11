"""Disk images that are not raw: by the bytes that say so, wherever each format has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_BLOCK: Final = 4096
"""What is read at the start, and at the end: O_DIRECT may take no less."""

_AT_START: Final = (
    ("qcow2", 0, b"QFI\xfb\0\0\0\x02"),
    ("qcow2", 0, b"QFI\xfb\0\0\0\x03"),
    ("qcow", 0, b"QFI\xfb\0\0\0\x01"),
    ("qed", 0, b"QED\0"),
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"COWD"),
    ("vmdk", 0, b"# Disk DescriptorFile"),
    ("vdi", 0x40, b"\x7f\x10\xda\xbe"),
    ("vhdx", 0, b"vhdxfile"),
    ("vpc", 0, b"conectix"),
    ("parallels", 0, b"WithoutFreeSpace"),
    ("parallels", 0, b"WithouFreSpacExt"),
    ("bochs", 0, b"Bochs Virtual HD Image"),
    ("cloop", 0, b"#!/bin/sh\n#V2.0 Format\n"),
    ("luks", 0, b"LUKS\xba\xbe"),
    ("gzip", 0, b"\x1f\x8b\x08"),
    ("bzip2", 0, b"BZh"),
    ("xz", 0, b"\xfd7zXZ\0"),
    ("zstd", 0, b"\x28\xb5\x2f\xfd"),
)
"""(name as `qemu-img` has it, offset, bytes there)."""

_AT_END: Final = (("vpc", b"conectix"), ("dmg", b"koly"))
"""(name, first bytes of the last 512)."""


def recognized(read: Callable[[int, int], bytes], size: int) -> str | None:
    """The format of an image of `size` bytes, None for one that is raw.

    `read` is asked for whole blocks (offset, length), the last of which may end early. Raises what it raises.
    """
    head = read(0, _BLOCK)
    for name, offset, magic in _AT_START:
        if head[offset : offset + len(magic)] == magic:
            return name
    tail = read(max(size - 512, 0) // _BLOCK * _BLOCK, _BLOCK)[-512:] if size >= 512 else b""
    return next((name for name, magic in _AT_END if tail.startswith(magic)), None)
