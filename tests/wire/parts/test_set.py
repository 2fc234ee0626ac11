"""What PARTS_SET takes and refuses: all of a command or nothing, the newest good one, from the resume on."""

from __future__ import annotations

import random
import struct

import pytest

from tests.wire.draft_rig import OK, VQ_PACKED_STATE, VQ_SPLIT_STATE
from tests.wire.parts.rig import (
    DEV_FEATURES,
    DEVICE_STATUS,
    DRV_FEATURES,
    ENXIO,
    GET_ID,
    OURS,
    PARTS_SET,
    PCI_COMMON_CFG,
    QUEUE_SELECT,
    VQ_CFG,
    VQ_NOTIFY_CFG,
    WRONG_CONTENT,
    WRONG_STATE,
    Part,
    PartsRig,
    build,
    changed,
    common,
    find,
    named,
    of_queue,
    ours,
)

Ring = pytest.mark.parametrize("rig", [False], indirect=True, ids=["split"])


@pytest.fixture
def rig(rig: PartsRig) -> PartsRig:
    """A stopped VF whose queue_select is 0, with one sector of 0x11."""
    rig.disk.write(0, b"\x11" * 512)
    rig.device.common.write("queue_select", 0)
    rig.stop()
    return rig


def nothing_changed(rig: PartsRig, parts: list[Part]) -> None:
    """Parts and registers are as they were, and the VF goes on as if nothing had been set."""
    assert rig.parts() == parts
    rig.resume()
    assert rig.queue_select == 0
    assert rig.device.status == 0x0F
    assert rig.disk.read(0).tobytes() == b"\x11" * 512


# What is taken.


@pytest.mark.spec("P-DEV-42", "P-DEV-62")
def test_parts_take_effect_at_the_resume(rig: PartsRig) -> None:
    """Until then the registers are what they were."""
    assert rig.set(rig.selecting(1)) == OK
    assert rig.queue_select == 0
    rig.resume()
    assert rig.queue_select == 1
    assert rig.disk.read(0).tobytes() == b"\x11" * 512


@pytest.mark.spec("P-DEV-42", "P-DEV-02")
def test_its_own_parts(rig: PartsRig) -> None:
    """What was read goes back as it is, over and over, and the VF goes on with a request that was waiting."""
    request = rig.read_request()
    parts = rig.parts()
    with rig.silence():
        for _ in range(5):
            assert rig.set(parts) == OK
    rig.resume()
    assert rig.finish(request) == b"\x11" * 512
    rig.stop()
    assert rig.set(rig.parts()) == OK
    rig.resume()
    assert rig.disk.read(0).tobytes() == b"\x11" * 512


@pytest.mark.spec("P-DEV-42")
def test_the_newest_parts_count(rig: PartsRig) -> None:
    """Several sets, the same and others: the VF goes on with the last one that was good."""
    one, two = rig.selecting(1), rig.selecting(2)
    for parts in (one, two, one, two):
        assert rig.set(parts) == OK
    assert rig.set([*one[:-1], Part(0x106)]) == WRONG_CONTENT
    assert rig.set(build(one)[:-1]) == WRONG_CONTENT
    rig.resume()
    assert rig.queue_select == 2
    assert rig.disk.read(0).tobytes() == b"\x11" * 512


@pytest.mark.spec("P-DEV-42")
def test_sets_add_up(rig: PartsRig) -> None:
    """Parts in several commands act together; PARTS_GET tells what was set."""
    before = rig.parts()
    config = Part(PCI_COMMON_CFG, common(16).selector, b"\2\0")
    for part in (common(QUEUE_SELECT, 2), config, common(QUEUE_SELECT, 1)):
        assert rig.set([part]) == OK
    told = [part for part in rig.parts() if part.kind != OURS]
    assert told == changed([part for part in before if part.kind != OURS], config, common(QUEUE_SELECT, 1))
    rig.resume()
    assert rig.queue_select == 1
    assert rig.device.common.read("config_msix_vector") == 2


