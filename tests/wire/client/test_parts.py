"""The owner driver's side of device parts: it obeys the rules by itself, and moves a VF that has a driver.

Numbers are the standard's (virtio 1.4, "Device parts"), repeated here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.server_process import ServerProcess
from vfu_client.drivers.block import BlockDriver
from vfu_client.owner.admin import AdminError
from vfu_client.owner.owner import DriverRuleError, OwnerDriver
from vfu_client.owner.part import BadPartsError, decode
from vfu_client.owner.parts import DeviceParts
from vfu_client.owner.parts_objects import Limits, PartsObject

SELF, SRIOV = 0, 1
GET, SET = 0, 1
DRIVER_CAP_SET, CREATE, PARTS_GET, PARTS_SET, MODE_SET = 0x09, 0x0A, 0x0F, 0x10, 0x11


class Sent(NamedTuple):
    """One command as it was put on the admin queue."""

    group: int
    opcode: int
    data: bytes


class Recorder:
    """Keeps what an owner driver puts on its admin queue."""

    def __init__(self, owner: OwnerDriver) -> None:
        self.sent: list[Sent] = []
        submit = owner.admin.submit

        def record(opcode: int, **arguments: Any) -> Any:
            data = arguments.get("data", b"")
            parts = [data] if isinstance(data, bytes) else [piece.view.tobytes() for piece in data]
            self.sent.append(Sent(arguments["group"], opcode, b"".join(parts)))
            return submit(opcode, **arguments)

        owner.admin.submit = record  # type: ignore[method-assign]

    @property
    def opcodes(self) -> list[int]:
        """In the order in which they were sent."""
        return [command.opcode for command in self.sent]


def breaches(server: ServerProcess) -> list[tuple[str, object]]:
    """What the server saw against the rules."""
    return [(entry["rule"], found) for entry in server.ask("query-rules") for found in entry["breaches"]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Two VFs, each on a file of its own."""
    folder = tmp_path_factory.mktemp("disks")
    disks = []
    for name in ("vf1", "vf2"):
        (folder / name).write_bytes(bytes(1 << 16))
        disks += ["--disk", f"{name}={folder / name}"]
    with ServerProcess("--vfs", "2", "--disk", "pf=ram:4k", *disks, "--check-driver") as started:
        yield started


@pytest.fixture
def owner(server: ServerProcess) -> Iterator[OwnerDriver]:
    """The owner of that server's PF. Whatever it does in a test, no rule is broken."""
    before = breaches(server)
    with OwnerDriver.open(server.socket("pf")) as made:
        yield made
    assert breaches(server) == before


@pytest.fixture
def device(owner: OwnerDriver) -> Iterator[DeviceParts]:
    """Its VFs' parts; afterwards the VFs run."""
    made = DeviceParts(owner)
    yield made
    for vf in (1, 2):
        made.resume(vf)


@pytest.mark.spec("P-DRV-01", "P-DRV-12")
def test_lists_and_capability_come_first(owner: OwnerDriver) -> None:
    """LIST_USE of each group ahead of its commands, and the driver's limits ahead of any object."""
    recorder = Recorder(owner)
    assert owner.commands >= set(range(0x0A, 0x12))
    with DeviceParts(owner).object(1, GET):
        pass
    assert recorder.sent[:3] == [
        Sent(SELF, 0x00, b""),
        Sent(SELF, 0x01, struct.pack("<Q", 0b11_1000_0011)),
        Sent(SELF, 0x07, b""),
    ]
    assert [(sent.group, sent.opcode) for sent in recorder.sent[3:]] == [
        (SELF, 0x08),
        (SELF, DRIVER_CAP_SET),
        (SRIOV, CREATE),
        (SRIOV, 0x0D),
    ]
    assert recorder.sent[4].data == struct.pack("<H6xBB", 0, 255, 255)
    assert recorder.sent[5].data == struct.pack("<HHIQB7x", 0, 0, 0, 0, GET)


@pytest.mark.spec("P-DRV-13", "P-DRV-14", "P-DRV-15")
def test_objects(owner: OwnerDriver) -> None:
    """The lowest free id, one pool for GET and SET of all VFs, no more than the limits say."""
    device = DeviceParts(owner, limits=Limits(get=2, set=3))
    first, second, third = device.create(1, GET), device.create(2, GET), device.create(1, SET)
    assert [made.id for made in (first, second, third)] == [0, 1, 2]
    assert [device.query(made) for made in (first, second, third)] == [GET, GET, SET]
    recorder = Recorder(owner)
    for act in (
        lambda: device.create(2, GET),
        lambda: device.set_limits(Limits(1, 1)),
        lambda: device.size(PartsObject(7, 1, GET, first.header)),
    ):
        with pytest.raises(DriverRuleError):
            act()
    assert recorder.sent == []
    device.destroy(first)
    with pytest.raises(DriverRuleError, match="object 0 is there no more"):
        device.query(first)
    again = device.create(2, SET)
    assert again.id == 0
    changed = device.modify(again, GET)
    assert device.query(changed) == GET
    assert device.size(changed) > 0
    for made in (second, third, changed):
        device.destroy(made)
    with pytest.raises(DriverRuleError, match="more than the device has"):
        device.set_limits(Limits(256, 1))
    device.set_limits(Limits(0, 0))
    with pytest.raises(DriverRuleError, match="all 0 objects"):
        device.create(1, GET)


