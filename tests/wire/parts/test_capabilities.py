"""Capabilities: which there are, what a driver may set, and what becomes of it."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator

import pytest

from tests.server_process import ServerProcess
from tests.wire.admin_rig import FIELD, OK, OPCODE, SELF, SRIOV, Admin, administered, header
from tests.wire.parts.rig import (
    CAP_ID_LIST_QUERY,
    CREATE,
    DESTROY,
    DEVICE_CAP_GET,
    DRIVER_CAP_SET,
    EBUSY,
    ENOSPC,
    ENXIO,
    TO_GET,
    TO_SET,
    created,
    named,
)
from tests.wire.running import running

CAPABILITY_COMMANDS = (CAP_ID_LIST_QUERY, DEVICE_CAP_GET, DRIVER_CAP_SET)
CAPABILITY_BITS = 0b111 << 7
LINUX_USES = 0x3E780
CAP = "<H6x"

EITHER = pytest.mark.parametrize("server", ["shared", "strict"])


@pytest.fixture(scope="module")
def strict() -> Iterator[ServerProcess]:
    """A server that goes by the letter."""
    with running() as start:
        yield start("--vfs", "1", "--strict")


@pytest.fixture
def admin(shared: ServerProcess) -> Iterator[Admin]:
    """A PF whose driver uses all commands and has set no capability."""
    with administered(shared) as found:
        found.open()
        yield found


def limits(get: int, set_: int) -> bytes:
    """DRIVER_CAP_SET of VIRTIO_DEV_PARTS_CAP."""
    return struct.pack("<H6xBB", 0, get, set_)


def create(admin: Admin, id_: int, operation: int, member: int = 1) -> int:
    """The status of a CREATE."""
    return admin.status(CREATE, member=member, data=created(id_, operation))[0]


@pytest.mark.spec("P-DEV-23")
@EITHER
def test_all_three_commands(request: pytest.FixtureRequest, server: str) -> None:
    """Self lists all three, and each works there. For Linux they stand in the SR-IOV group's list too."""
    with administered(request.getfixturevalue(server)) as admin:
        assert admin.listed(SELF) & CAPABILITY_BITS == CAPABILITY_BITS
        assert admin.listed(SRIOV) & CAPABILITY_BITS == (0 if server == "strict" else CAPABILITY_BITS)
        admin.open()
        assert [
            admin.status(opcode, SELF, data=data)
            for opcode, data in zip(CAPABILITY_COMMANDS, (b"", bytes(8), limits(1, 1)), strict=True)
        ] == [OK] * 3


@pytest.mark.spec("P-DEV-23", "P-DEV-02", "P-DEV-03")
def test_the_list_of_capabilities(admin: Admin) -> None:
    """VIRTIO_DEV_PARTS_CAP, bit 0, and nothing else."""
    reply = admin.reply(CAP_ID_LIST_QUERY, SELF)
    assert (reply.status, reply.qualifier, reply.used_length) == (0, 0, 16)
    assert reply.result == struct.pack("<Q", 1)


@pytest.mark.spec("P-DEV-23", "P-DEV-17", "P-DEV-20")
def test_the_device_capability(admin: Admin) -> None:
    """A byte for each limit: 255 objects to get, 255 to set; cut to the buffer, else filled to 8 bytes."""
    for room, used in ((1, 9), (2, 10), (8, 16), (64, 16)):
        command = header(DEVICE_CAP_GET, SELF) + struct.pack(CAP, 0)
        length, answer = admin.raw([command], [8, room])
        assert length == used
        assert answer[:8] == bytes(8)
        assert answer[8:used] == b"\xff\xff".ljust(8, b"\0")[: used - 8]


@pytest.mark.spec("P-DEV-24")
def test_every_limit_up_to_the_devices(admin: Admin) -> None:
    """Any pair, any order, over and over: what counts is the last one."""
    pairs = list(itertools.product((0, 1, 2, 100, 254, 255), repeat=2))
    for get, set_ in (*pairs, *reversed(pairs)):
        assert admin.status(DRIVER_CAP_SET, SELF, data=limits(get, set_)) == OK
        for operation, limit in ((TO_GET, get), (TO_SET, set_)):
            assert create(admin, limit, operation) == ENOSPC
            if limit:
                assert create(admin, limit - 1, operation) == 0
                assert admin.status(DESTROY, member=1, data=named(0, limit - 1)) == OK