@pytest.mark.spec("P-DEV-42")
def test_any_order_is_taken(rig: PartsRig) -> None:
    """All parts act at once, at the resume."""
    parts = rig.selecting(1)
    random.Random(9).shuffle(parts)
    assert rig.set(parts) == OK
    assert rig.set(parts[::-1]) == OK
    rig.resume()
    assert rig.queue_select == 1
    assert rig.disk.read(0).tobytes() == b"\x11" * 512


def test_a_device_that_needs_a_reset(rig: PartsRig) -> None:
    """It does so where it goes on, too."""
    rig.resume()
    rig.break_device()
    rig.stop()
    parts = rig.parts()
    assert find(parts, DEVICE_STATUS).value == b"\x4f"
    assert rig.set(parts) == OK
    rig.resume()
    assert rig.device.status == 0x4F


@pytest.mark.spec("P-DEV-16")
def test_no_parts_at_all(rig: PartsRig) -> None:
    """Nothing is set, which is no error; what was set before stays."""
    parts = rig.parts()
    assert rig.set([]) == OK
    nothing_changed(rig, parts)
    rig.stop()
    assert rig.set(rig.selecting(1)) == OK
    assert rig.set([]) == OK
    rig.resume()
    assert rig.queue_select == 1


@pytest.mark.spec("P-DRV-07")
def test_zeros_that_pad_a_command(rig: PartsRig) -> None:
    """A driver whose commands are multiples of 8 bytes: up to 7 zeros behind the last part, and no more."""
    whole = build(rig.selecting(1))
    for count in range(1, 8):
        assert rig.set(whole + bytes(count)) == OK
        assert rig.set(whole + bytes(count - 1) + b"\1") == WRONG_CONTENT
    assert rig.set(whole + bytes(8)) == WRONG_CONTENT
    rig.resume()
    assert rig.queue_select == 1


@pytest.mark.spec("P-DEV-48")
def test_the_configuration_vector(rig: PartsRig) -> None:
    """It is applied, as the selectors are: what a driver wrote would be lost otherwise."""
    parts = rig.parts()
    exact = find(parts, *ours(0x12)[:2]).value
    exact = struct.pack("<IIH", 1, 1, 2) + exact[10:]
    assert rig.set(changed(parts, common(0, 1), common(8, 1), common(16, 2), ours(0x12, exact))) == OK
    rig.resume()
    read = rig.device.common.read
    assert [read(name) for name in ("device_feature_select", "driver_feature_select")] == [1, 1]
    assert read("config_msix_vector") == 2


# When it is refused.


@pytest.mark.spec("P-DEV-44", "P-DEV-02", "P-DEV-04", "P-DEV-05")
def test_only_while_stopped(rig: PartsRig) -> None:
    """Whatever is set while it runs is refused, and nothing of it is kept for later."""
    one = rig.selecting(1)
    rig.resume()
    for data in (one, one[:1], [], b"x", build(one)[:40]):
        assert rig.set(data) == WRONG_STATE
    assert rig.queue_select == 0
    rig.stop()
    rig.resume()
    assert rig.queue_select == 0
    assert rig.disk.read(0).tobytes() == b"\x11" * 512


def test_objects_that_do_not_set(rig: PartsRig) -> None:
    """One that is to get, one that there is not, and another type of object."""
    parts = rig.parts()
    assert rig.set(parts, id_=GET_ID) == WRONG_CONTENT
    assert rig.set(parts, id_=GET_ID + 1)[0] == ENXIO
    assert rig.adm(PARTS_SET, named(1, 200) + build(parts)).code[0] == ENXIO
    nothing_changed(rig, parts)


# What is refused.


@pytest.mark.spec("P-DEV-45", "P-DEV-04", "P-DEV-05")
def test_parts_of_another_length(rig: PartsRig) -> None:
    """Each part of the standard with a byte more, a byte less, and none: refused, and nothing is set."""
    parts = rig.parts()
    one = rig.selecting(1)
    for at, part in enumerate(one):
        for value in (part.value + b"\0", part.value[:-1], b""):
            assert rig.set([*one[:at], part._replace(value=value), *one[at + 1 :]]) == WRONG_CONTENT
    nothing_changed(rig, parts)


