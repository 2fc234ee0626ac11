"""What METADATA_GET and PARTS_GET answer: which parts, in which order, how long, and into how much room."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from tests.wire.draft_rig import ISR_STATUS, OK, PENDING, VQ_PACKED_STATE, VQ_SPLIT_STATE, outstanding
from tests.wire.parts.rig import (
    COUNT,
    DEV_FEATURES,
    DEVICE_STATUS,
    DRV_FEATURES,
    ENOMEM,
    ENXIO,
    GET_ID,
    LIST,
    OFFSETS,
    OURS,
    PARTS_GET,
    PCI_COMMON_CFG,
    QUEUE_SELECT,
    SELECTED,
    SET_ID,
    SIZE,
    VQ_CFG,
    VQ_NOTIFY_CFG,
    WRONG_CONTENT,
    Part,
    PartsRig,
    build,
    common,
    file_server,
    find,
    headers,
    named,
    of_queue,
    ours,
    parse,
    without_ours,
)
from tests.wire.running import until

KINDS_OF_STANDARD = [0x100, 0x101, *[0x102] * 5, 0x103, *[0x104] * 2, *[0x105] * 2]


def number(rig: PartsRig, kind: int) -> int:
    """METADATA_GET of SIZE or COUNT."""
    answer = rig.metadata(kind)
    assert (answer.code, answer.used) == (OK, 16)
    assert answer.result[4:] == bytes(4)
    return int.from_bytes(answer.result[:4], "little")


# Metadata.


@pytest.mark.spec("P-DEV-61", "P-DEV-42")
@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_metadata_tells_what_get_sends(rig: PartsRig, stopped: bool) -> None:
    """SIZE has room for all parts, headers included; COUNT and LIST are theirs. Again and again."""
    if stopped:
        rig.stop()
    for _ in range(3):
        parts = rig.parts()
        assert number(rig, SIZE) >= len(build(parts)) > 0
        assert number(rig, COUNT) == len(parts)
        answer = rig.metadata(LIST)
        assert answer.code == OK
        count = struct.unpack_from("<I4x", answer.result)[0]
        assert count == len(parts)
        listed = answer.result[8 : 8 + 16 * count]
        assert listed == headers(parts)
        # Up to a multiple of 8 bytes, and there is nothing more.
        assert answer.used == 16 + 16 * count


@pytest.mark.spec("P-DEV-62", "P-DEV-06", "P-DEV-18")
def test_a_list_without_room(rig: PartsRig) -> None:
    """ENOMEM for a byte too few, a status alone, and nothing has changed; SIZE and COUNT are cut."""
    parts = rig.parts()
    whole = 8 + 16 * len(parts)
    for room in (0, 1, 7, 8, 16, whole - 16, whole - 1):
        answer = rig.metadata(LIST, room=room)
        assert (answer.code[0], answer.used) == (ENOMEM, 8)
        assert rig.parts() == parts
    assert rig.metadata(LIST, room=whole).code == OK
    for kind in (SIZE, COUNT):
        full = rig.metadata(kind).result
        for room in (0, 1, 4, 8):
            answer = rig.metadata(kind, room=room)
            assert (answer.code, answer.used) == (OK, 8 + room)
            assert answer.result == full[:room]


@pytest.mark.parametrize("kind", [3, 4, 255])
def test_metadata_of_another_type(rig: PartsRig, kind: int) -> None:
    assert rig.metadata(kind).code == WRONG_CONTENT


# Which parts there are.


@pytest.mark.spec("P-DEV-43", "P-DEV-61")
@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_the_order_of_parts(rig: PartsRig, stopped: bool) -> None:
    """As in the standard's table: features, common configuration, status, queues; then ours."""
    if stopped:
        rig.stop()
    parts = rig.parts()
    kinds = [part.kind for part in parts]
    assert kinds[: len(KINDS_OF_STANDARD)] == KINDS_OF_STANDARD
    assert set(kinds[len(KINDS_OF_STANDARD) :]) == {OURS}
    assert [part.selector[0] for part in parts if part.kind == PCI_COMMON_CFG] == list(OFFSETS)
    for kind in (VQ_CFG, VQ_NOTIFY_CFG):
        assert [part.selector for part in parts if part.kind == kind] == [bytes(8), b"\1" + bytes(7)]
    assert len({part[:2] for part in parts}) == len(parts)


