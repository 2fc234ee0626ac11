"""Virtio 1.4's rules for drivers of the admin queue: what breaks one is noticed, and answered as ever.

`--check-driver` says that a rule is broken. Commands of this rig are no multiple of 8 bytes long, which is
such a rule too, and left out here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest

from tests.server_process import ServerProcess
from tests.wire.admin_rig import FIELD, MEMBER, OPCODE, SELF, SRIOV, administered, header
from tests.wire.draft_rig import FREEZE, OK, TIMEOUT, outstanding
from tests.wire.draft_rig import MODE_GET as CTX_MODE_GET
from tests.wire.draft_rig import MODE_SET as CTX_MODE_SET
from tests.wire.parts.rig import (
    ALL,
    COUNT,
    DESTROY,
    DEVICE_STATUS,
    DRIVER_CAP_SET,
    EBUSY,
    EEXIST,
    ENOMEM,
    ENOSPC,
    ENXIO,
    GET_ID,
    LIST,
    METADATA_GET,
    MODE_SET,
    MODIFY,
    PARTS_GET,
    PARTS_SET,
    QUERY,
    SELECTED,
    SET_ID,
    SIZE,
    STOPPED,
    TO_GET,
    TO_SET,
    WRONG_STATE,
    Part,
    PartsRig,
    build,
    created,
    file_server,
    headers,
    named,
)
from tests.wire.running import until
from vfu_client.owner.owner import DriverRuleError, OwnerDriver

UNPADDED = "P-DRV-07"
Broken = Callable[[], set[str]]

pytestmark = pytest.mark.usefixtures("said")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with file_server(tmp_path_factory.mktemp("driver"), "--check-driver") as started:
        yield started


@pytest.fixture
def rig(server: ServerProcess) -> Iterator[PartsRig]:
    with PartsRig(server) as made:
        yield made


@pytest.fixture
def broken(server: ServerProcess, rig: PartsRig) -> Broken:
    """Tells which rules for owner drivers were broken since it was asked last: the rig reads as it likes."""
    before = server.breaches()

    def told() -> set[str]:
        nonlocal before
        earlier, before = before, server.breaches()
        found = {rule for rule, count in before.items() if count > earlier[rule]}
        return {rule for rule in found if "DRV-" in rule} - {UNPADDED}

    return told


def limits(get: int, set_: int) -> bytes:
    """DRIVER_CAP_SET of VIRTIO_DEV_PARTS_CAP."""
    return struct.pack("<H6xBB", 0, get, set_)


@pytest.mark.spec(*(f"P-DRV-{number}" for number in range(12, 20)))
def test_a_good_driver_breaks_nothing(rig: PartsRig, broken: Broken) -> None:
    """Objects made, used and destroyed; parts read with room for them, and set in order while stopped."""
    for kind in (SIZE, COUNT, LIST):
        assert rig.metadata(kind).code == OK
    rig.stop()
    parts = rig.parts()
    assert rig.parts_get(SELECTED, headers(parts[::-1])).code == OK
    assert rig.adm(MODIFY, created(GET_ID, TO_GET)).code == OK
    assert rig.adm(QUERY, named(0, GET_ID), 8).code == OK
    assert rig.set(parts) == OK
    assert rig.set([Part(0x106, flags=1), *parts, Part(0x100, b"\1" * 8, flags=1)][:-1]) == OK
    rig.resume()
    assert rig.device.config_bytes()
    for id_ in (GET_ID, SET_ID):
        assert rig.destroy(id_) == OK
    assert rig.own(DRIVER_CAP_SET, limits(1, 1)) == OK
    assert rig.create(0, TO_SET) == OK
    assert broken() == set()


@pytest.mark.spec("P-DRV-12")
def test_objects_ahead_of_a_capability(rig: PartsRig, broken: Broken) -> None:
    for id_ in (GET_ID, SET_ID):
        assert rig.destroy(id_) == OK
    assert rig.own(DRIVER_CAP_SET, limits(0, 0)) == OK
    assert broken() == set()
    assert rig.create(0, TO_GET)[0] == ENOSPC
    assert broken() == {"P-DRV-12"}


@pytest.mark.spec("P-DRV-13")
def test_a_capability_that_has_objects(rig: PartsRig, broken: Broken) -> None:
    """Whether it would take them their room or not."""
    assert rig.own(DRIVER_CAP_SET, limits(9, 9))[0] == EBUSY
    assert broken() == {"P-DRV-13"}
    assert rig.own(DRIVER_CAP_SET, limits(255, 255)) == OK
    assert broken() == {"P-DRV-13"}
    assert rig.own(DRIVER_CAP_SET, struct.pack("<H6xBB", 1, 0, 0))[0] == ENXIO
    assert broken() == set()


@pytest.mark.spec("P-DRV-14")
def test_ids_that_are_taken_or_too_high(rig: PartsRig, broken: Broken) -> None:
    for vf in (1, 2):
        assert rig.create(GET_ID, TO_GET, vf=vf)[0] == EEXIST
        assert broken() == {"P-DRV-14"}
    for id_ in (255, 0xFFFF_FFFF):
        assert rig.create(id_, TO_SET)[0] == ENOSPC
        assert broken() == {"P-DRV-14"}
    assert rig.create(7, 2)[0] == 22
    assert broken() == set()


@pytest.mark.spec("P-DRV-15")
@pytest.mark.parametrize("opcode", [QUERY, MODIFY, DESTROY, METADATA_GET, PARTS_GET, PARTS_SET])
def test_an_object_that_is_not_there(rig: PartsRig, broken: Broken, opcode: int) -> None:
    """Destroyed, or another member's."""
    rig.stop()
    assert rig.create(9, TO_GET) == OK
    assert rig.destroy(9) == OK
    assert broken() == set()
    assert rig.adm(opcode, created(9, TO_GET), 1 << 12).code[0] == ENXIO
    assert broken() == {"P-DRV-15"}
    if opcode != PARTS_SET:
        assert rig.adm(opcode, created(GET_ID, TO_GET), 1 << 12, vf=2).code[0] == ENXIO
        assert broken() == {"P-DRV-15"}


