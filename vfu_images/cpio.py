"""A cpio archive (newc), the form of an initramfs. The same content always gives the same bytes."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

HEADER_SIZE = 110
TRAILER = "TRAILER!!!"


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
        encoded += _entry(TRAILER, 0, 0, b"", (0, 0))
        return bytes(encoded)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The archive that `encode` made these bytes of."""
        archive, at = cls(), 0
        while True:
            fields = [int(data[at + place : at + place + 8], 16) for place in range(6, HEADER_SIZE, 8)]
            mode, size, device, name_size = fields[1], fields[6], (fields[9], fields[10]), fields[11]
            name = data[at + HEADER_SIZE : at + HEADER_SIZE + name_size - 1].decode()
            at += HEADER_SIZE + name_size
            at += -at % 4
            if name == TRAILER:
                return archive
            archive._entries[name] = (mode, data[at : at + size], device)
            at += size + -size % 4

    def only(self, beginnings: Sequence[str]) -> Archive:
        """An archive of the files whose path begins so, and the folders that they need."""
        chosen = Archive()
        for path, entry in self._entries.items():
            if not stat.S_ISDIR(entry[0]) and path.startswith(tuple(beginnings)):
                chosen._add(path, entry)
        return chosen

    def unpack(self, folder: Path) -> None:
        """Make folders, files and links in a new folder; device nodes, which need root, are left out."""
        folder.mkdir()
        for path, (mode, content, _) in sorted(self._entries.items()):
            place = folder / path
            if stat.S_ISDIR(mode):
                place.mkdir(parents=True, exist_ok=True)
            elif stat.S_ISLNK(mode):
                place.symlink_to(content.decode())
            elif stat.S_ISREG(mode):
                place.write_bytes(content)
                place.chmod(stat.S_IMODE(mode))


def _entry(path: str, inode: int, mode: int, content: bytes, device: tuple[int, int]) -> bytes:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (inode, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(name), 0)
    header = b"070701" + b"".join(b"%08x" % value for value in fields) + name
    return _padded(header) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
