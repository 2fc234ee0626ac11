"""A block device's disk in memory: it never makes anybody wait, and its content travels in contexts."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from pymodel.devices.block.disk import Job, Kind, Shape
from pymodel.devices.block.ram_store import RamStore
from pymodel.devices.block.store import Store
from pymodel.errors import InvalidField
from pymodel.memory import Bytes
from pymodel.migration.state import Mark
from pymodel.spec import context


class RamDisk:
    """A `Disk` of chunks that come to be when they are first written, 0 before; zeroing a whole one frees it.

    `snapshot` hands out the chunks themselves; a chunk that was handed out is copied before it is
    written again, so that a snapshot costs nothing until then. Each block remembers in which epoch it was
    last written, so that `changes` can tell what is new since a `mark`. The content gets a name when it is
    asked for, at random, and loses it when anything is written.

    Raises MemoryError where there is none for its tables.
    """

    CHUNK = 4 << 20
    BLOCK = 4096
    # What a range that was freed reads as. Never written, so it takes no memory of its own.
    _ZEROES = np.zeros(CHUNK, np.uint8)
    _ZEROES.flags.writeable = False
    shape = Shape(physical=BLOCK)
    read_only = False
    in_order = True

    def __init__(self, size: int) -> None:
        self.size = size
        self._chunks: list[Bytes | None] = [None] * -(-size // self.CHUNK)
        self._shared: set[int] = set()
        # Zeroed chunks that were reserved, by number.
        self._spare: dict[int, Bytes] = {}
        self._epoch = 0
        self._name: bytes | None = None
        self._written_in = np.zeros(-(-size // self.BLOCK), np.uint32)
        self._store = RamStore(len(self._chunks), self.CHUNK, self.BLOCK, self._written_in, self._ZEROES)

    def at_once(self) -> Store:
        """See `Disk`."""
        return self._store

    def connect(self, wake: Callable[[], None]) -> None:
        """See `Disk`. Nothing happens by itself."""

    def ready(self) -> bool:
        """See `Disk`."""
        return True

    def attempt(self, job: Job, views: list[Bytes]) -> bool:
        """See `Disk`. ENOMEM where no memory is left for a chunk."""
        try:
            match job.kind:
                case Kind.READ:
                    self.read(job.offset, views)
                case Kind.WRITE:
                    self.write(job.offset, views)
                case Kind.ZERO | Kind.DISCARD:
                    self.zero(job.offset, job.length)
                case Kind.FLUSH:
                    self.flush()
        except MemoryError:
            raise OSError(errno.ENOMEM, "no memory for a chunk of the disk") from None
        return True

    def start(self, job: Job) -> None:
        """See `Disk`. No attempt ever asks for it."""
        raise AssertionError("a disk in memory does all at once")

    def work_unlocked(self) -> bool:
        """See `Disk`. There is none."""
        return False

    def finished(self) -> list[Job]:
        """See `Disk`."""
        return []

    def abandon(self) -> None:
        """See `Disk`. Nothing is ever under way."""

    def expect_release(self, *, soon: bool) -> None:
        """See `Disk`. There is nothing to do ahead of it."""

    def release(self) -> bool:
        """See `Disk`. Nobody else can have it."""
        return True

    def _spans(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Cut a range at chunk borders: (chunk, start in it, bytes)."""
        while length:
            number, start = divmod(offset, self.CHUNK)
            count = min(length, self.CHUNK - start)
            yield number, start, count
            offset += count
            length -= count

    def _own(self, number: int) -> Bytes:
        """The chunk for writing: made if missing, copied if a snapshot holds it. Raises MemoryError."""
        chunk = self._chunks[number]
        if chunk is None:
            spare = self._spare.pop(number, None)
            chunk = np.zeros(self._length(number), np.uint8) if spare is None else spare
        elif number in self._shared:
            spare = self._spare.pop(number, None)
            if spare is None:
                chunk = chunk.copy()
            else:
                spare[:] = chunk
                chunk = spare
        self._put(number, chunk)
        return chunk

    def _put(self, number: int, chunk: Bytes | None) -> None:
        """A chunk is this from now on, and nobody else has it."""
        self._shared.discard(number)
        self._chunks[number] = chunk
        self._store.put(number, chunk)

    def _share(self, number: int) -> None:
        """Somebody else has a chunk too: it is not changed any more."""
        self._shared.add(number)
        self._store.share(number)

    def _length(self, number: int) -> int:
        return min(self.CHUNK, self.size - number * self.CHUNK)

    def read(self, offset: int, views: Sequence[Bytes]) -> None:
        """Fill `views` from `offset` on."""
        for view in views:
            length = len(view)
            number, start = divmod(offset, self.CHUNK)
            if start + length <= self.CHUNK:
                chunk = self._chunks[number]
                view[:] = 0 if chunk is None else chunk[start : start + length]
            else:
                done = 0
                for number, start, count in self._spans(offset, length):
                    chunk = self._chunks[number]
                    view[done : done + count] = 0 if chunk is None else chunk[start : start + count]
                    done += count
            offset += length

    def write(self, offset: int, views: Sequence[Bytes]) -> None:
        """Store `views` from `offset` on."""
        self._touch(offset, sum(map(len, views)))
        for view in views:
            length = len(view)
            number, start = divmod(offset, self.CHUNK)
            if start + length <= self.CHUNK:
                self._own(number)[start : start + length] = view
            else:
                done = 0
                for number, start, count in self._spans(offset, length):
                    self._own(number)[start : start + count] = view[done : done + count]
                    done += count
            offset += length

    def zero(self, offset: int, length: int) -> None:
        """Make a range 0. Whole chunks are given back; that counts as a change where they held something."""
        for number, start, count in self._spans(offset, length):
            chunk = self._chunks[number]
            if chunk is None:
                continue
            self._touch(number * self.CHUNK + start, count)
            if count == len(chunk):
                self._put(number, None)
            else:
                self._own(number)[start : start + count] = 0

    def _touch(self, offset: int, length: int) -> None:
        """A range is about to be written; whatever becomes of that, it is a change."""
        self._name = None
        self._store.named = False
        self._written_in[offset // self.BLOCK : -(-(offset + length) // self.BLOCK)] = self._epoch

    def flush(self) -> None:
        """Nothing is more durable than memory here."""

    def snapshot(self) -> list[tuple[int, Bytes]]:
        """What holds data, as (offset, bytes) in rising order; it does not change afterwards."""
        held = [(number, chunk) for number, chunk in enumerate(self._chunks) if chunk is not None]
        for number, _ in held:
            self._share(number)
        return [(number * self.CHUNK, chunk) for number, chunk in held]

    def mark(self) -> Mark:
        """The present content; what is written from now on is what `changes` gives for it."""
        name = self._name
        if name is None:
            name = secrets.token_bytes(context.BLK_NAME_VALUE.itemsize)
            self.call(name)
        return Mark(name, self._epoch)

    def call(self, name: bytes) -> None:
        """The present content came in a context, and this is its name."""
        self._epoch += 1
        self._name = name
        self._store.epoch = self._epoch
        self._store.named = True

    def changes(self, since: Mark) -> list[tuple[int, Bytes]]:
        """What was written since `mark` returned `since`, as `snapshot` gives it, in runs of whole blocks."""
        found = []
        for number, start, length in self._runs(since):
            chunk = self._chunks[number]
            if chunk is None:
                data = self._ZEROES[:length]
            else:
                self._share(number)
                data = chunk[start : start + length]
            found.append((number * self.CHUNK + start, data))
        return found

    def _runs(self, since: Mark) -> list[tuple[int, int, int]]:
        """Runs of blocks written since then, cut at chunk borders: (chunk, start in it, bytes)."""
        blocks = np.flatnonzero(self._written_in >= since.epoch)
        if not len(blocks):
            return []
        per_chunk = self.CHUNK // self.BLOCK
        breaks = np.flatnonzero((np.diff(blocks) != 1) | (blocks[1:] % per_chunk == 0))
        firsts = blocks[np.concatenate(([0], breaks + 1))]
        lasts = blocks[np.concatenate((breaks, [len(blocks) - 1]))]
        found = []
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            number, start = divmod(first * self.BLOCK, self.CHUNK)
            end = min((last + 1) * self.BLOCK - number * self.CHUNK, self.size - number * self.CHUNK)
            found.append((number, start, end - start))
        return found

    def extent_of_snapshot(self) -> tuple[int, int]:
        """(ranges, bytes) that `snapshot` would give."""
        lengths = [len(chunk) for chunk in self._chunks if chunk is not None]
        return len(lengths), sum(lengths)

    def extent_of_changes(self, since: Mark) -> tuple[int, int]:
        """(ranges, bytes) that `changes` would give."""
        runs = self._runs(since)
        return len(runs), sum(length for _, _, length in runs)

    def check(self, offset: int, length: int) -> None:
        """Raise `InvalidField` if [offset, offset + length) does not lie on this disk."""
        if offset + length > self.size:
            raise InvalidField(f"{length} bytes at {offset} lie past the end of a disk of {self.size}")

    def clear(self) -> None:
        """Make every byte 0. What was marked before is void."""
        for number in range(len(self._chunks)):
            self._put(number, None)
        self._written_in[:] = 0
        self._name = None
        self._store.named = False

    def reserve(self, ranges: Iterable[tuple[int, int]], *, cleared: bool) -> None:
        """Hold what `adopt` takes for these ranges of (offset, length), if `cleared` after a `clear`.

        Raises MemoryError, nothing held. What an earlier call held is freed.
        """
        self._spare = {}
        self._spare = {
            number: np.zeros(self._length(number), np.uint8)
            for number in {
                number
                for offset, length in ranges
                if not self._is_chunk(offset, length)
                for number, _, _ in self._spans(offset, length)
            }
            if cleared or self._chunks[number] is None or number in self._shared
        }

    def _is_chunk(self, offset: int, length: int) -> bool:
        number, start = divmod(offset, self.CHUNK)
        return not start and length == self._length(number)

    def adopt(self, offset: int, data: Bytes) -> None:
        """Store `data`, which the caller gives away: whole chunks are taken over, not copied."""
        if self._is_chunk(offset, len(data)):
            self._put(offset // self.CHUNK, data)
            self._touch(offset, len(data))
        else:
            self.write(offset, [data])