@pytest.mark.spec("P-DEV-45", "P-DEV-04")
def test_parts_that_are_cut(rig: PartsRig) -> None:
    """A command that ends anywhere within a part; all or nothing."""
    parts = rig.parts()
    whole = build(rig.selecting(1))
    ends = {0}
    for part in parts:
        ends.add(max(ends) + 16 + len(part.value))
    # What is less than 8 zeros behind a part counts as padding.
    padding = {length for end in ends for length in range(end, end + 8) if not any(whole[end:length])}
    for length in set(range(1, len(whole), 3)) - padding:
        assert rig.set(whole[:length]) == WRONG_CONTENT, f"{length} bytes"
    nothing_changed(rig, parts)


@pytest.mark.spec("P-DEV-04")
def test_rubbish(rig: PartsRig) -> None:
    """Bytes of all kinds, and good parts with rubbish ahead of, between and behind them."""
    parts = rig.parts()
    whole = build(rig.selecting(1))
    noise = random.Random(5)
    junk = [noise.randbytes(size) for size in (1, 7, 15, 16, 17, 40, 500, 4000)]
    for data in (b"\xff" * 16, b"\xff" * 4096, bytes(16), bytes(4096), b"\1" * 100, *junk):
        assert rig.set(data) == WRONG_CONTENT
    for data in junk:
        assert rig.set(data + whole) == WRONG_CONTENT
        assert rig.set(whole + data) == WRONG_CONTENT
        assert rig.set(whole[:48] + data + whole[48:]) == WRONG_CONTENT
    nothing_changed(rig, parts)


@pytest.mark.spec("P-DEV-04")
def test_flipped_bytes(rig: PartsRig) -> None:
    """One byte of a good set is another: refused, or a good set too; the VF lives on with its own."""
    parts = rig.parts()
    whole = build(parts)
    for at in range(0, len(whole), 5):
        answer = rig.set(whole[:at] + bytes([whole[at] ^ 0xA5]) + whole[at + 1 :])
        assert answer in {OK, WRONG_CONTENT}
    assert rig.set(parts) == OK
    nothing_changed(rig, parts)


@pytest.mark.spec("P-DEV-04")
def test_the_same_part_twice(rig: PartsRig) -> None:
    """Equal or not, next to each other or not."""
    parts = rig.parts()
    one = rig.selecting(1)
    for part in one:
        assert rig.set([*one, part]) == WRONG_CONTENT
        assert rig.set([part, *one]) == WRONG_CONTENT
    assert rig.set([*one, Part(0x106, flags=1), Part(0x106, flags=1)]) == WRONG_CONTENT
    nothing_changed(rig, parts)


@pytest.mark.spec("P-DEV-04")
def test_what_is_reserved(rig: PartsRig) -> None:
    """Flags beside OPTIONAL, the reserved byte, and bytes of the selector that say nothing."""
    parts = rig.parts()
    one = rig.selecting(1)
    rest = build(one[1:])
    assert rig.set(one[0].encode(reserved=1) + rest) == WRONG_CONTENT
    for flags in (2, 0x80, 3):
        assert rig.set([one[0]._replace(flags=flags), *one[1:]]) == WRONG_CONTENT
    for at, part in enumerate(one):
        if not part.flags:
            odd = part._replace(selector=part.selector[:7] + b"\1")
            assert rig.set([*one[:at], odd, *one[at + 1 :]]) == WRONG_CONTENT
    nothing_changed(rig, parts)


# Parts of the standard.


@pytest.mark.spec("P-DEV-46", "P-DEV-48")
def test_device_features_are_compared(rig: PartsRig) -> None:
    """A bit more, a bit less, OPTIONAL or not: refused; the device offers what it did."""
    parts = rig.parts()
    offered = rig.device.common.features()
    one = rig.selecting(1)
    for word in (0, offered ^ 1 << 3, offered | 1 << 62, offered & ~(1 << 32)):
        for flags in (0, 1):
            value = struct.pack("<QQ", word, 0)
            bad = Part(DEV_FEATURES, value=value, flags=flags)
            assert rig.set([bad, *one[1:]]) == WRONG_CONTENT
    assert rig.set([Part(DEV_FEATURES, value=struct.pack("<QQ", offered, 1)), *one[1:]]) == WRONG_CONTENT
    nothing_changed(rig, parts)
    assert rig.device.common.features() == offered


