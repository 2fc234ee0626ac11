"""The draft's rules for writing: CTX_WRITE cut anywhere, all or nothing, and what becomes of it."""

from __future__ import annotations

import struct

import pytest

from tests.wire.draft_rig import (
    ACTIVE,
    COMMON_CFG,
    CTX_DISCARD,
    EXTENT,
    FIELDS_QUERY,
    FORGET,
    FREEZE,
    ISR_STATUS,
    OK,
    PENDING,
    START,
    STOP,
    VQ_CFG,
    WRONG_CONTENT,
    WRONG_STATE,
    Rig,
    build,
    context,
    field,
    parse,
    patched,
    queue_select,
    value,
)
from vfu_client.drivers.block import BlockDriver

OUTSIDE = pytest.mark.parametrize("mode", [ACTIVE, STOP], ids=["active", "stop"])
CHANGE = 0x201


@pytest.fixture
def rig(rig: Rig) -> Rig:
    """A VF whose queue_select is 0 and whose disk holds one sector of 0x11."""
    rig.disk.write(0, b"\x11" * 512)
    rig.device.common.write("queue_select", 0)
    return rig


def selecting(stream: bytes, number: int) -> bytes:
    """The context with another queue_select."""
    return patched(stream, COMMON_CFG, 12, struct.pack("<H", number))


def extent(offset: int, data: bytes, kind: int = EXTENT) -> bytes:
    return field(kind, struct.pack("<Q", offset) + data)


@pytest.mark.spec("DEV-11")
def test_one_context_after_the_other(rig: Rig) -> None:
    """A, then B, then A and B again, each complete: READ and PCI reads show the last one at once (A-08)."""
    rig.go(FREEZE)
    base = rig.context()
    for number in (1, 7, 1, 7):
        assert rig.write(selecting(base, number)) == OK
        assert queue_select(rig.context()) == number
        assert rig.device.common.read("queue_select") == number
    assert rig.context() == selecting(base, 7)
    rig.go(ACTIVE)
    assert rig.device.common.read("queue_select") == 7


@pytest.mark.spec("DEV-11")
def test_the_last_context_is_the_one_that_runs(rig: Rig) -> None:
    """A context after a reset, then the driver's own: its queue goes on with a request that was waiting."""
    rig.go(STOP)
    request = rig.read_request()
    rig.go(FREEZE)
    own = rig.context()
    reset = patched(patched(own, COMMON_CFG, 14, b"\0"), VQ_CFG, 6, b"\0")
    reset = build([(kind, content) for kind, content in parse(reset) if kind != rig.vq_state])
    with rig.silence():
        assert rig.write(reset) == OK
        assert rig.device.status == 0
        assert rig.write(own) == OK
        assert rig.device.status == 0x0F
    rig.go(ACTIVE)
    assert rig.finish(request) == b"\x11" * 512


@pytest.mark.spec("DEV-11")
def test_a_context_goes_to_another_function(rig: Rig) -> None:
    """What a VF was goes into its neighbour: READ gives it back, and its disk has the content."""
    rig.disk.write(3, b"\x99" * 512)
    rig.go(FREEZE)
    stream = rig.context()
    rig.vf = 2
    rig.go(FREEZE)
    try:
        assert rig.write(stream) == OK
        assert rig.context() == stream
    finally:
        rig.go(ACTIVE)
        rig.vf = 1
    with BlockDriver.open(rig.server.socket("vf2"), timeout=20) as disk:
        assert disk.read(3).tobytes() == b"\x99" * 512


@OUTSIDE
@pytest.mark.spec("DEV-12")
def test_write_only_in_freeze(rig: Rig, mode: int) -> None:
    """Whatever is written in Active or Stop, it is refused, and neither context nor position changes."""
    rig.go(mode)
    before = rig.context()
    for data in (selecting(before, 1), context(), before[:40], field(0x77), b"x", b""):
        assert rig.write(data) == WRONG_STATE
    assert rig.context() == before
    assert rig.device.common.read("queue_select") == 0
    # Nothing of it is staged either: the next context is taken from its beginning.
    rig.go(FREEZE)
    assert rig.write(selecting(before, 1)) == OK
    rig.go(mode)


