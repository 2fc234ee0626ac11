"""Resource objects: their ids, their life, and which commands they allow."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.server_process import ServerProcess
from tests.wire.admin_rig import FIELD, OK, OPCODE, SELF, SRIOV, Admin, administered
from tests.wire.parts.rig import (
    ALL_COMMANDS,
    CREATE,
    DESTROY,
    DRIVER_CAP_SET,
    EEXIST,
    ENOSPC,
    ENXIO,
    METADATA_GET,
    MODE_SET,
    MODIFY,
    PARTS_GET,
    PARTS_SET,
    QUERY,
    TO_GET,
    TO_SET,
    created,
    file_server,
    named,
)
from vfu_client.vfio.sriov import SrIov


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with file_server(tmp_path_factory.mktemp("objects")) as started:
        yield started


@pytest.fixture
def owner(server: ServerProcess) -> Iterator[Owner]:
    """A PF whose driver may have 8 objects to get, and 4 to set."""
    with administered(server) as admin:
        yield Owner(admin)


class Owner:
    """A driver of resource objects: the status of each command."""

    def __init__(self, admin: Admin, get: int = 8, set_: int = 4) -> None:
        self.admin = admin
        self.get, self.set = get, set_
        self.begin()

    def begin(self) -> None:
        """The lists and the capability."""
        self.admin.open()
        assert (
            self.admin.status(DRIVER_CAP_SET, SELF, data=struct.pack("<H6xBB", 0, self.get, self.set)) == OK
        )

    def create(self, id_: int, operation: int = TO_GET, vf: int = 1) -> int:
        return self.admin.status(CREATE, member=vf, data=created(id_, operation))[0]

    def modify(self, id_: int, operation: int = TO_GET, vf: int = 1) -> int:
        return self.admin.status(MODIFY, member=vf, data=created(id_, operation))[0]

    def destroy(self, id_: int, vf: int = 1) -> int:
        return self.admin.status(DESTROY, member=vf, data=named(0, id_))[0]

    def query(self, id_: int, vf: int = 1) -> int | None:
        """The operation that an object is for; None where there is no such object."""
        reply = self.admin.reply(QUERY, member=vf, data=named(0, id_) + bytes(8))
        if reply.status == ENXIO:
            return None
        assert (reply.status, reply.qualifier, reply.used_length) == (0, 0, 16)
        assert reply.result[1:] == bytes(7)
        return reply.result[0]

    def use(self, opcode: int, id_: int, vf: int = 1, data: bytes = bytes(8)) -> tuple[int, int]:
        """METADATA_GET, PARTS_GET or PARTS_SET by an object."""
        return self.admin.status(opcode, member=vf, data=named(0, id_) + data)


@pytest.mark.spec("P-DEV-41")
@pytest.mark.parametrize(
    "options",
    [("--device", "blk"), ("--device", "blk", "--strict"), ("--device", "net", "--context-opcodes", "off")],
    ids="".join,
)
def test_all_commands_of_device_parts(serve: Callable[..., ServerProcess], options: tuple[str, ...]) -> None:
    """0x0a to 0x11 of the SR-IOV group, all eight, and none of the Self group."""
    with administered(serve("--vfs", "1", *options)) as admin:
        bits = sum(1 << opcode for opcode in ALL_COMMANDS)
        assert bits == 0x3FC00
        assert admin.listed(SRIOV) & bits == bits
        assert admin.listed(SELF) & bits == 0
        admin.open()
        for opcode in ALL_COMMANDS:
            assert admin.status(opcode, SELF) == OPCODE
            assert admin.status(opcode, member=1) != OPCODE


@pytest.mark.spec("P-DEV-31", "P-DEV-02", "P-DEV-05")
def test_an_id_that_is_in_use(owner: Owner) -> None:
    """EEXIST, whatever it is for, and for each member: there is one pool of ids. The object stays."""
    assert owner.create(2, TO_GET) == 0
    for operation in (TO_GET, TO_SET):
        for vf in (1, 2):
            assert owner.create(2, operation, vf) == EEXIST
    assert owner.query(2) == TO_GET
    assert owner.query(2, vf=2) is None


@pytest.mark.spec("P-DEV-32")
def test_an_id_that_is_not_in_use(owner: Owner) -> None:
    """ENXIO: never created, of another member, destroyed, or beyond the limit."""
    assert owner.create(1) == 0
    assert owner.create(3) == 0
    assert owner.destroy(3) == 0
    for id_, vf in ((0, 1), (1, 2), (3, 1), (7, 1), (8, 1), (255, 1), (0xFFFF_FFFF, 1)):
        assert owner.modify(id_, vf=vf) == ENXIO
        assert owner.query(id_, vf=vf) is None
        assert owner.destroy(id_, vf=vf) == ENXIO
        for opcode in (METADATA_GET, PARTS_GET, PARTS_SET):
            assert owner.use(opcode, id_, vf)[0] == ENXIO
    assert owner.query(1) == TO_GET


@pytest.mark.spec("P-DEV-33", "P-DEV-30")
def test_ids_beyond_the_limit(owner: Owner) -> None:
    """ENOSPC for what is not below the operation's own limit; nothing came of it."""
    for id_ in (8, 9, 254, 255, 256, 1 << 16, 0xFFFF_FFFF):
        assert owner.create(id_, TO_GET) == ENOSPC
    for id_ in (4, 7, 8, 255):
        assert owner.create(id_, TO_SET) == ENOSPC
        assert owner.query(id_) is None
    assert owner.create(7, TO_GET) == 0
    assert owner.create(3, TO_SET) == 0


