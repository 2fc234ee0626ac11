"""A context that builds on an earlier one: taken where just that content is, refused anywhere else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymodel.build import Options, build
from pymodel.devices.block.ram_disk import RamDisk
from pymodel.errors import InvalidField
from pymodel.memory import Segments
from pymodel.migration.member import Member
from tests.model.fakes import CHANGE, DISCARD, EXTENT, FakeMemory, context, extent, isr, part, segments, split

ACTIVE, STOP, FREEZE = 0, 1, 2
BASE, CONTENT = 0x202, 0x203
SIZE = 16 << 10
BLOCKS = SIZE // 4096
WHOLE_FILL = b"\x11" * SIZE


class Vf:
    """VF 1 of a device of its own, on a disk in memory full of 0x11."""

    def __init__(self) -> None:
        self.disk = RamDisk(SIZE)
        options = Options("blk", {"pf": RamDisk(512), "vf1": self.disk}, vfs=1, total_vfs=1)
        self.member: Member = build(options, lock=threading.RLock).vfs[1].as_member
        self.fill(0, WHOLE_FILL)

    def fill(self, offset: int, data: bytes) -> None:
        """What a request of its driver does."""
        self.disk.write(offset, [np.frombuffer(data, np.uint8)])

    @property
    def content(self) -> bytes:
        view = np.empty(SIZE, np.uint8)
        self.disk.read(0, [view])
        return view.tobytes()

    def read(self, room: int = 1 << 17) -> bytes:
        memory = FakeMemory(room)
        _, size = self.member.read_context(Segments(memory, [(0, room)]), 0)
        return memory.data[:size].tobytes()

    def write(self, stream: bytes) -> None:
        source = segments(stream)
        while not self.member.write_context(source, 0):
            pass

    def freeze(self) -> None:
        assert self.member.set_mode(FREEZE)


def kinds(stream: bytes) -> list[int]:
    """The types of its disk fields."""
    return [kind for kind, _ in split(stream) if kind >= 0x200]


def value(stream: bytes, kind: int) -> bytes:
    (found,) = [found for number, found in split(stream) if number == kind]
    return found


def pair() -> tuple[Vf, bytes, bytes]:
    """A VF in Freeze, its whole context, and one that builds on it."""
    source = Vf()
    whole = source.read()
    source.fill(4096, b"\x22" * 512)
    source.freeze()
    return source, whole, source.read()


def test_what_they_say() -> None:
    _, whole, later = pair()
    assert kinds(whole) == [EXTENT, CONTENT]
    assert kinds(later) == [CHANGE, BASE, CONTENT]
    assert value(later, BASE) == value(whole, CONTENT) != value(later, CONTENT)
    assert len(value(whole, CONTENT)) == 16


def test_pre_copy() -> None:
    """The whole one while the source runs, then what changed; in two commands or in one."""
    source, whole, later = pair()
    for streams in ([whole, later], [whole + later]):
        target = Vf()
        target.freeze()
        for stream in streams:
            target.write(stream)
        assert target.content == source.content
        target.member.discard_context()
        assert value(target.read(), CONTENT) == value(later, CONTENT)


def test_each_builds_on_the_one_before() -> None:
    """Active, Stop, Freeze, each read to its end; none of them can be left out."""
    source = Vf()
    streams = [source.read()]
    for mode in (STOP, FREEZE):
        source.fill(4096 * mode, bytes([mode]) * 512)
        assert source.member.set_mode(mode)
        streams.append(source.read())
    target = Vf()
    target.freeze()
    target.write(streams[0])
    with pytest.raises(InvalidField, match="builds on"):
        target.write(streams[2])
    target.write(streams[1] + streams[2])
    assert target.content == source.content


def loses_it_by_the_driver(target: Vf) -> None:
    assert target.member.set_mode(ACTIVE)
    target.fill(0, b"\x11")
    target.freeze()


def loses_it_by_a_zero(target: Vf) -> None:
    assert target.member.set_mode(ACTIVE)
    target.disk.zero(0, 4096)
    target.freeze()


def loses_it_by_another_context(target: Vf) -> None:
    target.write(Vf().read())


def loses_it_by_a_context_without_a_name(target: Vf) -> None:
    target.write(context(extent(0, b"\x11" * SIZE)))


def loses_it_by_a_change_without_a_name(target: Vf) -> None:
    target.write(context(extent(0, b"\x11", CHANGE)))


@pytest.mark.parametrize(
    "lose",
    [
        loses_it_by_the_driver,
        loses_it_by_a_zero,
        loses_it_by_another_context,
        loses_it_by_a_context_without_a_name,
        loses_it_by_a_change_without_a_name,
    ],
)
def test_a_vf_with_other_content_refuses_it(lose: Callable[[Vf], None]) -> None:
    _, whole, later = pair()
    target = Vf()
    target.freeze()
    target.write(whole)
    lose(target)
    before = target.content
    with pytest.raises(InvalidField, match="builds on"):
        target.write(later)
    assert not target.member.partial
    assert target.content == before


def test_equal_bytes_of_somewhere_else_are_not_it() -> None:
    """Another VF of the same content, or a new one, was not promised to be the base."""
    _, _, later = pair()
    target = Vf()
    target.freeze()
    assert target.content == WHOLE_FILL
    with pytest.raises(InvalidField, match="builds on"):
        target.write(later)


@pytest.mark.parametrize("meanwhile", [b"", context(isr(0)), context(part(DISCARD))])
def test_what_leaves_the_content_leaves_its_name(meanwhile: bytes) -> None:
    """An FLR, running without a write, contexts that say nothing of the disk."""
    source, whole, later = pair()
    target = Vf()
    target.freeze()
    target.write(whole)
    assert target.member.set_mode(ACTIVE)
    target.member.function_reset()
    target.freeze()
    target.write(meanwhile)
    target.write(meanwhile + later)
    assert target.content == source.content


def test_it_builds_on_what_came_before_it_in_its_command() -> None:
    _, whole, later = pair()
    for between in (context(extent(0, b"x", CHANGE)), context(extent(0, b""))):
        target = Vf()
        target.freeze()
        with pytest.raises(InvalidField, match="has no name"):
            target.write(whole + between + later)
        assert target.content == WHOLE_FILL
        target.write(whole + between)
        assert value(target.read(), CONTENT) not in (value(whole, CONTENT), value(later, CONTENT))


def test_a_base_alone_and_changes_without_one() -> None:
    """A base may be asked for without saying anything; changes of nobody's making apply to what is there."""
    target = Vf()
    name = value(target.read(), CONTENT)
    target.freeze()
    target.write(context(part(BASE, name)))
    target.member.discard_context()
    assert value(target.read(), CONTENT) == name
    target.write(context(part(BASE, name), extent(0, b"zz", CHANGE)))
    assert target.content[:3] == b"zz\x11"
    with pytest.raises(InvalidField, match="builds on"):
        target.write(context(part(BASE, name)))
    target.write(context(extent(1, b"yy", CHANGE)))
    assert target.content[:4] == b"zyy\x11"