@pytest.mark.spec("P-DEV-48")
def test_invariable_fields_are_compared(rig: PartsRig) -> None:
    """num_queues must be the same; other fields of the common configuration are none of these parts."""
    parts = rig.parts()
    one = rig.selecting(1)
    for number in (0, 1, 3, 0xFFFF):
        assert rig.set(changed(one, common(18, number))) == WRONG_CONTENT
        assert rig.set([common(18, number)]) == WRONG_CONTENT
    for offset in (2, 4, 12, 20, 21, 24, 26, 28, 30, 32, 56, 58, 60, 62, 64, 0x1000, 1 << 31):
        assert rig.set([*one, common(offset, 1)]) == WRONG_CONTENT
    nothing_changed(rig, parts)


@pytest.mark.spec("P-DEV-48", "P-DEV-04")
def test_registers_that_there_cannot_be(rig: PartsRig) -> None:
    """Features that are not offered, vectors, sizes and addresses of queues that no driver could set."""
    parts = rig.parts()
    one = rig.selecting(1)
    own = find(one, *of_queue(VQ_CFG, 0)[:2]).value
    size, vector, enabled, _, *areas = struct.unpack("<4H3Q", own)

    def queue(*values: int, index: int = 0) -> Part:
        return of_queue(VQ_CFG, index, struct.pack("<4H3Q", *values))

    bad = [
        Part(DRV_FEATURES, value=struct.pack("<QQ", rig.device.features | 1 << 62, 0)),
        Part(DRV_FEATURES, value=struct.pack("<QQ", rig.device.features, 1)),
        Part(DEVICE_STATUS, value=b"\x10"),
        Part(DEVICE_STATUS, value=b"\x2f"),
        common(16, 999),
        queue(size, 999, enabled, 0, *areas),
        queue(size, vector, 2, 0, *areas),
        queue(size, vector, enabled, 1, *areas),
        queue(0, vector, enabled, 0, *areas),
        queue(0x8000, vector, enabled, 0, *areas),
        queue(size, vector, enabled, 0, areas[0] + 1, *areas[1:]),
        of_queue(VQ_NOTIFY_CFG, 0, struct.pack("<HH4x", 99, 0x100)),
        of_queue(VQ_NOTIFY_CFG, 0, struct.pack("<HHI", 0, 0x100, 1)),
    ]
    for part in bad:
        flags = find(one, part.kind, part.selector).flags
        exact = [each for each in one if each[:2] != ours(0x12)[:2]]
        assert rig.set(changed(exact, part._replace(flags=flags))) == WRONG_CONTENT, part
    for index in (2, 0xFFFF):
        assert rig.set([*one, queue(size, vector, 0, 0, *areas, index=index)]) == WRONG_CONTENT
        assert rig.set([*one, of_queue(VQ_NOTIFY_CFG, index, bytes(8))]) == WRONG_CONTENT
    nothing_changed(rig, parts)


# Parts that are not the standard's, or not this device's.


@pytest.mark.spec("P-DEV-47", "P-DEV-04")
def test_parts_that_are_unknown(rig: PartsRig) -> None:
    """Refused, unless they are OPTIONAL: then they are passed over, wherever they stand."""
    parts = rig.parts()
    one = rig.selecting(1)
    unknown = [
        Part(kind, bytes([9] * 8), b"\x5a" * 33) for kind in (0, 0x106, 0x2FF, 0x300, 0x5FF, 0x600, 0xFFFF)
    ]
    for part in unknown:
        assert rig.set([*one, part]) == WRONG_CONTENT
        assert rig.set([part]) == WRONG_CONTENT
    nothing_changed(rig, parts)
    rig.stop()
    optional = [part._replace(flags=1) for part in unknown]
    assert rig.set([*optional[:3], *one, *optional[3:], Part(0x2FE, value=bytes(1 << 16), flags=1)]) == OK
    rig.resume()
    assert rig.queue_select == 1