@pytest.mark.spec("P-DEV-26")
def test_capabilities_are_of_the_self_group(strict: ServerProcess) -> None:
    """By the letter the commands are unknown to the SR-IOV group: not listed, not usable."""
    with administered(strict) as admin:
        assert admin.use(3 | CAPABILITY_BITS) == FIELD
        admin.open()
        for opcode in CAPABILITY_COMMANDS:
            for member in (0, 1):
                assert admin.status(opcode, SRIOV, member, limits(1, 1)) == OPCODE
        assert create(admin, 0, TO_GET) == ENOSPC


@pytest.mark.spec("P-DEV-08")
@EITHER
def test_linux_uses_them_by_the_sriov_list(request: pytest.FixtureRequest, server: str) -> None:
    """Only the SR-IOV list was used, without bits 0 and 1: by default that opens 0x07-0x09 of Self too."""
    with administered(request.getfixturevalue(server)) as admin:
        offered = admin.listed(SRIOV)
        for opcode in CAPABILITY_COMMANDS:
            assert admin.status(opcode, SELF, data=limits(1, 1)) == OPCODE
        assert admin.use(offered & LINUX_USES) == OK
        for opcode in CAPABILITY_COMMANDS:
            assert admin.status(opcode, SELF, data=limits(1, 1)) == (OPCODE if server == "strict" else OK)


@pytest.mark.spec("P-DEV-27", "P-DEV-05")
def test_a_capability_is_not_taken_from_objects(admin: Admin) -> None:
    """EBUSY while an object stands that the new limit would not allow; nothing changes; then it is free."""
    assert admin.status(DRIVER_CAP_SET, SELF, data=limits(4, 4)) == OK
    assert create(admin, 3, TO_GET) == 0
    assert create(admin, 1, TO_SET) == 0
    for get, set_ in ((0, 0), (0, 4), (3, 4), (4, 0), (4, 1)):
        assert admin.status(DRIVER_CAP_SET, SELF, data=limits(get, set_))[0] == EBUSY
    assert create(admin, 2, TO_SET) == 0
    assert create(admin, 4, TO_SET) == ENOSPC
    for id_ in (1, 2, 3):
        assert admin.status(DESTROY, member=1, data=named(0, id_)) == OK
    assert admin.status(DRIVER_CAP_SET, SELF, data=limits(0, 0)) == OK
    assert create(admin, 0, TO_GET) == ENOSPC


@pytest.mark.spec("P-DEV-28")
@pytest.mark.parametrize("number", [1, 63, 0x7FF, 0x800, 0x804, 0x1000, 0xFFFF])
def test_capabilities_that_there_are_not(admin: Admin, number: int) -> None:
    """ENXIO for what is not on the list; those of network devices are not either."""
    assert admin.status(DEVICE_CAP_GET, SELF, data=struct.pack(CAP, number))[0] == ENXIO
    assert admin.status(DRIVER_CAP_SET, SELF, data=struct.pack("<H6xBB", number, 1, 1))[0] == ENXIO
    assert create(admin, 0, TO_GET) == ENOSPC


@pytest.mark.spec("P-DEV-30", "P-DEV-33")
def test_without_a_capability_there_is_no_room(admin: Admin) -> None:
    """Limits that were never set are 0."""
    for operation in (TO_GET, TO_SET):
        assert create(admin, 0, operation) == ENOSPC


@pytest.mark.spec("P-DEV-29", "P-DEV-30")
@pytest.mark.parametrize("how", ["status", "client"])
def test_a_reset_forgets_the_capability(admin: Admin, shared: ServerProcess, how: str) -> None:
    """The driver's limits are 0 again: after a device reset, and for the client that comes next."""
    assert admin.status(DRIVER_CAP_SET, SELF, data=limits(9, 9)) == OK
    assert create(admin, 0, TO_GET) == 0
    if how == "status":
        admin.reset()
        admin.open()
        assert create(admin, 0, TO_GET) == ENOSPC
        return
    admin.device.close()
    with administered(shared) as another:
        another.open()
        assert create(another, 0, TO_GET) == ENOSPC