@pytest.mark.parametrize(
    "field", [part(CONTENT, bytes(16)), extent(0, b"x", CHANGE) + part(CONTENT, bytes(16))]
)
def test_a_name_needs_the_content(field: bytes) -> None:
    """Who has only a part of it can't call it by its name."""
    target = Vf()
    target.freeze()
    with pytest.raises(InvalidField, match="names the content"):
        target.write(context(field))
    assert target.content == WHOLE_FILL


# --- the reader's side -----------------------------------------------------------------------------------


def test_the_name_is_the_same_while_nothing_changes() -> None:
    source = Vf()
    first = source.read()
    for mode in (STOP, FREEZE, ACTIVE):
        assert source.member.set_mode(mode)
        source.member.discard_context()
        assert source.read() == first


FORGET: list[Callable[[Member], None]] = [
    Member.discard_context,
    Member.owner_reset,
    Member.function_reset,
]


@pytest.mark.parametrize("forget", FORGET)
def test_who_may_have_lost_the_first_gets_a_whole_one(forget: Callable[[Member], None]) -> None:
    source = Vf()
    source.read()
    forget(source.member)
    source.freeze()
    assert kinds(source.read()) == [EXTENT, CONTENT]


@pytest.mark.parametrize("room", [100, 1 << 17])
def test_who_has_read_the_rest_only_gets_a_whole_one(room: int) -> None:
    """An owner that began to read is gone; the next one reads on, or is told that nothing is left."""
    source = Vf()
    source.read(room)
    source.member.owner_reset()
    while source.read():
        pass
    source.freeze()
    assert kinds(source.read()) == [EXTENT, CONTENT]


