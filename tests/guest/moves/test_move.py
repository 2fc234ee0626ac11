"""The move of a running guest: there and back, and made to fail at each step; its I/O never notices."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from pymodel.spec import context
from tests.guest.conftest import DISK_SIZE
from tests.guest.guest_disk import disk_of, finish, progress, start_io, wait_written
from tests.guest.moves.traveller import OPTIONS, Traveller, command
from tests.server_process import ServerProcess
from vfu_client.move import pf
from vfu_client.move.move import Move
from vfu_client.move.moved_vf import MovedVf, Vf
from vfu_client.move.report import STEPS, MoveError
from vfu_client.owner.owner import OwnerDriver
from vfu_images.machine import Machine

HANGS_UP = {"x-msg-timeout": 3000}
"""A QEMU that hangs up on a server that stands still for so many milliseconds, and not on a busy one."""


@pytest.mark.parametrize("step", [step for step in STEPS if step != "release"])
def test_failure_goes_back(traveller: Traveller, target: Machine, step: str) -> None:
    """Whatever step fails: the guest runs at the source, the other VF is as found, and we hear why."""

    def fail(_move: Move, name: str) -> None:
        if name == step:
            raise RuntimeError("made to fail")

    with pytest.raises(MoveError, match=f"{step}.*made to fail") as caught:
        traveller.move(target, before_step=fail)
    assert caught.value.step == step
    assert caught.value.source_runs, caught.value
    traveller.check_runs()
    with OwnerDriver.open(traveller.there.socket("pf")) as owner:
        assert owner.mode_get(1) == context.MODE_ACTIVE


@pytest.mark.parametrize("step", ["copy-ram", "mark-pages", "finish-ram", "continue"])
def test_destination_dies(traveller: Traveller, target: Machine, step: str) -> None:
    """QEMU at the destination is killed on the way."""

    def kill(_move: Move, name: str) -> None:
        if name == step:
            target.close()

    with pytest.raises(MoveError) as caught:
        traveller.move(target, before_step=kill)
    assert caught.value.source_runs, caught.value
    assert re.search(r"hung up on .*(qmp|qtest)\.sock|migration failed|migration is", caught.value.why), (
        caught.value.why
    )
    assert "disconnect()" not in str(caught.value)
    traveller.check_runs()


@pytest.mark.parametrize("step", ["copy-ram", "move-contexts", "activate", "continue"])
def test_destination_server_dies(traveller: Traveller, travel_image: Path, step: str) -> None:
    """The server of the destination is killed on the way: the guest runs on, and we hear what was left."""
    with (
        ServerProcess(*OPTIONS, "--disk", str(travel_image)) as third,
        Machine(devices=[third.qemu_device("vf1")], incoming=True) as machine,
    ):

        def kill(_move: Move, name: str) -> None:
            if name == step:
                third.stop(signal.SIGKILL)

        with pytest.raises(MoveError) as caught:
            traveller.move(machine, server=third, before_step=kill)
    assert caught.value.source_runs, caught.value
    assert f"VF 1 at the destination (server {third.folder}): the server hung up" in caught.value.state
    traveller.check_runs()


def stand_still(server: ServerProcess) -> None:
    """Stop a server until SIGCONT; it stands still when this returns."""
    server.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, server.process.pid, os.WSTOPPED)


def hang_up_on(guest: Machine, server: ServerProcess) -> None:
    """Have the server stand still for as long as QEMU (x-msg-timeout) waits for VF 1 to answer a read."""
    slots = [bus["devices"] for bus in guest.qmp("query-pci")]
    bridges = [bridge.get("pci_bridge", {}).get("devices", []) for devices in slots for bridge in devices]
    vf = next(device for devices in bridges for device in devices if device["qdev_id"] == "vf1")
    stand_still(server)
    read = f"xp /1wx {vf['regions'][0]['address']:#x}"
    assert "0xffffffff" in guest.qmp("human-monitor-command", {"command-line": read})
    server.process.send_signal(signal.SIGCONT)


@pytest.mark.long
def test_destination_is_not_attached(traveller: Traveller, travel_image: Path) -> None:
    """QEMU at the destination lost its VF just before the guest would go on there."""
    with (
        ServerProcess(*OPTIONS, "--disk", str(travel_image)) as third,
        Machine(devices=[third.qemu_device("vf1", **HANGS_UP)], incoming=True) as machine,
    ):

        def lose(_move: Move, name: str) -> None:
            if name == "continue":
                hang_up_on(machine, third)

        # The server may have noticed, and reset the function, or not yet.
        why = r"VF 1 .*destination.*(has device status 0x0|QEMU hung up on it)"
        with pytest.raises(MoveError, match=why) as caught:
            traveller.move(machine, server=third, before_step=lose)
    assert caught.value.source_runs, caught.value
    traveller.check_runs()


@pytest.mark.long
@pytest.mark.parametrize("step", ["copy-ram", "stop-vfs"])
def test_source_is_not_attached(
    server: Callable[..., ServerProcess], machine: Callable[..., Machine], step: str
) -> None:
    """The source's server stands still until QEMU has hung up: no move, and no word of "as before"."""
    here, there = (server("--vfs", "1", "--disk", "ram:1M") for _ in range(2))
    guest = machine(devices=[here.qemu_device("vf1", **HANGS_UP)])
    target = machine(devices=[there.qemu_device("vf1")], incoming=True, ready=False)

    def lose(_move: Move, name: str) -> None:
        if name == step:
            hang_up_on(guest, here)

    traveller = Traveller(guest, guest.start("true"), here, there)
    with pytest.raises(MoveError) as caught:
        traveller.move(target, before_step=lose)
    assert not caught.value.source_runs, caught.value
    assert caught.value.step == "read-pci", caught.value
    assert "The guest runs at the source, but not as before." in caught.value.state
    assert f"VF 1 at the source (server {here.folder}): QEMU hung up on it" in caught.value.state
    assert "x-msg-timeout" in caught.value.state
    assert guest.qmp("query-status")["status"] == "running"


