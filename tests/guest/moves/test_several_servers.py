"""The move of a guest whose VFs belong to several servers: a disk and a network card, both in use."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from pymodel.spec import context
from tests.guest.conftest import DISK_SIZE
from tests.guest.guest_disk import disk_of, progress, start_io, wait_written
from tests.guest.guest_disk import finish as finish_disk
from tests.guest.guest_net import finish as finish_tcp
from tests.guest.guest_net import set_up, start_receiver, start_sender, wait_records
from tests.server_process import ServerProcess
from vfu_client.move import pf
from vfu_client.move.move import Move
from vfu_client.move.moved_vf import MovedVf, Vf
from vfu_client.move.pf import Pf
from vfu_client.move.qemu import Qemu
from vfu_client.move.report import STEPS, MoveError, Report
from vfu_client.move.side import Side
from vfu_client.owner.admin import AdminError
from vfu_client.owner.owner import OwnerDriver
from vfu_client.vfio.memory import Bytes
from vfu_images.job import Job
from vfu_images.machine import Machine

KINDS = ("disk", "net")
FOR_EVER = 100.0


@dataclass
class Host:
    """A server of each kind, and which VF of each is the guest's while it is here."""

    servers: dict[str, ServerProcess]
    numbers: dict[str, int]

    def devices(self) -> list[dict[str, object]]:
        """What the guest has here."""
        return [{**self.servers[kind].qemu_device(f"vf{self.numbers[kind]}"), "id": kind} for kind in KINDS]

    def side(self, name: str, machine: Machine) -> Side:
        """One side of a move."""
        folders = {kind: self.servers[kind].folder for kind in KINDS}
        return Side(name, Qemu(name, machine.qmp_path, machine.qtest_path), folders)

    def check_at_rest(self, *kinds: str) -> None:
        """The VFs, or those of some kinds, are active, and nothing of a move is left of them."""
        for kind in kinds or KINDS:
            with OwnerDriver.open(self.servers[kind].socket("pf")) as owner:
                assert owner.mode_get(self.numbers[kind]) == context.MODE_ACTIVE
                with pytest.raises(AdminError):
                    owner.write_record_read(self.numbers[kind])


@dataclass
class Traveller:
    """A guest with a VF of each server of `here`; it writes to its disk and talks TCP all the time."""

    guest: Machine
    other: Machine
    here: Host
    there: Host
    disk: Job = field(init=False)
    tcp: Job = field(init=False)
    peer: Job = field(init=False)

    def start(self) -> None:
        """Have it write to its disk and send."""
        self.peer = start_receiver(self.other)
        self.disk = start_io(self.guest, disk_of(self.guest, "vf1"), depth=2, more="--rest-us 5000")
        self.tcp = start_sender(self.guest, "10.9.0.1")
        wait_records(self.tcp, 200)

    def finish(self) -> dict[str, Any]:
        """End both, checked: what was written to the disk. The next test gets others."""
        finish_tcp(self.tcp, self.peer)
        found = finish_disk(self.disk)
        self.start()
        return found

    def move(self, target: Machine, fail: str | None = None) -> Report:
        """Move to the other host, or fail as the step begins."""

        def hook(step: str) -> None:
            if step == fail:
                raise RuntimeError("made to fail")

        vfs = [
            MovedVf(Vf(self.here.numbers[kind], kind), Vf(self.there.numbers[kind], kind)) for kind in KINDS
        ]
        source, destination = self.here.side("source", self.guest), self.there.side("destination", target)
        return asyncio.run(Move(source, destination, vfs, before_step=hook).run())

    def arrived(self, target: Machine) -> None:
        """Note that the guest is in `target` now, on the other host."""
        self.guest.close()
        self.guest = target
        self.disk, self.tcp = self.disk.moved(target.check), self.tcp.moved(target.check)
        self.here, self.there = self.there, self.here

    def check_runs(self) -> None:
        """Disk and connection go on where the guest is."""
        assert self.guest.qmp("query-status")["status"] == "running"
        wait_written(self.disk, progress(self.disk)["sectors_written"] + 500)
        wait_records(self.tcp, 200)
        wait_records(self.peer, 200)


@pytest.fixture(scope="module")
def traveller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traveller]:
    """See `Traveller`. The peer is a guest on another VF of the first host's network server.

    Tests leave the guest on one of the two hosts, and with traffic; in any order.
    """
    image = tmp_path_factory.mktemp("travel") / "disk.img"
    with image.open("wb") as file:
        file.truncate(DISK_SIZE)
    with contextlib.ExitStack() as stack:
        wire = str(tmp_path_factory.mktemp("w") / "wire")
        hosts = []
        for number, uplink in ((1, f"stream:{wire},server"), (2, f"stream:{wire}")):
            disk = stack.enter_context(
                ServerProcess("--vfs", "1", "--disk", str(image), "--disk", "pf=ram:1M")
            )
            net = stack.enter_context(ServerProcess("--vfs", "3", "--uplink", uplink, device="net"))
            hosts.append(Host({"disk": disk, "net": net}, {"disk": 1, "net": number}))
        here, there = hosts
        other = stack.enter_context(Machine(devices=[here.servers["net"].qemu_device("vf3")], memory_mib=128))
        guest = Machine(devices=here.devices()).__enter__()
        found = None
        try:
            for machine, address in ((other, "10.9.0.1"), (guest, "10.9.0.2")):
                machine.wait_ready(timeout=120)
                set_up(machine, address)
            found = Traveller(guest, other, here, there)
            found.start()
            yield found
        finally:
            (guest if found is None else found.guest).close()