@pytest.mark.spec("DEV-12")
def test_a_write_in_active_does_not_disturb_requests(rig: Rig) -> None:
    """A refused WRITE while requests run: they complete, and the disk is what the driver wrote."""
    stream = rig.context()
    for number in range(16):
        rig.disk.write(number % 8, bytes([number]) * 512)
        assert rig.write(stream) == WRONG_STATE
        assert rig.disk.read(number % 8).tobytes() == bytes([number]) * 512


@pytest.mark.spec("DEV-24")
@pytest.mark.parametrize("length", [1, 15, 16, 40, -17, -1])
def test_discard_drops_a_partial_context(rig: Rig, length: int) -> None:
    """As if WRITE had never come: the context is the base, Freeze can be left, a new one can begin."""
    rig.go(FREEZE)
    base = rig.context()
    changed = selecting(base, 1)
    assert rig.write(changed[:length]) == OK
    assert rig.set_mode(STOP) == WRONG_STATE
    assert rig.adm(CTX_DISCARD).code == OK
    assert rig.read_rest() == base
    # The rest of what was dropped is no context; one byte alone could begin one.
    assert rig.write(changed[length:] + b"\xff" * 15) == WRONG_CONTENT
    assert rig.set_mode(STOP) == OK
    rig.go(FREEZE)
    assert rig.write(changed[:length]) == OK
    assert rig.adm(CTX_DISCARD).code == OK
    assert rig.write(changed) == OK
    assert rig.context() == changed


@pytest.mark.spec("DEV-24")
def test_discard_undoes_no_complete_context(rig: Rig) -> None:
    """A complete one, then a partial one: DISCARD drops the second only (A-10)."""
    rig.go(FREEZE)
    base = rig.context()
    assert rig.write(selecting(base, 1) + selecting(base, 2)[:-1]) == OK
    assert rig.adm(CTX_DISCARD).code == OK
    assert queue_select(rig.read_rest()) == 1
    rig.go(STOP)
    assert rig.device.common.read("queue_select") == 1


@pytest.mark.spec("DEV-24")
def test_discard_with_nothing_to_drop(rig: Rig) -> None:
    """Always succeeds."""
    for mode in (ACTIVE, STOP, FREEZE):
        rig.go(mode)
        base = rig.context()
        for _ in range(2):
            assert rig.adm(CTX_DISCARD).code == OK
        assert rig.read_rest() == base


def lengths(rig: Rig) -> dict[int, int]:
    """FIELDS_QUERY: type to length."""
    result = rig.adm(FIELDS_QUERY, room=4096).result
    return {
        kind: length
        for kind, _, length in (struct.unpack_from("<HHI", result, at) for at in range(0, len(result), 8))
    }


@pytest.mark.spec("DEV-32")
def test_a_field_of_another_length_is_refused(rig: Rig) -> None:
    """Every field that has a length, one byte shorter, one longer and by 2^32 off: EINVAL, nothing changed.

    The right length after it is OK, so the refusal was about the length.
    """
    rig.go(FREEZE)
    base = rig.context()
    fields = parse(base)
    support = lengths(rig)
    tried = set()
    for place, (kind, content) in enumerate(fields):
        if support[kind] == 0xFFFFFFFF or kind in tried:
            continue
        assert support[kind] == len(content)
        tried.add(kind)
        for wrong in {len(content) - 1, len(content) + 1, len(content) + (1 << 32)} - {-1}:
            head = build(fields[:place]) + struct.pack("<IIQ", kind, 0, wrong)
            stream = head + (content + b"\0")[:wrong] + build(fields[place + 1 :])
            assert rig.write(stream) == WRONG_CONTENT, f"field {kind:#x} of {wrong} bytes"
            # As soon as the header is complete.
            assert rig.write(head) == WRONG_CONTENT
            assert rig.context() == base
        assert rig.write(build(fields[: place + 1])) == OK
        assert rig.adm(CTX_DISCARD).code == OK
    assert tried >= {0x0, 0x1, 0xF, 0x10, 0x11, 0x12, 0x13, 0x14, rig.vq_state, 0x17, 0x18}
    assert rig.write(field(START) + field(FORGET, b"x")) == WRONG_CONTENT
    assert rig.write(base) == OK
    rig.go(STOP)