@pytest.mark.spec("P-DEV-47")
def test_which_parts_are_optional(rig: PartsRig) -> None:
    """DEV_FEATURES and ours; all others are needed."""
    optional = {part.kind for part in rig.parts() if part.flags & 1}
    assert optional == {DEV_FEATURES, OURS}
    assert all(part.flags == 1 for part in rig.parts() if part.kind in optional)


def test_what_parts_say(rig: PartsRig) -> None:
    """The registers, as the driver sees them."""
    rig.device.common.write("queue_select", 1)
    parts = rig.parts()
    device = rig.device
    words = struct.Struct("<QQ")
    assert words.unpack(find(parts, DEV_FEATURES).value) == (device.common.features(), 0)
    assert words.unpack(find(parts, DRV_FEATURES).value) == (device.features, 0)
    assert find(parts, DEVICE_STATUS).value == b"\x0f"
    for offset, size in OFFSETS.items():
        part = find(parts, PCI_COMMON_CFG, common(offset).selector)
        assert len(part.value) == size
    assert find(parts, *common(16)[:2]).value == bytes(2)
    assert find(parts, *common(18)[:2]).value == b"\2\0"
    assert find(parts, *common(QUEUE_SELECT)[:2]).value == b"\1\0"
    areas = [ring.address for ring in rig.queue.parts]
    assert find(parts, *of_queue(VQ_CFG, 0)[:2]).value == struct.pack(
        "<4H3Q", rig.queue.size, 1, 1, 0, *areas
    )
    assert find(parts, *of_queue(VQ_CFG, 1)[:2]).value[2:] == struct.pack("<3H3Q", 0xFFFF, 0, 0, 0, 0, 0)
    for index in (0, 1):
        device.common.write("queue_select", index)
        told = device.common.read("queue_notify_off"), device.common.read("queue_notif_config_data")
        assert find(parts, *of_queue(VQ_NOTIFY_CFG, index)[:2]).value == struct.pack("<HH4x", *told)


def test_our_parts(rig: PartsRig) -> None:
    """What the standard has no part for, by fields of the context (docs/wire.md)."""
    rig.disk.read(0)
    found = {part[:2]: part.value for part in rig.parts() if part.kind == OURS}
    state = VQ_PACKED_STATE if rig.packed else VQ_SPLIT_STATE
    fields = [(0x0F, 8), (0x12, 16), (0x13, len(rig.device.config_bytes())), (state, 8), (ISR_STATUS, 8)]
    expected = [ours(field)[:2] for field, _ in [*fields, (PENDING, 8)]]
    assert list(found) == expected
    assert [len(value) for value in found.values()][:5] == [size for _, size in fields]
    assert found[ours(0x0F)[:2]] == struct.pack("<H6x", 2)


# How they are sent.


@pytest.mark.spec("P-DEV-20")
def test_no_padding_behind_parts(rig: PartsRig) -> None:
    """The used length is that of a status and the parts, odd as it is: nothing stands behind the last one."""
    answer = rig.parts_get()
    assert answer.code == OK
    assert answer.used == 8 + len(build(parse(answer.result)))
    selected = rig.parts_get(SELECTED, headers([Part(DEVICE_STATUS)]))
    assert selected.used == 8 + 17


@pytest.mark.spec("P-DEV-17", "P-DEV-18", "P-DEV-19")
def test_parts_without_room(rig: PartsRig) -> None:
    """Cut at a byte, without an error; the next command has them all: there is no position to lose."""
    whole = rig.parts_get().result
    for room in (0, 1, 15, 16, 17, 100, len(whole) - 1, len(whole), len(whole) + 1):
        answer = rig.parts_get(room=room)
        assert (answer.code, answer.result) == (OK, whole[:room])
        assert answer.used == 8 + min(room, len(whole))
    assert rig.parts_get().result == whole


