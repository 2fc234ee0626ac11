"""The bytes of a context, against the numbers of docs/wire.md."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from pymodel.migration.context import TABLE, encode
from pymodel.migration.state import FunctionState, QueueState
from tests.model.fakes import FakeFunction, present_state, split


def stream_of(state: FunctionState) -> list[tuple[int, bytes]]:
    return split(b"".join(buffer.tobytes() for buffer in encode(state)))


@pytest.mark.spec("DEV-33", "DEV-34")
def test_every_byte_of_a_context() -> None:
    """START_MARKER, fields by number, END_MARKER; each value at its literal offsets."""
    function = FakeFunction()
    function.disk[:4] = (1, 2, 3, 4)
    fields = stream_of(function.capture())
    assert fields == [
        (0x00, b""),
        (0x0F, struct.pack("<H6x", 2)),
        (0x10, struct.pack("<QQ", 0x0001_0000_0040, 0x1_0000_0000_0000_0001_0000_0040 >> 64)),
        (0x11, struct.pack("<QQ", 0x1_0000_0000, 0)),
        (0x12, struct.pack("<IIHHHBB", 1, 2, 3, 2, 1, 15, 7)),
        (0x13, bytes(range(24))),
        (0x14, struct.pack("<8H3Q", 0, 128, 1, 1, 0, 0, 0, 0, 0x1000, 0x2000, 0x3000)),
        (0x14, struct.pack("<8H3Q", 1, 64, 0xFFFF, 0, 0, 0, 0, 0, 0, 0, 0)),
        (0x15, struct.pack("<4H", 0, 41, 40, 1)),
        (0x17, struct.pack("<B7x", 1)),
        (0x18, struct.pack("<B7x", 1)),
        (0x100, b"table"),
        (0x101, b"\x02\0\0\0\0\x01"),
        (0x200, bytes(8) + b"\1\2\3\4" + bytes(4092)),
        (0x01, b""),
    ]


def test_large_buffers_are_passed_on() -> None:
    """A disk is not copied to be encoded."""
    state = FakeFunction().capture()
    disk = state.device[0].value[1]
    assert any(np.shares_memory(buffer, disk) for buffer in encode(state))


def test_queue_order_is_by_index() -> None:
    state = present_state()
    state.queues = [QueueState(1), QueueState(0)]
    queues = [value[:2] for kind, value in stream_of(state) if kind == 0x14]
    assert queues == [b"\0\0", b"\1\0"]


@pytest.mark.parametrize(
    ("kind", "size"),
    [(0xF, 8), (0x10, 16), (0x11, 16), (0x12, 16), (0x14, 40), (0x15, 8), (0x17, 8), (0x18, 8)],
)
def test_sizes(kind: int, size: int) -> None:
    assert {row.type: row.layout.itemsize for row in TABLE}[kind] == size


def test_every_attribute_travels() -> None:
    """No attribute of the state is forgotten by the table."""
    carried = {row.rename.get(name, name) for row in TABLE for name in row.members}
    # The device's own fields pass through beside the table, and the content's name is one of them.
    # A position that is in memory only is in no field.
    apart = {"queues", "device_config", "content", "lost"}
    names = set(FunctionState.__slots__) | set(QueueState.__slots__)
    assert names - apart == carried


def test_a_device_that_does_not_divide_its_content_is_a_bug() -> None:
    function = FakeFunction(disk=np.zeros((16 << 20) - 7, np.uint8))
    with pytest.raises(ValueError, match="must divide"):
        encode(function.capture())