@pytest.mark.spec("DEV-32")
def test_a_refused_write_leaves_what_was_staged(rig: Rig) -> None:
    """A wrong length in the second WRITE: the first one's part stays (A-11), and the context can be ended."""
    rig.go(FREEZE)
    base = rig.context()
    stream = selecting(base, 1)
    assert rig.write(stream[:100]) == OK
    for wrong in (7, 9):
        cut = build([(rig.vq_state, bytes(wrong))])
        assert rig.write(stream[100:] + cut) == WRONG_CONTENT
    assert rig.set_mode(STOP) == WRONG_STATE
    assert rig.write(stream[100:]) == OK
    assert queue_select(rig.context()) == 1
    rig.go(STOP)


@pytest.mark.spec("DEV-32")
def test_unknown_fields_and_too_large_ones(rig: Rig) -> None:
    """A type that FIELDS_QUERY does not list, a reserved word, a length over 16 MiB (A-12)."""
    rig.go(FREEZE)
    base = rig.context()
    for bad in (
        field(0x77),
        field(0x19, bytes(8)),
        struct.pack("<IIQ", COMMON_CFG, 1, 16) + bytes(16),
        struct.pack("<IIQ", EXTENT, 0, (16 << 20) + 1),
        struct.pack("<IIQ", EXTENT, 0, 1 << 63),
    ):
        assert rig.write(field(START) + bad) == WRONG_CONTENT
    assert rig.context() == base
    rig.go(STOP)


@pytest.mark.spec("DEV-37")
def test_several_contexts_in_one_command(rig: Rig) -> None:
    """A and B, B and A, and very many: the last one counts."""
    rig.go(FREEZE)
    base = rig.context()
    first, second = selecting(base, 1), selecting(base, 2)
    assert rig.write(first + second) == OK
    assert queue_select(rig.context()) == 2
    assert rig.write(second + first) == OK
    assert queue_select(rig.context()) == 1
    assert rig.write(b"".join(selecting(base, number) for number in range(40))) == OK
    assert queue_select(rig.context()) == 39


@pytest.mark.spec("DEV-37")
def test_contexts_of_one_command_add_up(rig: Rig) -> None:
    """Fields that the second one does not have stay as the first one said; disk content goes by order."""
    rig.go(FREEZE)
    isr = context(field(ISR_STATUS, b"\1" + bytes(7)))
    assert rig.write(isr + selecting(context(field(COMMON_CFG, value(rig.context(), COMMON_CFG))), 5)) == OK
    stream = rig.context()
    assert (value(stream, ISR_STATUS)[0], queue_select(stream)) == (1, 5)
    one, two = context(extent(0, b"\xaa" * 1024)), context(extent(512, b"\xbb" * 512, CHANGE))
    assert rig.write(one + two) == OK
    assert value(rig.context(), EXTENT)[8:] == (b"\xaa" * 512 + b"\xbb" * 512).ljust(4096, b"\0")
    assert rig.write(two + one) == OK
    assert value(rig.context(), EXTENT)[8:] == (b"\xaa" * 1024).ljust(4096, b"\0")
    rig.go(ACTIVE)
    assert rig.disk.read(0, 3).tobytes() == b"\xaa" * 1024 + bytes(512)


