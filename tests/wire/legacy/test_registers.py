"""The legacy registers of a network VF, one access at a time."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest

from tests.server_process import ServerProcess
from tests.wire.frames import ethernet, mac, received
from tests.wire.legacy.rig import (
    ACKNOWLEDGE,
    ACTIVE,
    COMMAND,
    COMMON_READ,
    COMMON_WRITE,
    DEVICE_FIELDS,
    DEVICE_READ,
    DEVICE_WRITE,
    DRIVER,
    DRIVER_OK,
    EVENT_IDX,
    FEATURES_OK,
    FIELD,
    FIELDS,
    FREEZE,
    INDIRECT,
    MAC,
    MEMBER,
    NO_VECTOR,
    NOTIFY_INFO,
    OK,
    ONE,
    OPCODE,
    OPTIONS,
    STOP,
    TWO,
    VERSION_1,
    Legacy,
    Serve,
    legacy,
    peer,
)
from tests.wire.running import running, until
from vfu_client.drivers.net import NetDriver
from vfu_client.owner.admin import AdminQueue
from vfu_client.vfio.connection import Connection
from vfu_client.vfio.pci import PciFunction
from vfu_client.virtio.function import VirtioPci


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running() as start:
        yield start(*OPTIONS)


@pytest.fixture
def vf(server: ServerProcess) -> Iterator[Legacy]:
    with legacy(server) as found:
        yield found
        found.set_mode(ACTIVE)


# What is offered, and where.


@pytest.mark.spec("P-DEV-63")
def test_offered_together(vf: Legacy) -> None:
    """All five in the list of the SR-IOV group, none in that of the Self group."""
    assert set(range(2, 7)) <= vf.listed
    assert not set(range(2, 7)) & vf.admin.list_query(0)


@pytest.mark.spec("P-DEV-63")
def test_not_offered(serve: Serve) -> None:
    """Without --legacy there are none, and the virtio structures are in BAR 0."""
    server = serve("--device", "net", "--vfs", "1")
    with VirtioPci.open(server.socket("pf")) as pf, Connection(server.socket("vf1")) as vf:
        pf.initialize()
        admin = AdminQueue(pf)
        pf.driver_ok()
        listed = admin.list_query(1)
        assert not set(range(2, 7)) & listed
        admin.list_use(1, listed)
        for opcode in range(2, 7):
            reply = admin.wait(admin.submit(opcode, group=1, member=1, data=bytes(8)))
            assert (reply.status, reply.qualifier) == OPCODE
        assert vf.region_info(0).size


@pytest.mark.spec("P-DEV-65")
def test_bar_0_is_wired_to_zero(vf: Legacy) -> None:
    """In the SR-IOV capability and in the VF; the structures are in BAR 4, and the PF's as ever."""
    pf = PciFunction(vf.pf.connection)
    sriov = pf.find_extended(0x10)
    for part in (0, 1):
        pf.config_write(sriov + 0x24 + 4 * part, 4, 0xFFFFFFFF)
        assert pf.config_read(sriov + 0x24 + 4 * part, 4) == 0
    assert pf.config_read(sriov + 0x24 + 16, 4) & 0xF == 0xC
    assert [bar.index for bar in pf.bars()] == [0, 2]
    assert [(bar.index, bar.size) for bar in vf.function.bars()] == [(2, 0x2000), (4, 0x8000)]
    vf.function.config_write(0x10, 4, 0xFFFFFFFF)
    assert vf.function.config_read(0x10, 4) == 0
    assert vf.connection.region_info(0).size == 0
    # Device and subsystem IDs and the revision of a device that is not transitional.
    assert vf.function.config_read(0, 4) == 0x10411AF4
    assert vf.function.config_read(8, 1) >= 1
    assert vf.function.config_read(0x2E, 2) >= 0x40


@pytest.mark.spec("P-DEV-65")
def test_notify_info(vf: Legacy) -> None:
    """One entry of the member: BAR 4, 4000h; then three of flags 0, and no byte more."""
    status, data = vf.command(NOTIFY_INFO, b"", 80)
    assert status == OK
    assert data[:64] == struct.pack("<BB6xQ", 2, 4, 0x4000) + bytes(48)
    assert data[64:] == b"\xee" * 16


