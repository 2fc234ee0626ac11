"""The admin queue's frame, groups and lists over the wire (P-DEV-01 to P-DEV-22)."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.server_process import ServerProcess
from tests.wire.admin_rig import (
    ADMIN_VQ,
    COMMAND,
    FIELD,
    GROUP,
    MEMBER,
    OK,
    OPCODE,
    QUERY,
    SELF,
    SR_IOV,
    SRIOV,
    USE,
    Admin,
    administered,
    header,
)
from tests.wire.driving import INDIRECT_DESC, NEXT, VERSION_1, WRITE, driven
from vfu_client.owner.admin import AdminQueue
from vfu_client.vfio.sriov import SrIov
from vfu_client.virtio.function import VirtioPci
from vfu_client.virtio.packed import PackedQueue
from vfu_client.virtio.split import SplitQueue

RING_PACKED, IN_ORDER = 34, 35
MODE_GET, MODE_SET = 0x40, 0x41
CONTEXT = range(0x40, 0x47)
MOST = (1 << 64) - 1


@pytest.fixture(params=[(), (RING_PACKED, IN_ORDER)], ids=["split", "packed"])
def admin(shared: ServerProcess, request: pytest.FixtureRequest) -> Iterator[Admin]:
    with administered(shared, *request.param) as found:
        yield found


@pytest.mark.spec("P-DEV-01", "P-DEV-04", "P-DEV-15")
@pytest.mark.parametrize(
    ("opcode", "group", "member", "answer"),
    [
        # A bad group comes before a bad opcode and a bad member ...
        *((opcode, 2, member, GROUP) for opcode in (QUERY, USE, MODE_GET, 0x12) for member in (0, 1, 99)),
        (MODE_GET, 0x7FFF, 1, GROUP),
        (QUERY, 0xFFFF, 0, GROUP),
        # ... a bad opcode before a bad member ...
        *(
            (opcode, SRIOV, member, OPCODE)
            for opcode in (0x02, 0x06, 0x12, 0x7FFF, 0xFFFF)
            for member in (1, 99)
        ),
        *((opcode, SELF, 0, OPCODE) for opcode in (0x02, 0x06, 0x12, MODE_GET, MODE_SET, 0xFFFF)),
        # ... and the member last; before the data.
        *((opcode, SRIOV, member, MEMBER) for opcode in CONTEXT for member in (0, 4, 1 << 16 | 1, MOST)),
        # The lists are about no member (LIST_* are exempt from the member check).
        *((QUERY, group, member, OK) for group in (SELF, SRIOV) for member in (0, 1, 99, MOST)),
        *((MODE_GET, SRIOV, member, OK) for member in (1, 2, 3)),
    ],
)
def test_order_of_checks(admin: Admin, opcode: int, group: int, member: int, answer: tuple[int, int]) -> None:
    """Group, then opcode, then member; the first bad one answers, and nothing else happens."""
    assert admin.use(admin.listed(SRIOV)) == OK
    assert admin.status(opcode, group, member) == answer
    assert admin.status(MODE_GET, SRIOV, 1) == OK


@pytest.mark.spec("P-DEV-08", "P-DEV-10")
def test_after_reset_only_the_lists(admin: Admin) -> None:
    """Per group: LIST_QUERY and LIST_USE, nothing else until a LIST_USE; again so after each reset."""
    for _ in range(2):
        for opcode in CONTEXT:
            assert admin.status(opcode, member=1) == OPCODE
        assert admin.listed(SRIOV) >> 0x40 & 0x7F == 0x7F
        assert admin.listed(SELF) & 3 == 3
        assert admin.use(admin.listed(SRIOV)) == OK
        assert admin.status(MODE_GET, member=1) == OK
        admin.reset()


@pytest.mark.spec("P-DEV-09", "P-DEV-12", "P-DEV-13")
def test_list_use(admin: Admin) -> None:
    """The legal set is exactly the last good list; a bad list changes nothing; the answer does not shrink."""
    offered = admin.listed(SRIOV)
    assert admin.use(3 | 1 << MODE_GET) == OK
    assert admin.status(MODE_GET, member=1) == OK
    assert admin.status(MODE_SET, member=1) == OPCODE
    for bad in (offered | 1 << 0x12, 1 << 2 | 3, 1 << 127):
        assert admin.use(bad) == FIELD
        assert admin.status(MODE_GET, member=1) == OK
    assert admin.listed(SRIOV) == offered
    assert admin.use(3) == OK
    assert admin.status(MODE_GET, member=1) == OPCODE
    assert admin.use(offered) == OK
    assert admin.status(MODE_SET, member=1) == OK
    admin.reset()
    assert admin.use(offered) == OK


@pytest.mark.spec("P-DRV-04", "P-DEV-09")
def test_a_list_may_close_the_lists(admin: Admin) -> None:
    """Bits 0 and 1 clear: both are refused from then on in that group; a reset opens them."""
    assert admin.use(1 << MODE_GET) == OK
    assert admin.status(QUERY) == OPCODE
    assert admin.status(USE, data=bytes([3])) == OPCODE
    assert admin.status(MODE_GET, member=1) == OK
    assert admin.status(QUERY, SELF) == OK
    admin.reset()
    assert admin.status(QUERY) == OK


@pytest.mark.spec("P-DEV-63")
def test_the_legacy_interface_is_not_offered(admin: Admin) -> None:
    """None of 0x02 to 0x06, as a server without it has none of their structures."""
    assert admin.listed(SRIOV) & 0x7C == admin.listed(SELF) & 0x7C == 0


@pytest.mark.spec("P-DEV-07")
def test_groups_are_independent(admin: Admin) -> None:
    assert admin.use(3, SELF) == OK
    assert admin.status(MODE_GET, member=1) == OPCODE
    assert admin.use(admin.listed(SRIOV)) == OK
    assert admin.use(1, SELF) == OK
    assert admin.status(USE, SELF, data=bytes([3])) == OPCODE
    assert admin.status(MODE_GET, member=1) == OK


@pytest.mark.spec("P-DEV-16", "P-DEV-18")
def test_readable_parts_of_any_length(admin: Admin) -> None:
    """What is missing is zero, what is too much is ignored."""
    assert admin.use(admin.listed(SRIOV)) == OK
    for length in (1, 2, 3, 4, 8, 16, 20, 23):
        used, answer = admin.raw([header(QUERY, SELF)[:length]], [16])
        assert (used, answer[:8]) == (16, bytes(8))
    # The member id's upper bytes are missing, so they are zero.
    assert admin.raw([header(MODE_GET, SRIOV, 1)[:17]], [16])[1][:8] == bytes(8)
    used, answer = admin.raw([header(MODE_GET, SRIOV, 1), b"\xff" * 100], [16])
    assert (used, answer[:8]) == (16, bytes(8))
    # MODE_SET without data is mode 0.
    assert admin.raw([header(MODE_SET, SRIOV, 1)], [8]) == (8, bytes(8))
    # LIST_USE of a longer array than any opcode needs: zeros are no commands.
    assert admin.status(USE, data=bytes([3]).ljust(1 << 14, b"\0")) == OK


@pytest.mark.spec("P-DEV-17", "P-DEV-18", "P-DEV-19", "P-DEV-20", "P-DEV-03")
def test_writable_parts_of_any_length(admin: Admin) -> None:
    """Filled up to the shorter of structure and buffer, in multiples of 8; the rest is left alone."""
    _, whole = admin.raw([header(QUERY)], [64])
    for length in (1, 2, 4, 7, 8, 12, 16, 23, 24, 25, 64):
        used, answer = admin.raw([header(QUERY)], [length])
        assert used == min(length, 24)  # status, and two words of list
        assert answer == whole[:used].ljust(length, b"\xee")
    used, answer = admin.raw([header(0x12)], [64])
    assert used == 8
    assert struct.unpack_from("<HH4s", answer) == (22, 2, bytes(4))
    assert answer[8:] == b"\xee" * 56


@pytest.mark.spec("Message Framing")
def test_any_framing(admin: Admin) -> None:
    """The header byte by byte, header and data in one, the answer byte by byte."""
    assert admin.use(admin.listed(SRIOV)) == OK
    command = header(MODE_SET, SRIOV, 1) + bytes(8)
    assert admin.raw([bytes([byte]) for byte in command], [1] * 8) == (8, bytes(8))
    assert admin.raw([command], [3, 5]) == (8, bytes(8))
    assert admin.raw([command[:5], command[5:30], command[30:]], [8, 100])[0] == 8
    command = header(MODE_GET, SRIOV, 2)
    assert admin.raw([bytes([byte]) for byte in command], [1] * 16) == (16, bytes(16))


@pytest.mark.spec("P-DEV-21")
def test_commands_in_order(admin: Admin) -> None:
    """Answered in the order in which they were made available, over and over."""
    assert admin.use(admin.listed(SRIOV)) == OK
    for _ in range(4):
        commands = [admin.queue.submit(MODE_GET, group=SRIOV, member=1 + n % 3, result=8) for n in range(9)]
        last = commands[-1]
        admin.queue.wait(last)
        # What was answered last was answered after all others.
        assert all(admin.queue.done(command) for command in commands[:-1])
        for command in commands[:-1]:
            reply = admin.queue.wait(command)
            assert (reply.status, reply.qualifier) == OK


@pytest.mark.spec("P-DEV-22")
def test_one_part_is_missing(admin: Admin) -> None:
    """No room for a status: nothing happens; nothing to read: that is LIST_QUERY of Self."""
    assert admin.use(admin.listed(SRIOV)) == OK
    assert admin.raw([header(USE) + bytes([1])], []) == (0, b"")
    assert admin.status(MODE_GET, member=1) == OK
    used, answer = admin.raw([], [16])
    assert (used, answer[:8]) == (16, bytes(8))
    assert admin.device.status == 15


@pytest.mark.spec("P-DEV-02", "P-DEV-04", "P-DEV-05")
def test_refused_commands_change_nothing(admin: Admin) -> None:
    assert admin.use(admin.listed(SRIOV)) == OK
    for mode in (3, 4, 255):
        assert admin.status(MODE_SET, member=1, data=bytes([mode])) == FIELD
    assert admin.status(0x44, member=1, data=bytes(16)) == COMMAND  # CTX_WRITE in Active
    reply = admin.queue.execute(MODE_GET, group=SRIOV, member=1, result=8)
    assert reply.result == bytes(8)


@pytest.mark.spec("P-DEV-14")
@pytest.mark.parametrize("strict", [False, True])
def test_no_vfs_no_group(serve: Callable[..., ServerProcess], strict: bool) -> None:
    """VF Enable clear: Q_INVALID_GROUP. By default the lists are exempt, for Linux; not with --strict."""
    server = serve("--vfs", "2", *(["--strict"] if strict else []))
    with administered(server) as admin:
        assert admin.use(admin.listed(SRIOV)) == OK
        SrIov(admin.device.function).disable()
        assert admin.status(QUERY) == (GROUP if strict else OK)
        assert admin.use(3) == (GROUP if strict else OK)
        for opcode in (*CONTEXT, 0x12):
            assert admin.status(opcode, member=1) == GROUP
        assert admin.status(QUERY, SELF) == OK
        SrIov(admin.device.function).enable(1)
        assert admin.use(admin.listed(SRIOV)) == OK
        assert admin.status(MODE_GET, member=1) == OK
        assert admin.status(MODE_GET, member=2) == MEMBER


@pytest.mark.spec("P-DEV-14")
def test_no_sriov_no_group(serve: Callable[..., ServerProcess]) -> None:
    with administered(serve()) as admin:
        for opcode in (QUERY, USE, MODE_GET):
            assert admin.status(opcode) == GROUP


def test_the_queue_is_not_there_for_who_did_not_ask(shared: ServerProcess) -> None:
    """VFs have none, and offer neither ADMIN_VQ nor SR_IOV."""
    with VirtioPci.open(shared.socket("vf1")) as device:
        assert not device.common.features() & (1 << ADMIN_VQ | 1 << SR_IOV)
        assert device.common.read("admin_queue_num") == 0


def test_a_looping_command_breaks_the_pf_only(admin: Admin) -> None:
    """A chain without end on the admin queue, then a reset, and the queue serves again."""
    queue = admin.queue.queue
    address = admin.device.memory.allocate(8).address
    if isinstance(queue, PackedQueue):
        queue.desc[:] = (address, 8, 0, NEXT | WRITE | 1 << 7)
    else:
        assert isinstance(queue, SplitQueue)
        queue.desc[0] = (address, 8, NEXT | WRITE, 0)
        queue.publish(0)
    queue.kick(force=True)
    assert admin.device.msix is not None
    admin.device.msix.interrupts[0].wait(10)
    assert admin.device.status & 64
    admin.reset()
    assert admin.status(QUERY) == OK


def test_a_large_queue(admin: Admin) -> None:
    """It has 1024 entries, and takes as many commands at once."""
    assert admin.queue.queue.size == 1024
    commands = [admin.queue.submit(QUERY, group=SRIOV, result=16, kick=False) for _ in range(1023)]
    commands.append(admin.queue.submit(QUERY, group=SRIOV, result=16))
    replies = admin.queue.wait_all(commands, timeout=20)
    assert len({reply.result for reply in replies}) == 1


@pytest.mark.parametrize(("length", "good"), [(9, True), (16384, True), (16385, False)])
def test_a_long_indirect_table(admin: Admin, length: int, good: bool) -> None:
    """An indirect table may be longer than the queue, as Linux makes them, up to 16384 descriptors."""
    device = admin.device
    device.reset()
    device.initialize(
        wanted=(VERSION_1, INDIRECT_DESC, ADMIN_VQ, SR_IOV, *admin.more), required=(VERSION_1, ADMIN_VQ)
    )
    admin.queue = AdminQueue(device, size=8, timeout=10)
    device.driver_ok()
    command, answer = device.memory.allocate(24), device.memory.allocate(8 * length)
    command.view[:] = list(header(QUERY))
    answer.view[:] = 0xEE
    rooms = [(answer.address + 8 * at, 8) for at in range(length - 1)]
    admin.queue.queue.add([command.segment], rooms, indirect=True)
    admin.queue.queue.kick()
    if good:
        (done,) = admin.queue.queue.wait(10)
        assert done.length == 24
        assert answer.view[:8].tobytes() == bytes(8)
        assert int.from_bytes(answer.view[8:24].tobytes(), "little") == admin.listed(SRIOV)
        assert answer.view[24] == 0xEE
    else:
        assert device.msix is not None
        device.msix.interrupts[0].wait(10)
        assert device.status & 64


def test_a_long_indirect_table_elsewhere(shared: ServerProcess) -> None:
    """On other queues it breaks the device: a driver must not make one."""
    with driven(shared.socket("pf"), size=8) as block:
        parts = [block.header()] + [block.room(1) for _ in range(8)]
        block.queue.add([parts[0].segment], [part.segment for part in parts[1:]], indirect=True)
        block.queue.kick()
        block.wait_broken()


FAULTY = """
import sys
from pymodel.migration.member import Member
from vfu_server.__main__ import main

def fields(self):
    raise ZeroDivisionError("for a test")

Member.fields = fields
sys.exit(main())
"""


class FaultyServer(ServerProcess):
    """A server with a mistake in CTX_FIELDS_QUERY."""

    program = (sys.executable, "-c", FAULTY)


def test_a_mistake_of_the_server_is_answered() -> None:
    """EINVAL, Q_INVALID_COMMAND and a traceback in the log; the PF and its queue go on."""
    with FaultyServer("--vfs", "1") as server, administered(server) as admin:
        assert admin.use(admin.listed(SRIOV)) == OK
        for _ in range(3):
            assert admin.status(0x45, member=1) == COMMAND
            assert admin.status(MODE_GET, member=1) == OK
        assert "ZeroDivisionError: for a test" in server.log