@pytest.mark.spec("DEV-37")
def test_all_contexts_of_a_command_or_none(rig: Rig) -> None:
    """A good one and a bad one in one command: the good one has no effect (A-11)."""
    rig.go(FREEZE)
    base = rig.context()
    assert rig.write(selecting(base, 1) + context(field(0x77))) == WRONG_CONTENT
    assert rig.write(selecting(base, 1) + context(field(PENDING, b"\2" + bytes(7)))) == WRONG_CONTENT
    assert rig.context() == base
    rig.go(STOP)


@pytest.mark.spec("DEV-38")
@pytest.mark.parametrize("step", [1 << 16, 200, 7])
def test_the_last_value_of_a_field_wins(rig: Rig, step: int) -> None:
    """The same field three times in a context, in one command and cut into many; per queue too."""
    rig.go(FREEZE)
    base = rig.context()
    common = value(base, COMMON_CFG)
    queues = [value(base, VQ_CFG, number) for number in (0, 1)]
    vectors = [
        field(VQ_CFG, queues[queue][:4] + struct.pack("<H", vector) + queues[queue][6:])
        for queue, vector in ((1, 0), (0, 0), (1, 2), (0, 2), (0, 1))
    ]
    selects = [field(COMMON_CFG, common[:12] + bytes([n, 0]) + common[14:]) for n in (3, 1, 2)]
    disk = [extent(0, b"\x01" * 512), extent(0, b"\x02" * 512), extent(256, b"\x03" * 16)]
    stream = context(*vectors, *selects, *disk)
    for at in range(0, len(stream), step):
        assert rig.write(stream[at : at + step]) == OK
    after = rig.context()
    assert queue_select(after) == 2
    assert [int.from_bytes(value(after, VQ_CFG, queue)[4:6], "little") for queue in (0, 1)] == [1, 2]
    assert value(after, EXTENT)[8:] == (b"\x02" * 256 + b"\x03" * 16 + b"\x02" * 240).ljust(4096, b"\0")


@pytest.mark.spec("DEV-38")
def test_discard_in_the_stream_forgets_what_came_before(rig: Rig) -> None:
    """The DISCARD field (A-05): fields before it in the context do not count, those after it do."""
    rig.go(FREEZE)
    base = rig.context()
    common = value(base, COMMON_CFG)
    select = field(COMMON_CFG, common[:12] + b"\3\0" + common[14:])
    isr = field(ISR_STATUS, b"\1" + bytes(7))
    assert rig.write(context(select, extent(0, b"x" * 512), field(FORGET), isr)) == OK
    after = rig.context()
    assert (queue_select(after), value(after, ISR_STATUS)[0]) == (0, 1)
    assert value(after, EXTENT) == value(base, EXTENT)


@pytest.mark.spec("DRV-07", "DRV-08")
def test_streams_that_are_no_contexts_are_refused(rig: Rig) -> None:
    """No START_MARKER first, or two of them (A-09); without END_MARKER nothing takes effect."""
    rig.go(FREEZE)
    base = rig.context()
    for bad in (base[16:], field(START) + base, base + field(COMMON_CFG, bytes(16)), field(1)):
        assert rig.write(bad) == WRONG_CONTENT
        assert rig.set_mode(FREEZE) == OK
    rig.go(STOP)
    rig.go(FREEZE)
    assert rig.write(selecting(base, 1)[:-16]) == OK
    assert rig.device.common.read("queue_select") == 0
    assert queue_select(rig.read_rest()) == 0
    assert rig.adm(CTX_DISCARD).code == OK
    rig.go(STOP)


@pytest.mark.spec("DRV-09", "DEV-35")
@pytest.mark.parametrize("step", [1, 17, 200])
def test_contexts_cut_anywhere(rig: Rig, step: int) -> None:
    """A context in WRITEs that end within headers and values is the same as in one (A-13)."""
    rig.go(FREEZE)
    base = rig.context()
    stream = selecting(build([entry for entry in parse(base) if entry[0] < EXTENT or step > 1]), 1)
    for at in range(0, len(stream), step):
        assert rig.device.common.read("queue_select") == 0
        assert rig.write(stream[at : at + step]) == OK
    assert rig.context() == selecting(base, 1)
    rig.go(STOP)
