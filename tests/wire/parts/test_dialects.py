"""The draft's contexts and virtio 1.4's parts beside each other, and VFs that have no parts."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.server_process import ServerProcess
from tests.wire.draft_rig import (
    ACTIVE,
    CTX_DISCARD,
    CTX_READ,
    CTX_WRITE,
    FREEZE,
    OK,
    STOP,
    WRONG_CONTENT,
    Rig,
    context,
    field,
    small_server,
    value,
)
from tests.wire.draft_rig import MODE_SET as CTX_MODE_SET
from tests.wire.parts.rig import (
    COUNT,
    DRV_FEATURES,
    GET_ID,
    LIST,
    MODE_SET,
    SELECTED,
    SET_ID,
    SIZE,
    STOPPED,
    TO_GET,
    TO_SET,
    WRONG_STATE,
    PartsRig,
    find,
    without_ours,
)

BUS_MASTER = 4

OF_THE_DRAFT = {
    "stop": (CTX_MODE_SET, bytes([STOP]), 0),
    "freeze": (CTX_MODE_SET, bytes([FREEZE]), 0),
    "read": (CTX_READ, b"", 4096),
}


@pytest.fixture
def rig(rig: PartsRig) -> PartsRig:
    """It has no object."""
    for id_ in (GET_ID, SET_ID):
        assert rig.destroy(id_) == OK
    return rig


@pytest.fixture(scope="module")
def ram() -> Iterator[ServerProcess]:
    """A server whose disks are in memory."""
    with small_server() as started:
        yield started


@pytest.mark.parametrize("command", OF_THE_DRAFT.values(), ids=OF_THE_DRAFT)
def test_a_vf_that_has_an_object(rig: PartsRig, command: tuple[int, bytes, int]) -> None:
    """Its state is in the hands of device parts: the draft's commands are refused until DESTROY."""
    assert rig.create(5, TO_GET) == OK
    assert rig.adm(*command).code == WRONG_STATE
    assert rig.mode == ACTIVE
    assert rig.disk.read(0).size == 512
    assert rig.destroy(5) == OK
    assert rig.adm(*command).code == OK
    rig.adm(CTX_DISCARD)
    rig.go(ACTIVE)


def test_a_vf_that_was_stopped(rig: PartsRig) -> None:
    """By device parts, without an object: the draft neither resumes, freezes nor reads it."""
    rig.stop()
    for opcode, data, room in (*OF_THE_DRAFT.values(), (CTX_MODE_SET, bytes([ACTIVE]), 0)):
        assert rig.adm(opcode, data, room).code == WRONG_STATE
    for opcode, data in ((CTX_WRITE, context()), (CTX_DISCARD, b"")):
        assert rig.adm(opcode, data).code == WRONG_STATE
    request = rig.read_request()
    with rig.silence():
        pass
    rig.resume()
    rig.finish(request)
    rig.go(STOP)
    rig.go(ACTIVE)


@pytest.mark.parametrize("mode", [STOP, FREEZE], ids=["stop", "freeze"])
def test_a_vf_that_the_draft_stopped(rig: PartsRig, mode: int) -> None:
    """Device parts neither resume nor stop it, nor make an object; then they do."""
    rig.go(mode)
    for data in (STOPPED, b"\0"):
        assert rig.adm(MODE_SET, data).code == WRONG_STATE
    assert rig.create(5, TO_GET) == WRONG_STATE
    assert rig.mode == mode
    request = rig.read_request()
    with rig.silence():
        pass
    rig.go(ACTIVE)
    rig.finish(request)
    assert rig.create(5, TO_GET) == OK
    rig.stop()


def test_a_context_that_was_begun(rig: PartsRig) -> None:
    """Read in part: no object and no stop until it is discarded, or read to its end."""
    for end in ("discard", "rest"):
        rig.read(40)
        assert rig.create(5, TO_GET) == WRONG_STATE
        assert rig.adm(MODE_SET, STOPPED).code == WRONG_STATE
        if end == "discard":
            assert rig.adm(CTX_DISCARD).code == OK
        else:
            rig.read_rest()
        assert rig.create(5, TO_GET) == OK
        assert rig.destroy(5) == OK