def test_source_server_stands_still(
    traveller: Traveller, target: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For longer than the VFs may take to stop, and QEMU waits longer: the guest runs as before."""
    monkeypatch.setattr(pf, "STOP_SECONDS", 0.1)
    stop = pf.Pf.stop

    def stop_meanwhile(self: pf.Pf, vf: int) -> None:
        stand_still(traveller.here)
        try:
            stop(self, vf)
        finally:
            traveller.here.process.send_signal(signal.SIGCONT)

    monkeypatch.setattr(pf.Pf, "stop", stop_meanwhile)
    with pytest.raises(MoveError, match="does not finish what it began") as caught:
        traveller.move(target)
    assert caught.value.source_runs, caught.value
    traveller.check_runs()


@pytest.mark.parametrize("step", ["prepare", "stop-vfs", "write-pci"])
def test_cancelled(traveller: Traveller, target: Machine, step: str) -> None:
    """Giving a move up is a failure like others."""

    def cancel(move: Move, name: str) -> None:
        if name == step:
            assert move.cancel()

    with pytest.raises(MoveError, match="cancelled") as caught:
        traveller.move(target, before_step=cancel)
    assert caught.value.source_runs, caught.value
    traveller.check_runs()


def test_refused_when_pf_is_taken(traveller: Traveller, target: Machine) -> None:
    """Somebody else drives the PF at the destination."""
    taken = OwnerDriver.open(traveller.there.socket("pf"))
    with taken, pytest.raises(MoveError, match=r"pf\.sock is in use") as caught:
        traveller.move(target)
    assert caught.value.step == "check"
    traveller.check_runs()


def test_refused_for_another_disk(traveller: Traveller) -> None:
    """The VF at the destination has a disk of another size."""
    with (
        ServerProcess(*OPTIONS, "--disk", "ram:8M") as other,
        Machine(devices=[other.qemu_device("vf1")], incoming=True) as machine,
    ):
        why = "VF 1 .* cannot take .*: capacity is 65536 at the source, 16384 at the destination\nNothing was"
        with pytest.raises(MoveError, match=why) as caught:
            traveller.move(machine, server=other)
        assert caught.value.step == "check"
        with OwnerDriver.open(other.socket("pf")) as owner:
            assert owner.mode_get(1) == context.MODE_ACTIVE
    traveller.check_runs()


@pytest.mark.parametrize(
    ("functions", "settings", "why"),
    [
        (["vf1"], {"incoming": False}, "-incoming defer"),
        (["vf1"], {"incoming": True, "memory_mib": 128}, "MiB of memory"),
        (["vf2", "vf1"], {"incoming": True}, "bus and slot"),
        (["vf2"], {"incoming": True}, "is connected to"),
    ],
)
def test_refused_for_another_machine(
    traveller: Traveller, functions: list[str], settings: dict[str, Any], why: str
) -> None:
    """The destination was not started as the target of this guest."""
    devices = [traveller.there.qemu_device(function) for function in functions]
    with Machine(devices=devices, **settings) as machine, pytest.raises(MoveError, match=why) as caught:
        traveller.move(machine)
    assert caught.value.step == "check"
    traveller.check_runs()


def test_again_after_an_early_failure(traveller: Traveller, target: Machine) -> None:
    """A destination that took no memory yet can be used again."""

    def fail(_move: Move, name: str) -> None:
        if name == "copy-ram":
            raise RuntimeError("made to fail")

    with pytest.raises(MoveError):
        traveller.move(target, before_step=fail)
    assert target.qmp("query-status")["status"] == "inmigrate"
    report = traveller.move(target)
    traveller.arrived(target)
    assert report.warnings == []
    traveller.check_runs()


def test_there_and_back(traveller: Traveller) -> None:
    """Two moves, each with a short stop. The VF that was left is ready for the next guest."""
    for _ in range(2):
        target = traveller.incoming()
        try:
            report = traveller.move(target)
            traveller.arrived(target)
        finally:
            if traveller.guest is not target:
                target.close()
        assert report.warnings == []
        assert report.pages > 0
        assert report.downtime_ms is not None
        assert 0 < report.downtime_ms < 5000
        assert {step.name for step in report.steps} == set(STEPS)
        traveller.check_runs()
        with OwnerDriver.open(traveller.there.socket("pf")) as owner:
            assert owner.mode_get(1) == context.MODE_ACTIVE


def first_16_mib(guest: Machine, disk: str) -> str:
    """The digest of what comes ahead of where the job writes, read from the disk itself."""
    return guest.check(f"dd if={disk} bs=1M count=16 iflag=direct 2>/dev/null | md5sum")


@pytest.mark.long
def test_several_vfs(
    tmp_path: Path, server: Callable[..., ServerProcess], machine: Callable[..., Machine]
) -> None:
    """Two VFs that get other numbers; the disk of one is in memory, and travels while the guest runs."""
    # Another one than the traveller's, who has that locked.
    image = tmp_path / "disk.img"
    image.touch()
    os.truncate(image, DISK_SIZE)
    first = server("--vfs", "2", "--disk", f"vf1={image}", "--disk", "vf2=ram:32M")
    second = server("--vfs", "2", "--disk", f"vf2={image}", "--disk", "vf1=ram:32M")
    guest = machine(devices=[first.qemu_device("vf1"), first.qemu_device("vf2")], cpus=2)
    disks = [disk_of(guest, f"vf{vf}") for vf in (1, 2)]
    guest.check(f"dd if=/dev/urandom of={disks[1]} bs=1M count=16 conv=fsync")
    noise = first_16_mib(guest, disks[1])
    jobs = [start_io(guest, disk, offset="16M", length="4M") for disk in disks]
    for job in jobs:
        wait_written(job, 4000)
    target = machine(
        devices=[second.qemu_device("vf2"), second.qemu_device("vf1")], cpus=2, incoming=True, ready=False
    )
    traveller = Traveller(guest, jobs[0], first, second)
    with pytest.raises(MoveError, match=r"other vfio-user devices too \(vf2\)"):
        traveller.move(target, vfs=[MovedVf(Vf(1), Vf(2))])
    report = traveller.move(target, vfs=[MovedVf(Vf(1), Vf(2)), MovedVf(Vf(2), Vf(1))])
    assert report.warnings == []
    # While the guest stood, only what its job writes to: the other 16 MiB had gone before.
    assert 0 < report.context_bytes < 8 << 20
    guest.close()
    assert first_16_mib(target, disk_of(target, "vf1")) == noise
    for job in jobs:
        moved = job.moved(target.check)
        wait_written(moved, progress(moved)["sectors_written"] + 1000)
        assert finish(moved)["sectors_written"] > 5000


def closed_pipe() -> int:
    """The writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("streams", ["pipes", "full", "closed"])
def test_moved_whoever_listens(traveller: Traveller, target: Machine, streams: str) -> None:
    """Once the guest runs at the destination nothing makes a failure of it: no stream, no picture."""
    words = command(traveller, target, "--json", "--timeline", "/dev/full")
    if streams == "closed":
        done = subprocess.run(["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *words], check=False, timeout=120)
    else:
        file = closed_pipe() if streams == "pipes" else os.open("/dev/full", os.O_WRONLY)
        try:
            done = subprocess.run(words, stdout=file, stderr=file, check=False, timeout=120)
        finally:
            os.close(file)
    assert done.returncode == 0
    traveller.arrived(target)
    traveller.check_runs()


def test_goes_back_whoever_listens(traveller: Traveller, target: Machine) -> None:
    """A failure leads back though nobody can be told of it."""
    writer = closed_pipe()
    try:
        with subprocess.Popen(command(traveller, target), stdout=writer, stderr=writer) as process:
            # It takes memory in: the command has said that it copies.
            while target.qmp("query-migrate").get("status") != "active":
                assert process.poll() is None
            process.terminate()
    finally:
        os.close(writer)
    assert process.returncode == 1
    traveller.check_runs()


@pytest.mark.parametrize(
    ("option", "place", "why"),
    [
        ("--timeline", "nowhere/x.svg", "cannot draw the timeline into .*: No such file or directory"),
        ("--timeline", "", "cannot draw the timeline into .*: Is a directory"),
        ("--ram-socket", "nowhere/ram.sock", "no socket can be made in .*name another"),
        ("--ram-socket", "", "exists and is no socket"),
        ("--ram-socket", "x" * 100, "more bytes than the path of a socket"),
    ],
)
def test_refused_where_it_cannot_write(
    traveller: Traveller, target: Machine, tmp_path: Path, option: str, place: str, why: str
) -> None:
    """What would fail at the end is found at the beginning, and the destination can be used again."""
    words = command(traveller, target, option, str(tmp_path / place))
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert re.search(why, done.stderr), done.stderr
    assert "Nothing was touched." in done.stderr
    assert "Traceback" not in done.stderr
    assert target.qmp("query-status")["status"] == "inmigrate"
    traveller.check_runs()


def test_command_is_terminated(traveller: Traveller, target: Machine) -> None:
    """SIGTERM on the way: `vfu-migrate` goes back before it ends."""
    with subprocess.Popen(command(traveller, target), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "copying" in process.stderr.readline()
        process.terminate()
        said = process.stderr.read()
    assert process.returncode == 1, said
    assert "cancelled" in said
    assert "runs at the source as before" in said
    traveller.check_runs()


def test_command(traveller: Traveller, target: Machine, tmp_path: Path) -> None:
    """`vfu-migrate`, with the report for programs and the picture; on all the ways nothing was lost."""
    picture = tmp_path / "move.svg"
    words = command(traveller, target, "--json", "--timeline", str(picture))
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    traveller.arrived(target)
    report = json.loads(done.stdout)
    assert report["moved"] is True
    assert set(report["steps"]) == set(STEPS)
    assert sum(report["steps"][step] for step in ("mark-pages", "write-pci")) < report["downtime_ms"]
    assert ET.parse(picture).getroot().tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314  # we wrote it
    traveller.check_runs()
    assert traveller.finish()["sectors_written"] >= 500
