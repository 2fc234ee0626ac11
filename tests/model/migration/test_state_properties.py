"""Saved state of any content: it is refused with a reason, or taken and given back, and the VF runs on it."""

from __future__ import annotations

import struct
import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from pymodel.build import Options, build
from pymodel.devices.block.ram_disk import RamDisk
from pymodel.errors import InvalidField
from pymodel.memory import Segments
from pymodel.migration.member import Member
from pymodel.pci.virtual_function import VirtualFunction
from tests.fuzz.local import LocalHost
from tests.model.fakes import FakeMemory, context, extent, part, segments

DISK = 1 << 16
u16 = st.one_of(
    st.sampled_from([0, 1, 2, 3, 8, 255, 256, 257, 0x7FFF, 0x8000, 0xFFFF]), st.integers(0, 0xFFFF)
)
u64 = st.one_of(
    st.sampled_from([0, 1, 16, 0x1000, 1 << 63, (1 << 64) - 16, (1 << 64) - 1]), st.integers(0, (1 << 64) - 1)
)
aligned = u64.map(lambda value: value & ~0xF)
queue_config = st.builds(
    lambda size, vector, enable, data, desc, driver, device: part(
        0x14, struct.pack("<8H3Q", 0, size, vector, enable, 0, data, 0, 0, desc, driver, device)
    ),
    st.sampled_from([0, 1, 2, 3, 16, 256, 512]) | u16,
    u16,
    st.integers(0, 2),
    st.sampled_from([0, 0, 0x100, 0x101]),
    aligned | u64,
    aligned | u64,
    aligned | u64,
)
ring_state = st.builds(lambda *words: part(0x15, struct.pack("<4H", 0, *words)), u16, u16, st.integers(0, 2))
position = st.sampled_from([0x8000, 0x8001, 0x80FF, 0x8100, 0, 1, 255, 256]) | u16
packed_state = st.builds(
    lambda *words: part(0x16, struct.pack("<4H", 0, *words)), position, position, st.integers(0, 2)
)
features = st.sampled_from(
    [
        0,
        1 << 32,
        1 << 32 | 1 << 29,
        1 << 32 | 1 << 28,
        1 << 32 | 1 << 34,
        1 << 32 | 1 << 34,
        1 << 32 | 0b11 << 34 | 1 << 29,
        1 << 32 | 1 << 39,
        (1 << 64) - 1,
        1 << 127,
    ]
)
driver_features = features.map(lambda bits: part(0x11, bits.to_bytes(16, "little")))
common = st.builds(
    lambda selects, vector, queues, select, status, generation: part(
        0x12, struct.pack("<IIHHHBB", selects, selects, vector, queues, select, status, generation)
    ),
    st.integers(0, (1 << 32) - 1),
    u16,
    st.sampled_from([1, 1, 1, 0, 2, 0xFFFF]),
    u16,
    st.sampled_from([0, 1, 3, 11, 15, 15, 15, 64, 79, 128, 255]),
    st.integers(0, 255),
)
content = st.builds(
    extent, st.sampled_from([0, 1, 512, DISK - 1, DISK, (1 << 64) - 1]), st.binary(max_size=40)
)
device_id = st.sampled_from([2, 2, 2, 1, 0xFFFF]).map(lambda kind: part(0x0F, struct.pack("<Q", kind)))
device_config = st.integers(0, 60).map(lambda size: part(0x13, bytes(size)))
isr_and_pending = st.sampled_from([part(0x17, b"\3" + bytes(7)), part(0x18, b"\1" + bytes(7))])
fields = st.lists(
    queue_config
    | ring_state
    | packed_state
    | driver_features
    | common
    | content
    | device_id
    | device_config
    | isr_and_pending,
    max_size=8,
)


def vf_and_member() -> tuple[VirtualFunction, Member]:
    options = Options(device="blk", backends={"pf": RamDisk(512), "vf1": RamDisk(DISK)}, vfs=1, total_vfs=1)
    vf = build(options, lock=threading.RLock).vfs[1]
    vf.attach(LocalHost())
    vf.config_write(4, bytes([6, 0]))  # memory space, bus master
    assert vf.as_member.set_mode(2)
    return vf, vf.as_member


def write(member: Member, stream: bytes) -> None:
    source = segments(stream)
    while not member.write_context(source, 0):
        pass


def read(member: Member) -> bytes:
    member.discard_context()
    memory = FakeMemory(1 << 18)
    left, size = member.read_context(Segments(memory, [(0, 1 << 18)]), 0)
    assert not left
    return memory.data[:size].tobytes()


@settings(max_examples=300)
@given(written=st.lists(fields, min_size=1, max_size=2))
def test_state_is_refused_or_lived_with(written: list[list[bytes]]) -> None:
    vf, member = vf_and_member()
    before = read(member)
    try:
        write(member, b"".join(context(*parts) for parts in written))
    except InvalidField:
        assert read(member) == before
    else:
        after = read(member)
        write(member, after)
        assert read(member) == after, "what was taken is not what is given back"
    assert member.set_mode(0)
    for _ in range(3):
        vf.service()
    vf.bar_write(0, 0x3000, b"\0\0")
    vf.service()
    # Whatever became of it, its driver can reset it, and then its own context is good again.
    vf.bar_write(0, 0x14, b"\0")
    vf.service()
    assert vf.bar_read(0, 0x14, 1) == b"\0"
    assert member.set_mode(2)
    write(member, before)
    assert read(member) == before