@pytest.mark.parametrize("opcode", range(2, 7))
def test_members(vf: Legacy, opcode: int) -> None:
    for member in (0, 3, 1 << 40):
        assert vf.command(opcode, bytes(9), 1, member=member)[0] == MEMBER


# Single accesses.


def inside(fields: list[tuple[int, int]], offset: int, length: int) -> bool:
    return any(at <= offset < offset + length <= at + size for at, size in fields)


@pytest.mark.spec("P-DEV-64")
@pytest.mark.parametrize("msix", [False, True])
@pytest.mark.parametrize("kind", ["common", "device"])
def test_one_field(vf: Legacy, kind: str, msix: bool) -> None:
    """Every offset and length: what is inside of one field is taken, the rest is refused and does nothing."""
    vf.write("device_status", 0)
    if msix:
        vf.msix.enable(6)
    read, write = (COMMON_READ, COMMON_WRITE) if kind == "common" else (DEVICE_READ, DEVICE_WRITE)
    fields = list(FIELDS.values())[: 10 if msix else 8] if kind == "common" else list(DEVICE_FIELDS)
    before = [vf.read(name) for name in list(FIELDS)[:7]]
    for offset in (*range(28), 64, 255):
        for length in range(9):
            good = inside(fields, offset, length)
            assert vf.read_at(read, offset, length)[0] == (OK if good else FIELD), (offset, length)
            if not good:
                assert vf.write_at(write, offset, b"\xff" * length) == FIELD, (offset, length)
    assert [vf.read(name) for name in list(FIELDS)[:7]] == before
    assert vf.config(0, 6) == mac(1)


def test_long_accesses(vf: Legacy) -> None:
    """Far more than a field, and more than is looked at of a command."""
    for length in (4096, 8192, 70000):
        assert vf.read_at(COMMON_READ, 0, length)[0] == FIELD
        assert vf.write_at(COMMON_WRITE, 0, bytes(length)) == FIELD
        assert vf.write_at(DEVICE_WRITE, 0, bytes(length)) == FIELD


def test_short_commands(vf: Legacy) -> None:
    """A missing offset is 0; a write without anything to write is none."""
    assert vf.command(COMMON_READ, b"", 4)[0] == OK
    for data in (b"", b"\x12", bytes(7), bytes(8)):
        assert vf.command(COMMON_WRITE, data)[0] == FIELD


@pytest.mark.spec("P-DEV-64")
def test_byte_by_byte(vf: Legacy) -> None:
    """Little-endian, whatever the width."""
    for name in ("device_features", "queue_size", "queue_select"):
        offset, size = FIELDS[name]
        found = b"".join(vf.read_at(COMMON_READ, offset + at, 1)[1] for at in range(size))
        assert int.from_bytes(found, "little") == vf.read(name)
    assert vf.write_at(COMMON_WRITE, 14, b"\1") == OK
    assert vf.read("queue_select") == 1
    assert vf.config(0, 6) == b"".join(vf.config(at, 1) for at in range(6)) == mac(1)
    assert vf.config(6, 2) == b"\1\0"
    assert vf.config(8, 2) == b"\2\0"


# Registers.


@pytest.mark.spec("P-DEV-64")
def test_first_values(vf: Legacy) -> None:
    with NetDriver.open(vf.server.socket("vf2"), queue_size=16) as other:
        offered = other.device.common.features()
    assert vf.read("device_features") == offered & 0xFFFFFFFF | 1 << 27
    assert vf.read("device_features") >> INDIRECT & 3 == 3
    assert vf.read("device_features") >> 30 == 0
    for name in ("driver_features", "queue_address", "queue_select", "device_status", "isr_status"):
        assert vf.read(name) == 0
    sizes = []
    for index in range(6):
        vf.write("queue_select", index)
        sizes.append(vf.read("queue_size"))
        vf.write("queue_size", 8)
        assert vf.read("queue_size") == sizes[-1]
        assert vf.read("queue_address") == 0
    assert sizes == [256, 256, 256, 256, 64, 0]