@pytest.mark.spec("P-DRV-16")
def test_parts_for_a_member_that_runs(rig: PartsRig, broken: Broken) -> None:
    parts = rig.parts()
    for data in (build(parts), build(parts)[:30], b""):
        assert rig.set(data) == WRONG_STATE
        assert broken() == {"P-DRV-16"}
    rig.stop()
    assert rig.set(parts) == OK
    assert broken() == set()


@pytest.mark.spec("P-DRV-17")
def test_parts_in_another_order(rig: PartsRig, broken: Broken) -> None:
    """Any two of the standard's; that of others, and of the selectors of one type, is free."""
    rig.stop()
    parts = rig.parts()
    assert rig.set(parts[::-1]) == OK
    assert broken() == {"P-DRV-17"}
    assert rig.set([parts[1], parts[0], *parts[2:]]) == OK
    assert broken() == {"P-DRV-17"}
    free = sorted(parts, key=lambda part: (part.kind, -part.selector[0]))
    assert rig.set([Part(0x2FF, flags=1), *free[-2:], *free[:-2]]) == OK
    assert broken() == set()
    assert rig.set(build(parts[::-1]) + b"\xff")[0] == 22
    assert broken() == set()


@pytest.mark.spec("P-DRV-18")
def test_configuration_of_a_stopped_member(rig: PartsRig, broken: Broken) -> None:
    """Reads are true, writes are taken as ever. Of one that the draft stopped it is the draft's rule."""
    assert rig.device.config_read(0, 4) == 64
    assert broken() == set()
    rig.stop()
    assert rig.device.status == 0x0F
    assert broken() == set()
    assert rig.device.config_read(0, 4) == 64
    assert broken() == {"P-DRV-18"}
    rig.device.config_write(0, 4, 99)
    assert rig.device.config_read(0, 4) == 64
    assert broken() == {"P-DRV-18"}
    rig.resume()
    for id_ in (GET_ID, SET_ID):
        assert rig.destroy(id_) == OK
    assert rig.adm(CTX_MODE_SET, bytes([FREEZE])).code == OK
    assert rig.device.config_read(0, 4) == 64
    assert broken() == {"DRV-05"}
    rig.go(0)