@pytest.mark.spec("P-DEV-35")
def test_a_destroyed_id_is_free(owner: Owner) -> None:
    """Again and again, for the other operation and another member too, without a reset."""
    for turn in range(6):
        vf, operation = 1 + turn % 2, turn // 2 % 2
        assert owner.create(1, operation, vf) == 0
        assert owner.query(1, vf) == operation
        assert owner.destroy(1, vf) == 0
        assert owner.query(1, vf) is None


@pytest.mark.spec("P-DEV-36")
@pytest.mark.parametrize("order", [range(8), range(7, -1, -1), (5, 0, 7, 2, 6, 1, 4, 3)], ids=str)
def test_ids_in_any_order(owner: Owner, order: range | tuple[int, ...]) -> None:
    for id_ in order:
        assert owner.create(id_, vf=1 + id_ % 2) == 0
    assert [owner.query(id_, vf=1 + id_ % 2) for id_ in range(8)] == [TO_GET] * 8


@pytest.mark.spec("P-DEV-37")
def test_as_many_as_the_capability_says(server: ServerProcess) -> None:
    """255 at the same time, of both members and both operations; there is no lower limit within."""
    with administered(server) as admin:
        owner = Owner(admin, 255, 255)
        for id_ in range(255):
            assert owner.create(id_, id_ % 2, 1 + id_ // 2 % 2) == 0
        assert owner.create(255) == ENOSPC
        assert [owner.query(id_, 1 + id_ // 2 % 2) for id_ in range(255)] == [id_ % 2 for id_ in range(255)]


@pytest.mark.spec("P-DEV-38", "P-DEV-39")
def test_modify(owner: Owner) -> None:
    """An object is for the other operation then, if that has room; QUERY tells the last that was taken."""
    assert owner.create(1, TO_GET) == 0
    assert owner.create(6, TO_GET) == 0
    for operation in (TO_SET, TO_SET, TO_GET, TO_SET):
        assert owner.modify(1, operation) == 0
        assert owner.query(1) == operation
        # What it is for is what it can do; the member is not stopped.
        assert owner.use(METADATA_GET, 1) == (FIELD if operation == TO_SET else OK)
    assert owner.modify(6, TO_SET) == ENOSPC
    for operation in (2, 3, 255):
        assert owner.admin.status(MODIFY, member=1, data=created(1, operation)) == FIELD
    for flags in (1, 1 << 63):
        assert owner.admin.status(MODIFY, member=1, data=created(1, TO_GET, flags=flags)) == FIELD
    assert (owner.query(1), owner.query(6)) == (TO_SET, TO_GET)


@pytest.mark.spec("P-DEV-39")
@pytest.mark.parametrize("operation", [TO_GET, TO_SET])
def test_query_tells_what_create_said(owner: Owner, operation: int) -> None:
    """QUERY is 0x0b, as the table of opcodes has it."""
    assert QUERY == 0x0B
    assert owner.create(2, operation) == 0
    for _ in range(2):
        assert owner.query(2) == operation


@pytest.mark.spec("P-DEV-04", "P-DEV-05")
def test_objects_that_there_cannot_be(owner: Owner) -> None:
    """Another operation, flags, another type of object: refused, and the id stays free."""
    for data in (created(0, 2), created(0, 255), created(0, 0, flags=1), created(0, 1, flags=1 << 40)):
        assert owner.admin.status(CREATE, member=1, data=data) == FIELD
    for kind in (1, 0x1FF, 0x200, 0x204, 0xFFFF):
        assert owner.admin.status(CREATE, member=1, data=created(0, 0, kind=kind))[0] == ENXIO
    assert owner.query(0) is None
    assert owner.create(0) == 0


@pytest.mark.spec("P-DEV-16")
def test_data_that_is_missing_is_zero(owner: Owner) -> None:
    """A CREATE of nothing makes object 0, which is to get."""
    assert owner.admin.status(CREATE, member=1) == OK
    assert owner.query(0) == TO_GET
    assert owner.admin.status(DESTROY, member=1) == OK
    assert owner.query(0) is None


@pytest.mark.spec("P-DEV-40")
@pytest.mark.parametrize("how", ["status", "client"])
def test_a_reset_of_the_owner_destroys_all(server: ServerProcess, owner: Owner, how: str) -> None:
    """After a device reset, and for the client that comes next, there is none, and each id is free."""
    for id_ in range(4):
        assert owner.create(id_, TO_SET, vf=1 + id_ % 2) == 0
    if how == "status":
        owner.admin.reset()
        owner.begin()
        none_left(owner)
        return
    owner.admin.device.close()
    with administered(server) as admin:
        none_left(Owner(admin))


def none_left(owner: Owner) -> None:
    for id_ in range(4):
        assert (owner.query(id_), owner.query(id_, vf=2)) == (None, None)
        assert owner.create(id_) == 0


def test_objects_go_with_their_member(serve: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """VF Enable cleared: the objects are gone, and their ids are free for the VFs that come."""
    server = serve("--vfs", "2", "--disk", f"{tmp_path}/disk,size=4k")
    with administered(server) as admin:
        owner = Owner(admin)
        for id_ in range(4):
            assert owner.create(id_, TO_SET, vf=1 + id_ % 2) == 0
        sriov = SrIov(admin.device.function)
        sriov.disable()
        sriov.enable(1)
        assert [owner.query(id_) for id_ in range(4)] == [None] * 4
        assert [owner.create(id_) for id_ in range(4)] == [0] * 4


def test_an_object_stays_whatever_its_member_does(owner: Owner) -> None:
    """Stopped, resumed: it is there, and can be destroyed in either state."""
    assert owner.create(0) == 0
    assert owner.admin.status(MODE_SET, member=1, data=b"\1") == OK
    assert owner.query(0) == TO_GET
    assert owner.destroy(0) == 0
    assert owner.create(0, TO_SET) == 0
    assert owner.admin.status(MODE_SET, member=1, data=b"\0") == OK
    assert owner.query(0) == TO_SET
    assert owner.destroy(0) == 0