@pytest.mark.spec("P-DEV-64")
def test_features(vf: Legacy) -> None:
    """What is not offered is left out, what does not fit together not taken; none after the first queue."""
    vf.write("device_status", 0)
    vf.write("driver_features", 0xFFFFFFFF)
    assert vf.read("driver_features") == vf.read("device_features")
    vf.write("driver_features", 1 << MAC | 1 << 30)
    assert vf.read("driver_features") == 1 << MAC
    vf.write("driver_features", 1 << MAC | 1 << 18)  # CTRL_RX, without CTRL_VQ
    assert vf.read("driver_features") == 0
    assert "bit 18 needs bit 17" in vf.server.log
    vf.write("driver_features", 1 << MAC)
    vf.queue(0)
    vf.write("driver_features", 1 << EVENT_IDX)
    assert vf.read("driver_features") == 1 << MAC


@pytest.mark.spec("P-DEV-64")
def test_status(vf: Legacy) -> None:
    """Bits add up in any order; there is no FEATURES_OK, and 0 resets."""
    vf.write("device_status", 0)
    for value, found in ((2, 2), (1, 3), (FEATURES_OK, 3), (DRIVER_OK, 7), (64, 7), (128, 0x87), (0, 0)):
        vf.write("device_status", value)
        assert vf.status == found
    vf.write("device_status", ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
    assert vf.status == 7


@pytest.mark.spec("P-DEV-64")
def test_vectors(vf: Legacy) -> None:
    """There while MSI-X is enabled; one that does not exist is not taken."""
    vf.write("device_status", 0)
    for offset in (20, 22):
        assert vf.read_at(COMMON_READ, offset, 2)[0] == FIELD
        assert vf.write_at(COMMON_WRITE, offset, b"\1\0") == FIELD
    vf.msix.enable(6)
    for name in ("config_msix_vector", "queue_msix_vector"):
        assert vf.read(name) == NO_VECTOR
        for value, found in ((3, 3), (0x7FF, NO_VECTOR), (0, 0), (NO_VECTOR, NO_VECTOR)):
            vf.write(name, value)
            assert vf.read(name) == found
    vf.write("queue_select", 99)
    vf.write("queue_msix_vector", 1)
    assert vf.read("queue_msix_vector") == NO_VECTOR
    vf.msix.disable()
    assert vf.read_at(COMMON_READ, 20, 2)[0] == FIELD


@pytest.mark.spec("P-DEV-64")
def test_isr(vf: Legacy) -> None:
    """Without MSI-X it tells what happened, once."""
    vf.run(1 << MAC | 1 << 16, msix=False)
    (buffer,) = vf.offer()
    with peer(vf.server) as other:
        other.send(ethernet(ONE, TWO))
        vf.receive(buffer)
    assert vf.read("isr_status") == 1
    assert vf.read("isr_status") == 0
    vf.server.ask("set-link", function="vf1", up=False)
    until(lambda: vf.read("isr_status") == 2, "the configuration changed")
    assert vf.config(6, 2) == bytes(2)
    vf.server.ask("set-link", function="vf1", up=True)


# Two interfaces, one device.


@pytest.mark.spec("P-DEV-64")
def test_a_driver_of_today(vf: Legacy, server: ServerProcess) -> None:
    """It finds its structures in BAR 4, and has the device: a legacy write is refused until a reset."""
    device = VirtioPci(vf.connection, vf.memory)
    with peer(server) as other:
        driver = NetDriver(device, queue_size=16, timeout=10)
        driver.send(ethernet(TWO, ONE, b"today"))
        assert received(other) == [ethernet(TWO, ONE, b"today")]
        for name, (offset, size) in FIELDS.items():
            if name != "device_status":
                assert vf.write_at(COMMON_WRITE, offset, bytes(size)) == COMMAND, name
        assert vf.write_at(COMMON_WRITE, 18, b"\1") == COMMAND
        assert vf.write_at(DEVICE_WRITE, 0, mac(9)) == COMMAND
        assert vf.status == 15
        vf.function.bar_write(4, 0x4000, 2, 0)
        driver.send(ethernet(TWO, ONE, b"still"))
        assert received(other) == [ethernet(TWO, ONE, b"still")]
        assert driver.mac == mac(1)
        assert device.status == 15
        vf.write("device_status", 0)
        assert device.status == 0
        vf.run()
        vf.send(ethernet(TWO, ONE, b"yesterday"))
        assert received(other) == [ethernet(TWO, ONE, b"yesterday")]
        # And the other way round.
        device.common.write("driver_feature_select", 1)
        device.common.write("driver_feature", 1 << VERSION_1 - 32)
        device.add_status(FEATURES_OK)
        assert device.status == 7
        assert vf.read("driver_features") == 1 << MAC
        NetDriver(device, queue_size=16, timeout=10).send(ethernet(TWO, ONE, b"today"))
        assert received(other) == [ethernet(TWO, ONE, b"today")]


@pytest.mark.spec("P-DEV-64")
def test_freeze_and_stop(vf: Legacy) -> None:
    """As through a BAR: in Freeze nothing is taken, in Stop it is; what is read is there."""
    vf.begin(1 << MAC)
    vf.set_mode(FREEZE)
    for name, value in (("queue_select", 1), ("driver_features", 0), ("device_status", 0)):
        vf.write(name, value)
    assert vf.write_at(DEVICE_WRITE, 0, mac(9)) == OK
    assert vf.status == 3
    assert (vf.read("queue_select"), vf.read("driver_features")) == (0, 1 << MAC)
    assert vf.config(0, 6) == mac(1)
    vf.set_mode(STOP)
    vf.write("queue_select", 1)
    assert vf.read("queue_select") == 1
    vf.write("device_status", 0)
    assert vf.status == 0


def test_power_state(vf: Legacy) -> None:
    """In D3 there is nothing to reach."""
    vf.write("device_status", 0)
    vf.function.set_power_state(3)
    assert vf.status == 0xFF
    assert vf.config(0, 6) == b"\xff" * 6
    vf.write("queue_select", 1)
    vf.function.set_power_state(0)
    assert vf.read("queue_select") == 0


@pytest.mark.parametrize("option", ["--flr-delay-ms", "--reset-delay-ms"])
def test_resets_that_take_their_time(serve: Serve, option: str) -> None:
    """An access during one is answered, and done, after it: a legacy driver does not wait for resets."""
    with legacy(serve(*OPTIONS, option, "300")) as vf:
        vf.run()
        if option == "--flr-delay-ms":
            at = vf.function.find_capability(0x10)
            vf.function.config_write(at + 8, 2, 0x8000)
        else:
            vf.write("device_status", 0)
        vf.write("queue_select", 1)
        assert vf.read("queue_select") == 1
        assert vf.status == 0
        vf.function.set_command(6)
        vf.run()
        assert vf.status == 7


# Whatever comes.


def test_random_accesses(server: ServerProcess) -> None:
    """Any bytes at any place: each is answered, and afterwards both functions work."""
    randomly = random.Random(5)
    with legacy(server) as vf:
        for _ in range(4000):
            opcode = randomly.choice((2, 2, 2, 3, 4, 5))
            offset = randomly.choice((*range(26), 4, 8, 8, 14, 14, 16, 18, 18, 255))
            size = randomly.choice((0, 1, 1, 2, 2, 3, 4, 4, 6, 8))
            data = randomly.choice((bytes(size), b"\1" * size, b"\xff" * size, randomly.randbytes(size)))
            if opcode in {COMMON_READ, DEVICE_READ}:
                status, _ = vf.read_at(opcode, offset, size)
            else:
                status = vf.write_at(opcode, offset, data)
            assert status in {OK, FIELD}
            if randomly.random() < 0.02:
                vf.function.bar_write(4, 0x4000, 2, randomly.randrange(6))
            if randomly.random() < 0.02:
                vf.msix.control ^= 0x8000
        vf.run()
        with peer(server) as other:
            vf.send(ethernet(TWO, ONE, b"alive"))
            assert received(other) == [ethernet(TWO, ONE, b"alive")]