@pytest.mark.spec("P-DEV-42")
def test_parts_are_read_again_and_again(rig: PartsRig) -> None:
    """The same while nothing happens, stopped or not; what the driver changes shows at once."""
    first = rig.parts()
    for _ in range(5):
        assert rig.parts() == first
    for turn in (1, 0, 1):
        rig.device.common.write("queue_select", turn)
        assert find(rig.parts(), *common(QUEUE_SELECT)[:2]).value == bytes([turn, 0])
    rig.stop()
    stopped = rig.parts()
    assert without_ours(stopped) == without_ours(rig.selecting(1))
    assert [rig.parts() for _ in range(3)] == [stopped] * 3


@pytest.mark.spec("P-DEV-42")
def test_parts_are_read_while_requests_run(rig: PartsRig) -> None:
    """What Linux does ahead of a stop; the requests are none the worse."""
    for turn in range(8):
        rig.disk.write(turn, bytes([turn]) * 512)
    requests = [rig.read_request(sector % 8, kick=False) for sector in range(40)]
    rig.queue.kick(force=True)
    for _ in range(10):
        assert without_ours(rig.parts())[0].kind == DEV_FEATURES
    for sector, request in enumerate(requests):
        assert rig.finish(request) == bytes([sector % 8]) * 512


# Selected ones.


@pytest.mark.spec("P-DEV-43", "P-DEV-61")
def test_selected_parts_come_in_order(rig: PartsRig) -> None:
    """Whatever the order of the list, and whatever its flags and lengths say."""
    rig.stop()
    parts = rig.parts()
    shuffled = random.Random(14)
    for count in (1, 2, 3, 5, len(parts)):
        chosen = shuffled.sample(parts, count)
        wanted = headers(chosen)
        answer = rig.parts_get(SELECTED, wanted)
        assert answer.code == OK
        assert parse(answer.result) == [part for part in parts if part in chosen]
    bare = b"".join(struct.pack("<HBB8sI", part.kind, 0, 0, part.selector, 0) for part in parts[::-1])
    assert parse(rig.parts_get(SELECTED, bare).result) == parts


@pytest.mark.spec("P-DEV-60")
def test_selected_parts_that_there_are_not(rig: PartsRig) -> None:
    """They are left out without an error; the others come."""
    missing = [
        Part(0x106),
        Part(0x2FF),
        Part(0x200, b"\1\1"),
        Part(0x600),
        Part(0xFFFF),
        common(20),
        common(24),
        common(62),
        of_queue(VQ_CFG, 2),
        of_queue(VQ_NOTIFY_CFG, 0xFFFF),
        ours(0x200),
    ]
    answer = rig.parts_get(SELECTED, headers(missing))
    assert (answer.code, answer.used) == (OK, 8)
    there = [Part(DEVICE_STATUS), of_queue(VQ_CFG, 1)]
    answer = rig.parts_get(SELECTED, headers(missing[:5] + there + missing[5:]))
    assert [part[:2] for part in parse(answer.result)] == [part[:2] for part in there]


def test_an_empty_selection(rig: PartsRig) -> None:
    answer = rig.parts_get(SELECTED)
    assert (answer.code, answer.used) == (OK, 8)


@pytest.mark.parametrize("kind", [2, 3, 255])
def test_parts_of_another_type(rig: PartsRig, kind: int) -> None:
    assert rig.parts_get(kind).code == WRONG_CONTENT


# By which objects.


def test_objects_that_do_not_get(rig: PartsRig) -> None:
    """One that is to set, and one that there is not."""
    for id_, answer in ((SET_ID, WRONG_CONTENT), (GET_ID + 1, (ENXIO, None))):
        for found in (rig.metadata(SIZE, id_=id_), rig.parts_get(id_=id_)):
            assert found.code[0] == answer[0]
            assert answer[1] in (None, found.code[1])
            assert found.used == 8
    for kind in (1, 0x200, 0xFFFF):
        assert rig.adm(PARTS_GET, named(kind, GET_ID) + b"\1" + bytes(7)).code[0] == ENXIO


@pytest.mark.spec("P-DEV-42")
def test_requests_under_way(tmp_path: Path) -> None:
    """Parts are read while a request stands between fetch and completion, which holds no command up."""
    with file_server(tmp_path, "--io-delay-ms", "400") as slow, PartsRig(slow) as rig:
        request = rig.read_request()
        until(lambda: outstanding(slow, "vf1") == 1, "fetched")
        assert number(rig, SIZE) >= len(build(rig.parts()))
        rig.finish(request)