@pytest.mark.spec("P-DEV-04")
def test_parts_of_a_network_device(rig: PartsRig) -> None:
    """What a disk cannot be: another type of device, and the control queue's commands."""
    parts = rig.parts()
    one = rig.selecting(1)
    assert rig.set(changed(one, ours(0x0F, struct.pack("<H6x", 1)))) == WRONG_CONTENT
    for selector, value in ((b"\0\0", b"\1"), (b"\1\1", bytes(6)), (b"\2\0", b"\1\0"), (b"\4\0", b"\1\0")):
        assert rig.set([*one, Part(0x200, selector.ljust(8, b"\0"), value)]) == WRONG_CONTENT
    nothing_changed(rig, parts)


@pytest.mark.spec("P-DEV-48", "P-DEV-04")
def test_parts_of_another_disk(rig: PartsRig) -> None:
    """Our parts know what the standard's leave out: a capacity that is another one."""
    parts = rig.parts()
    one = rig.selecting(1)
    config = find(one, *ours(0x13)[:2]).value
    assert struct.unpack_from("<Q", config) == (64,)
    assert rig.set(changed(one, ours(0x13, struct.pack("<Q", 128) + config[8:]))) == WRONG_CONTENT
    nothing_changed(rig, parts)


@pytest.mark.spec("P-DEV-04")
def test_positions_that_there_cannot_be(rig: PartsRig) -> None:
    """That of a ring of the other format, of a queue that there is not, and outside the ring."""
    parts = rig.parts()
    one = rig.selecting(1)
    here, other = VQ_SPLIT_STATE, VQ_PACKED_STATE
    if rig.packed:
        here, other = other, here
    bad = [
        [*one, ours(other, struct.pack("<4H", 0, 0, 0, 0))],
        [*one, ours(here, struct.pack("<4H", 2, 0, 0, 0), queue=2)],
        changed(one, ours(here, struct.pack("<4H", 1, 0, 0, 0))),
        changed(one, ours(here, struct.pack("<4H", 0, 0, 0, 0xFFFF))),
    ]
    bad.append(changed(one, ours(here, struct.pack("<4H", 0, 0x7000, 0x1000, 0))))
    for parts_of_it in bad:
        assert rig.set(parts_of_it) == WRONG_CONTENT
    nothing_changed(rig, parts)


@pytest.mark.spec("P-DEV-16")
def test_a_command_that_is_too_long(rig: PartsRig) -> None:
    """Far more than parts can be: refused, not worked through."""
    parts = rig.parts()
    flood = Part(0x106, value=bytes(300 << 10), flags=1)
    assert rig.set([*rig.selecting(1), flood]) == WRONG_CONTENT
    nothing_changed(rig, parts)


@Ring
def test_nothing_of_a_kind_is_needed(rig: PartsRig) -> None:
    """A set of one part changes that, and leaves the rest as it is."""
    assert rig.set([Part(DEVICE_STATUS, value=b"\x0f")]) == OK
    assert rig.set([Part(PCI_COMMON_CFG, common(QUEUE_SELECT).selector, b"\1\0")]) == OK
    rig.resume()
    assert rig.queue_select == 1
    assert rig.device.status == 0x0F
    assert rig.disk.read(0).tobytes() == b"\x11" * 512


def test_our_parts_win(rig: PartsRig) -> None:
    """Where both tell of one thing, in either order."""
    parts = rig.parts()
    exact = find(parts, *ours(0x12)[:2]).value
    theirs = changed(parts, common(QUEUE_SELECT, 7), ours(0x12, exact[:12] + b"\1\0" + exact[14:]))
    assert rig.set(theirs) == OK
    assert rig.set(theirs[::-1]) == OK
    rig.resume()
    assert rig.queue_select == 1


def test_parts_of_ours_that_are_unknown(rig: PartsRig) -> None:
    """Fields that a context has and parts have not: passed over, as they are OPTIONAL; refused where not."""
    one = rig.selecting(1)
    for field in (0, 1, 2, 0x10, 0x14, 0x100, 0x200, 0x7777):
        part = ours(field, bytes(40))
        assert rig.set([*one, part]) == OK
        assert rig.set([*one, part._replace(flags=0)]) == WRONG_CONTENT
    assert OURS == 0x5F0
    rig.resume()
    assert rig.queue_select == 1