def test_a_context_that_was_not_read_to_its_end_is_no_base() -> None:
    source = Vf()
    source.read(100)
    source.freeze()
    assert kinds(source.read()) == [EXTENT, CONTENT]


def test_the_size_of_the_whole() -> None:
    """`freeze_mode` 1 is always the whole size; 0 is what READ gives."""
    source, whole, later = pair()
    for mode in (FREEZE, STOP, ACTIVE, FREEZE):
        assert source.member.set_mode(mode)
        assert source.member.context_size(1) == len(whole)
    assert len(whole) > SIZE > len(later) > source.member.context_size(0)
    source.read(50)
    assert source.member.context_size(1) == len(whole)
    source.member.discard_context()
    assert source.member.context_size(0) == len(whole)


# --- all of it together ----------------------------------------------------------------------------------

number = st.integers(0, 2)
step = st.one_of(
    st.tuples(st.just("fill"), number, st.integers(0, BLOCKS - 1), st.integers(1, 3)),
    st.tuples(st.just("read"), number, number, st.sampled_from([60, 1 << 17, 1 << 17, 1 << 17])),
    st.tuples(st.just("write"), number, st.lists(st.integers(0, 5), min_size=1, max_size=3)),
    st.tuples(st.just("forget"), number, st.sampled_from(FORGET)),
)


class Reader(Vf):
    """A VF, and what its owner has of the context under way, with the content when that began."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: tuple[bytes, bytes] | None = None

    def go(self, mode: int) -> None:
        if self.member.mode != mode:
            assert self.member.set_mode(mode)
            self.begun = None


@settings(max_examples=300)
@given(steps=st.lists(step, min_size=5, max_size=30))
def test_what_is_taken_makes_the_content_that_was_read(steps: list[tuple[Any, ...]]) -> None:
    """Three VFs are written, read in any mode, and given what was read anywhere, in any order.

    Whatever is taken, the disk is what the other one's was when that context's read began.
    """
    vfs = [Reader() for _ in range(3)]
    contexts: list[tuple[bytes, bytes]] = []
    for name, index, *arguments in steps:
        vf = vfs[index]
        match name, *arguments:
            case "fill", block, byte:
                vf.go(ACTIVE)
                vf.fill(4096 * block, bytes([byte]) * 512)
            case "read", mode, room:
                vf.go(mode)
                stream, content = vf.begun or (b"", vf.content)
                vf.begun = stream + vf.read(room), content
                if not vf.member.context_size(0):
                    contexts.append(vf.begun)
            case "write", chosen:
                vf.go(FREEZE)
                picked = [contexts[-1 - at] for at in chosen if at < len(contexts)]
                before = vf.content
                try:
                    vf.write(b"".join(stream for stream, _ in picked))
                except InvalidField:
                    assert vf.content == before
                else:
                    assert vf.content == (picked[-1][1] if picked else before)
                    vf.begun = None if picked else vf.begun
            case "forget", forget:
                forget(vf.member)
                if forget is not Member.owner_reset:
                    vf.begun = None


def test_names_are_of_sixteen_bytes_and_of_no_two_contents() -> None:
    names = set()
    for _ in range(20):
        vf = Vf()
        for byte in range(20):
            vf.fill(0, bytes([byte]))
            names.add(vf.disk.mark().name)
            names.add(vf.disk.mark().name)
    assert len(names) == 400
    assert {len(name) for name in names} == {16}


def test_a_written_context_leaves_the_rest_of_a_disk_alone() -> None:
    """No snapshot is taken for it, whose chunks would be copied when they are written next."""
    vf = Vf()
    vf.freeze()
    chunk = vf.disk._chunks[0]
    vf.write(context(extent(4096, b"\x22" * 4096, CHANGE)))
    vf.fill(0, b"\x33" * 512)
    assert vf.content[4096:8192] == b"\x22" * 4096
    assert vf.disk._chunks[0] is chunk