def test_a_driver_that_does_not_obey(server: ServerProcess) -> None:
    """The device refuses what the driver let pass, and neither is confused."""
    with OwnerDriver.open(server.socket("pf"), obey=False) as bad:
        device = DeviceParts(bad, limits=Limits(1, 1))
        with device.object(1, GET):
            with pytest.raises(AdminError, match="ENOSPC"):
                device.create(2, GET)
            with pytest.raises(AdminError, match="EBUSY"):
                device.set_limits(Limits(0, 0))
        with device.object(2, SET) as target, pytest.raises(AdminError, match="EINVAL, INVALID_COMMAND"):
            device.set(target, b"")
    assert {rule for rule, _ in breaches(server)} == {"P-DRV-13", "P-DRV-14", "P-DRV-16"}


@pytest.mark.spec("P-DRV-19")
def test_getting(device: DeviceParts) -> None:
    """All parts, their number and size, their headers, and some of them."""
    with device.object(1, GET) as source:
        whole = device.get(source)
        parts = decode(whole)
        assert len(whole) <= device.size(source)
        headers = device.headers(source)
        assert len(parts) == len(headers) == device.count(source)
        assert headers["type"].tolist() == [part.type for part in parts]
        assert headers["length"].tolist() == [len(part.value) for part in parts]
        chosen = headers[np.isin(headers["type"], [0x103, 0x104])]
        assert [part.label for part in decode(device.get(source, chosen))] == ["DEVICE_STATUS", "VQ_CFG 0"]
        missing = chosen.copy()
        missing["type"] = 0x222
        assert device.get(source, missing) == b""


@pytest.mark.spec("P-DRV-16", "P-DRV-17")
def test_setting(owner: OwnerDriver, device: DeviceParts) -> None:
    """Nothing is sent unless this driver stopped the VF, nor what is out of order, nor what is cut."""
    with device.object(1, GET) as source:
        parts = device.get(source)
    first = 16 + 16
    with device.object(2, SET) as target:
        recorder = Recorder(owner)
        with pytest.raises(DriverRuleError, match="VF 2 may be running"):
            device.set(target, parts)
        device.stop(2)
        for wrong, why in (
            (parts[first:] + parts[:first], "order"),
            (parts[:-1], "bytes, 7 are left"),
            (parts + b"\0", "cut"),
        ):
            with pytest.raises(DriverRuleError, match=why):
                device.set(target, wrong)
        assert recorder.opcodes == [MODE_SET]
        device.set(target, parts)
        assert recorder.sent[-1] == Sent(SRIOV, PARTS_SET, struct.pack("<HHI", 0, 0, target.id) + parts)
        device.resume(2)
        with pytest.raises(DriverRuleError):
            device.set(target, parts)


def test_an_answer_that_is_filled_up(device: DeviceParts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device may fill lengths up to 8 bytes (P-DEV-20): that is no part. What is cut is not taken."""
    execute = device.admin.execute

    def answers(change: Callable[[bytes], bytes]) -> None:
        def answer(opcode: int, **arguments: Any) -> Any:
            reply = execute(opcode, **arguments)
            if opcode == PARTS_GET:
                reply.result = change(reply.result)
            return reply

        monkeypatch.setattr(device.admin, "execute", answer)

    with device.object(1, GET) as source:
        whole = device.get(source)
        answers(lambda result: result + bytes(7))
        assert device.get(source) == whole
        for change in (
            lambda result: result[:-1],
            lambda result: result + b"\0\1",
            lambda result: result + bytes(8),
        ):
            answers(change)
            with pytest.raises(BadPartsError, match="whole parts"):
                device.get(source)


def test_no_device_parts(serve: Callable[..., ServerProcess]) -> None:
    """A device that lists none, as one that goes by the letter while it has no VFs."""
    server = serve("--total-vfs", "1", "--vfs", "0", "--strict")
    with OwnerDriver.open(server.socket("pf")) as owner:
        with pytest.raises(LookupError, match="no device parts"):
            DeviceParts(owner)
        owner.enable_vfs(1)
        with DeviceParts(owner).object(1, GET):
            pass


@pytest.mark.parametrize("at_once", [False, True])
def test_a_vf_goes_to_another_server(
    serve: Callable[..., ServerProcess], tmp_path: Path, at_once: bool
) -> None:
    """Stop, get, set, resume, each by itself or two for one notification: what was told is what is there."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 16))
    options = ("--vfs", "1", "--disk", "pf=ram:4k", "--disk", f"vf1={disk}", "--check-driver")
    here, there = serve(*options), serve(*options)
    with (
        OwnerDriver.open(here.socket("pf")) as near,
        OwnerDriver.open(there.socket("pf")) as far,
        BlockDriver.open(here.socket("vf1")) as driver,
    ):
        driver.write(3, b"\x33" * 512)
        source, destination = DeviceParts(near), DeviceParts(far)
        destination.stop(1)
        with source.object(1, GET) as got, destination.object(1, SET) as given:
            if at_once:
                room = near.device.memory.allocate(4096)
                assert source.size(got) <= room.size
                size = source.stop_and_get_into(got, room)
                told = room.view[:size].tobytes()
                carried = far.device.memory.allocate(size)
                carried.view[:] = room.view[:size]
                destination.set_and_resume(given, carried)
            else:
                source.stop(1)
                told = source.get(got)
                destination.set(given, told)
                destination.resume(1)
            assert near.mode_get(1) == 1
            assert far.mode_get(1) == 0
        with destination.object(1, GET) as look:
            arrived = {part.label: part.members() for part in decode(destination.get(look))}
    sent = {part.label: part.members() for part in decode(told)}
    assert sent["DEVICE_STATUS"] == {"device_status": 15}
    # What is written by the device itself when it sees an unmapped ring is not of interest here.
    for label in ("DRV_FEATURES", "VQ_CFG 0", "CONTEXT_FIELD DEVICE_CFG"):
        assert arrived[label] == sent[label]
    for server in (here, there):
        assert breaches(server) == []