def test_each_vf_for_itself(rig: PartsRig) -> None:
    """One by parts, its neighbour by contexts, at the same time."""
    rig.stop()
    assert rig.adm(CTX_MODE_SET, bytes([FREEZE]), vf=2).code == OK
    assert rig.create(5, TO_GET) == OK
    assert rig.parts_get(id_=5).code == OK
    assert rig.adm(CTX_READ, room=4096, vf=2).code == OK
    assert rig.adm(MODE_SET, b"\0", vf=2).code == WRONG_STATE
    assert rig.adm(CTX_DISCARD, vf=2).code == OK
    assert rig.adm(CTX_MODE_SET, bytes([ACTIVE]), vf=2).code == OK
    rig.resume()


def test_a_function_reset_frees_a_vf(rig: PartsRig) -> None:
    """Stopped by parts and reset, it runs: the draft may have it. What the draft froze stays frozen."""
    rig.stop()
    rig.device.function.flr()
    rig.go(FREEZE)
    rig.device.function.flr()
    assert rig.mode == FREEZE
    assert rig.adm(MODE_SET, b"\0").code == WRONG_STATE
    rig.go(ACTIVE)
    rig.stop()


@pytest.mark.parametrize("rig", [False], indirect=True, ids=["split"])
def test_a_position_that_only_memory_tells(rig: PartsRig) -> None:
    """Standard parts leave it there, and with Bus Master off the VF cannot look: contexts do not tell it.

    One that is written tells it, of a packed ring too; without it a packed ring is refused.
    """
    rig.disk.write(0, b"\x44" * 512)
    rig.stop()
    for id_, operation in ((GET_ID, TO_GET), (SET_ID, TO_SET)):
        assert rig.create(id_, operation) == OK
    parts = rig.parts()
    request = rig.read_request(kick=False)
    rig.device.function.clear_command(BUS_MASTER)
    assert rig.set(without_ours(parts)) == OK
    rig.resume()
    for id_ in (GET_ID, SET_ID):
        assert rig.destroy(id_) == OK
    rig.go(FREEZE)
    assert rig.adm(CTX_READ, room=4096).code == WRONG_STATE
    features = int.from_bytes(find(parts, DRV_FEATURES).value, "little") | 1 << 34
    packed = field(0x11, features.to_bytes(16, "little"))
    assert rig.write(context(packed)) == WRONG_CONTENT
    assert rig.write(context(packed, *(ring(0x16, queue, 0x8000) for queue in (0, 1)))) == OK
    assert value(rig.context(), 0x16) == struct.pack("<4H", 0, 0x8000, 0x8000, 0)
    split = field(0x11, find(parts, DRV_FEATURES).value)
    assert rig.write(context(split, ring(0x15, 0, 1), ring(0x15, 1, 0))) == OK
    rig.go(ACTIVE)
    rig.device.function.set_command(BUS_MASTER)
    assert rig.finish(request) == b"\x44" * 512


def ring(kind: int, queue: int, position: int) -> bytes:
    """VQ_SPLIT_STATE or VQ_PACKED_STATE of a queue that has used all that it took."""
    return field(kind, struct.pack("<4H", queue, position, position, 0))


# A disk in memory.


def test_a_disk_in_memory_has_no_parts(ram: ServerProcess) -> None:
    """Nothing of it is read or set by parts, as what is on it would be lost, and the log says why."""
    with PartsRig(ram) as rig:
        rig.disk.write(0, b"\x77" * 512)
        mark = ram.mark()
        for stopped in (False, True):
            for kind in (SIZE, COUNT, LIST):
                answer = rig.metadata(kind)
                assert (answer.code, answer.used) == (WRONG_STATE, 8)
            for answer in (rig.parts_get(), rig.parts_get(SELECTED)):
                assert (answer.code, answer.used) == (WRONG_STATE, 8)
            assert rig.set([]) == WRONG_STATE
            if not stopped:
                rig.stop()
        assert "its disk is in memory" in ram.log[mark:]
        rig.resume()
        assert rig.disk.read(0).tobytes() == b"\x77" * 512


def test_a_disk_in_memory_can_be_stopped(ram: ServerProcess) -> None:
    """Objects and modes are as for others."""
    with PartsRig(ram) as rig:
        request = rig.read_request(kick=False)
        rig.stop()
        with rig.silence():
            rig.device.notify(0)
        rig.resume()
        assert isinstance(rig, Rig)
        rig.finish(request)