@pytest.fixture
def target(traveller: Traveller) -> Iterator[Machine]:
    """A QEMU on the other host that waits for the guest; it stays when the guest moved in."""
    machine = Machine(devices=traveller.there.devices(), incoming=True).__enter__()
    try:
        yield machine
    finally:
        if traveller.guest is not machine:
            machine.close()


@pytest.mark.long
@pytest.mark.parametrize("step", ["prepare", "copy-ram", "mark-pages", "activate", "continue"])
def test_failure_goes_back(traveller: Traveller, target: Machine, step: str) -> None:
    """The VFs of all servers are as before: both kinds of traffic go on, over the same connection."""
    with pytest.raises(MoveError, match=f"{step}.*made to fail") as caught:
        traveller.move(target, fail=step)
    assert caught.value.source_runs, caught.value
    traveller.check_runs()
    traveller.here.check_at_rest()
    traveller.there.check_at_rest()


def test_one_server_refuses(traveller: Traveller, target: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second server fails while the first is in the middle of the same step: both go back."""
    activate = Pf.activate

    def refuse(self: Pf, vf: int) -> None:
        if self.name == "destination server net":
            raise RuntimeError("made to refuse")
        activate(self, vf)

    monkeypatch.setattr(Pf, "activate", refuse)
    with pytest.raises(MoveError, match=r"activate.*made to refuse") as caught:
        traveller.move(target)
    assert caught.value.source_runs, caught.value
    traveller.check_runs()
    traveller.here.check_at_rest()
    traveller.there.check_at_rest()


def test_a_server_dies_over_a_context(traveller: Traveller, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a command taken that nobody answers any more: no wait lasts for as long as a command may."""
    monkeypatch.setattr(pf, "COMMAND_SECONDS", FOR_EVER)
    disk, write = traveller.there.servers["disk"], Pf.write_last
    with ServerProcess("--vfs", "1", device="net") as net:
        there = Host({"disk": disk, "net": net}, {"disk": 1, "net": 1})

        def die(**_: object) -> bool:
            net.stop(signal.SIGKILL)
            return True

        def write_last(self: Pf, vf: int, state: list[Bytes]) -> None:
            if self.name == "destination server net":
                monkeypatch.setattr(self.owner.admin.queue, "kick", die)
            write(self, vf, state)

        monkeypatch.setattr(Pf, "write_last", write_last)
        with Machine(devices=there.devices(), incoming=True) as target, pytest.raises(MoveError) as caught:
            replace(traveller, there=there).move(target)
    assert caught.value.source_runs, caught.value
    assert caught.value.report.steps[-1].end < FOR_EVER
    # QEMU aborts without the server. It may be noticed first, and then this is said of the way back.
    assert f"VF 1 of net at the destination (server {net.folder}): the server hung up" in str(caught.value)
    traveller.check_runs()
    traveller.here.check_at_rest()
    there.check_at_rest("disk")


def test_refused_without_one_of_them(traveller: Traveller, target: Machine) -> None:
    """A VF that is not named would be left behind; the command line, and a guest that goes on."""
    done = command(traveller, target, "--vf", "disk/vf1")
    assert done.returncode == 1
    assert "other vfio-user devices too (net)" in done.stderr
    traveller.check_runs()


@pytest.mark.long
def test_there_and_back(traveller: Traveller) -> None:
    """By the library, then by the command in each dialect; the connection holds, no sector is lost."""
    for way in ("library", "context", "parts"):
        target = Machine(devices=traveller.there.devices(), incoming=True).__enter__()
        try:
            if way == "library":
                report = traveller.move(target)
                assert report.warnings == []
                assert {step.name for step in report.steps} == set(STEPS)
            else:
                net = f"net/vf{traveller.here.numbers['net']}:vf{traveller.there.numbers['net']}"
                vfs = ("--vf", "disk/vf1", "--vf", net)
                done = command(traveller, target, *vfs, "--dialect", way, "--json")
                assert done.returncode == 0, done.stderr
                told = json.loads(done.stdout)
                assert (told["dialect"], told["warnings"]) == (way, [])
            traveller.arrived(target)
        finally:
            if traveller.guest is not target:
                target.close()
        traveller.check_runs()
        traveller.there.check_at_rest()
    assert traveller.finish()["sectors_written"] >= 1000


def command(traveller: Traveller, target: Machine, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `vfu-migrate` to the other host."""
    words = [sys.executable, "-m", "vfu_client.move.cli", *options]
    ends = (("from", traveller.guest, traveller.here), ("to", target, traveller.there))
    for end, machine, host in ends:
        words += [f"--{end}-qmp", str(machine.qmp_path), f"--{end}-qtest", str(machine.qtest_path)]
        for kind, server in host.servers.items():
            words += [f"--{end}-server", f"{kind}={server.folder}"]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
