"""Writes a cpio archive (newc), the form of an initramfs. The same content always gives the same bytes."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field


@dataclass
class Archive:
    """Folders, files, links and device nodes by path. Parent folders come by themselves."""

    _entries: dict[str, tuple[int, bytes, tuple[int, int]]] = field(default_factory=dict)

    def folder(self, path: str) -> None:
        """Add an empty folder, and those above it."""
        parts = path.strip("/").split("/")
        for depth in range(1, len(parts) + 1):
            self._entries.setdefault("/".join(parts[:depth]), (stat.S_IFDIR | 0o755, b"", (0, 0)))

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Add a file."""
        self._add(path, (stat.S_IFREG | mode, content, (0, 0)))

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(path, (stat.S_IFLNK | 0o777, target.encode(), (0, 0)))

    def device(self, path: str, major: int, minor: int) -> None:
        """Add a character device, which needs no root here."""
        self._add(path, (stat.S_IFCHR | 0o600, b"", (major, minor)))

    def _add(self, path: str, entry: tuple[int, bytes, tuple[int, int]]) -> None:
        above, slash, _ = path.strip("/").rpartition("/")
        if slash:
            self.folder(above)
        self._entries[path.strip("/")] = entry

    def encode(self) -> bytes:
        """The archive's bytes: entries sorted by path, owned by root, without times."""
        encoded = bytearray()
        for inode, (path, (mode, content, device)) in enumerate(sorted(self._entries.items()), start=1):
            encoded += _entry(path, inode, mode, content, device)
        encoded += _entry("TRAILER!!!", 0, 0, b"", (0, 0))
        return bytes(encoded)


def _entry(path: str, inode: int, mode: int, content: bytes, device: tuple[int, int]) -> bytes:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (inode, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(name), 0)
    header = b"070701" + b"".join(b"%08x" % value for value in fields) + name
    return _padded(header) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