@pytest.mark.spec("P-DRV-19")
def test_too_little_room(rig: PartsRig, broken: Broken) -> None:
    """A byte less than what is asked for, of metadata and of parts; cut or refused as ever."""
    for kind in (SIZE, COUNT, LIST):
        whole = rig.metadata(kind).used - 8
        assert rig.metadata(kind, room=whole).code == OK
        assert broken() == set()
        assert rig.metadata(kind, room=whole - 1).code[0] == (ENOMEM if kind == LIST else 0)
        assert broken() == {"P-DRV-19"}
    one = headers([Part(DEVICE_STATUS)])
    for kind, wanted in ((ALL, b""), (SELECTED, one)):
        whole = len(rig.parts_get(kind, wanted).result)
        assert rig.parts_get(kind, wanted, room=whole).code == OK
        assert broken() == set()
        assert rig.parts_get(kind, wanted, room=whole - 1).code == OK
        assert broken() == {"P-DRV-19"}
    assert rig.parts_get(3, room=1).code[0] == 22
    assert broken() == set()


# Frame and lists.


@pytest.mark.spec("P-DRV-01", "P-DRV-03", "P-DRV-06", "P-DRV-07", "P-DRV-08", "P-DEV-22")
def test_frames_and_lists(server: ServerProcess) -> None:
    """Each is answered as the queue answers it; what was broken is told."""

    def told(before: dict[str, int]) -> set[str]:
        return {rule for rule, count in server.breaches().items() if count > before[rule]}

    with administered(server) as admin:
        before = server.breaches()
        assert admin.status(CTX_MODE_GET, member=1) == OPCODE
        assert told(before) == {"P-DRV-01"}
        before = server.breaches()
        assert admin.use(admin.listed(SRIOV) | 1 << 0x12) == FIELD
        assert told(before) == {"P-DRV-03"}
        admin.open()
        before = server.breaches()
        assert admin.status(CTX_MODE_GET, member=9) == MEMBER
        assert told(before) == {"P-DRV-06"}
        before = server.breaches()
        assert admin.status(MODE_SET, member=1, data=b"\0") == OK
        assert told(before) == {"P-DRV-07"}
        before = server.breaches()
        assert admin.raw([header(0, SELF)[:16]], [16])[0] == 16
        assert told(before) == {"P-DRV-08"}
        before = server.breaches()
        assert admin.raw([header(0, SELF)], []) == (0, b"")
        assert told(before) == {"P-DEV-22"}
        before = server.breaches()
        assert admin.raw([], [16])[0] == 16
        assert told(before) == {"P-DEV-22", "P-DRV-08"}


# Our own driver.


@pytest.mark.spec("P-DRV-01", "P-DRV-03", "P-DRV-06", "P-DRV-07", "P-DRV-08")
def test_the_owner_driver_breaks_nothing(server: ServerProcess) -> None:
    """It asks for the lists first, uses what it was told of, and pads its commands."""
    before = server.breaches()
    with OwnerDriver.open(server.socket("pf"), timeout=TIMEOUT) as owner:
        assert owner.commands <= owner.listed
        owner.mode_set(1, FREEZE)
        owner.context_write(1, list(owner.context_read(1)))
        owner.mode_set(1, 0)
        assert owner.mode_get(2) == 0
    assert server.breaches() == before


@pytest.mark.spec("P-DRV-02", "P-DRV-06")
def test_the_owner_driver_waits_for_its_commands(tmp_path_factory: pytest.TempPathFactory) -> None:
    """It neither sends LIST_USE nor changes VF Enable while a command is on its way."""
    folder = tmp_path_factory.mktemp("slow")
    with (
        file_server(folder, "--io-delay-ms", "400", "--check-driver") as slow,
        PartsRig(slow) as rig,
    ):
        rig.owner.obey = True
        request = rig.read_request()
        until(lambda: outstanding(slow, "vf1") == 1, "fetched")
        pending = rig.send(MODE_SET, STOPPED)
        for change in (rig.owner.disable_vfs, lambda: rig.owner.enable_vfs(1)):
            with pytest.raises(DriverRuleError, match="on their way"):
                change()
        assert rig.answer(pending).code == OK
        rig.finish(request)
        assert slow.breaches()["P-DRV-02"] == slow.breaches()["P-DRV-06"] == 0
