"""What a block device stores its sectors on, and the disk in memory.

Files are the server's business (`vfu_server`); they implement the same Protocol.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from pymodel.errors import InvalidField
from pymodel.memory import Bytes


class Disk(Protocol):
    """A store of `size` bytes, a multiple of 512. Offsets and lengths were checked against it."""

    @property
    def size(self) -> int:
        """Bytes in all."""
        ...

    @property
    def read_only(self) -> bool:
        """Whether `write` is refused."""
        ...

    def read(self, offset: int, views: list[Bytes]) -> None:
        """Fill `views`, in order, from `offset` on. Raises OSError; the views then hold anything."""
        ...

    def write(self, offset: int, views: list[Bytes]) -> None:
        """Store `views`, in order, from `offset` on. Raises OSError; the range then holds anything."""
        ...

    def flush(self) -> None:
        """Make every completed write durable. Raises OSError."""
        ...


class RamDisk:
    """A disk in memory: chunks that come to be when they are first written, 0 before.

    `snapshot` hands out the chunks themselves; a chunk that was handed out is copied before it is
    written again, so that a snapshot costs nothing until then. Each block remembers in which epoch it was
    last written, so that `changes` can tell what is new since a `mark`.
    """

    CHUNK = 4 << 20
    BLOCK = 4096
    read_only = False

    def __init__(self, size: int) -> None:
        self.size = size
        self._chunks: list[Bytes | None] = [None] * -(-size // self.CHUNK)
        self._shared: set[int] = set()
        self._epoch = 0
        self._written_in = np.zeros(-(-size // self.BLOCK), np.uint32)

    def _spans(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Cut a range at chunk borders: (chunk, start in it, bytes)."""
        while length:
            number, start = divmod(offset, self.CHUNK)
            count = min(length, self.CHUNK - start)
            yield number, start, count
            offset += count
            length -= count

    def _own(self, number: int) -> Bytes:
        """The chunk for writing: made if missing, copied if a snapshot holds it."""
        chunk = self._chunks[number]
        if chunk is None:
            chunk = np.zeros(min(self.CHUNK, self.size - number * self.CHUNK), np.uint8)
        elif number in self._shared:
            chunk = chunk.copy()
        self._shared.discard(number)
        self._chunks[number] = chunk
        return chunk

    def read(self, offset: int, views: list[Bytes]) -> None:
        """Fill `views` from `offset` on."""
        for view in views:
            done = 0
            for number, start, count in self._spans(offset, len(view)):
                chunk = self._chunks[number]
                view[done : done + count] = 0 if chunk is None else chunk[start : start + count]
                done += count
            offset += done

    def write(self, offset: int, views: list[Bytes]) -> None:
        """Store `views` from `offset` on."""
        for view in views:
            done = 0
            for number, start, count in self._spans(offset, len(view)):
                self._own(number)[start : start + count] = view[done : done + count]
                done += count
            self._touch(offset, done)
            offset += done

    def _touch(self, offset: int, length: int) -> None:
        self._written_in[offset // self.BLOCK : -(-(offset + length) // self.BLOCK)] = self._epoch

    def flush(self) -> None:
        """Nothing is more durable than memory here."""

    def snapshot(self) -> list[tuple[int, Bytes]]:
        """What holds data, as (offset, bytes) in rising order; it does not change afterwards."""
        held = [(number, chunk) for number, chunk in enumerate(self._chunks) if chunk is not None]
        self._shared.update(number for number, _ in held)
        return [(number * self.CHUNK, chunk) for number, chunk in held]

    def mark(self) -> int:
        """Begin an epoch; what is written from now on is what `changes` gives for it."""
        self._epoch += 1
        return self._epoch

    def changes(self, since: int) -> list[tuple[int, Bytes]]:
        """What was written since `mark` returned `since`, as `snapshot` gives it, in runs of whole blocks."""
        blocks = np.flatnonzero(self._written_in >= since)
        if not len(blocks):
            return []
        per_chunk = self.CHUNK // self.BLOCK
        ends = np.flatnonzero((np.diff(blocks) != 1) | (blocks[1:] % per_chunk == 0)) + 1
        found = []
        for run in np.split(blocks, ends):
            number, start = divmod(int(run[0]) * self.BLOCK, self.CHUNK)
            chunk = self._chunks[number]
            assert chunk is not None, "a block that was written has a chunk"
            self._shared.add(number)
            found.append((number * self.CHUNK + start, chunk[start : start + len(run) * self.BLOCK]))
        return found

    def check(self, offset: int, length: int) -> None:
        """Raise `InvalidField` if [offset, offset + length) does not lie on this disk."""
        if offset + length > self.size:
            raise InvalidField(f"{length} bytes at {offset} lie past the end of a disk of {self.size}")

    def clear(self) -> None:
        """Make every byte 0. What was marked before is void."""
        self._chunks = [None] * len(self._chunks)
        self._shared.clear()
        self._written_in[:] = 0

    def adopt(self, offset: int, data: Bytes) -> None:
        """Store `data`, which the caller gives away: whole chunks are taken over, not copied."""
        number, start = divmod(offset, self.CHUNK)
        if not start and len(data) == min(self.CHUNK, self.size - offset):
            self._chunks[number] = data
            self._shared.discard(number)
            self._touch(offset, len(data))
        else:
            self.write(offset, [data])
