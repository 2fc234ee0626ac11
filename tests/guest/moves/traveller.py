"""A guest that is moved to and fro between two servers, and writes to its disk all the time."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from pymodel.spec import context
from tests.guest.guest_disk import disk_of, finish, progress, start_io, wait_written
from tests.server_process import ServerProcess
from vfu_client.move.move import Move
from vfu_client.move.moved_vf import MovedVf, Vf
from vfu_client.move.qemu import Qemu
from vfu_client.move.report import Report
from vfu_client.move.side import Side
from vfu_client.owner.admin import AdminError
from vfu_client.owner.owner import OwnerDriver
from vfu_images.job import Job
from vfu_images.machine import Machine

OPTIONS = ["--vfs", "4", "--disk", "pf=ram:1M"]


@dataclass
class Traveller:
    """A guest on VF 1 of the server `here`, which writes to its disk all the time."""

    guest: Machine
    job: Job
    here: ServerProcess
    there: ServerProcess

    def side(self, role: str, machine: Machine, server: ServerProcess) -> Side:
        """One side of a move."""
        return Side(role, Qemu(role, machine.qmp_path, machine.qtest_path), {"": server.folder})

    def move(
        self,
        target: Machine,
        *,
        server: ServerProcess | None = None,
        vfs: Sequence[MovedVf] = (MovedVf(Vf(1), Vf(1)),),
        before_step: Callable[[Move, str], None] | None = None,
    ) -> Report:
        """Move to another server (`there` by default)."""
        move: Move

        def hook(step: str) -> None:
            if before_step is not None:
                before_step(move, step)

        move = Move(
            self.side("source", self.guest, self.here),
            self.side("destination", target, server or self.there),
            vfs,
            before_step=hook,
        )
        return asyncio.run(move.run())

    def incoming(self) -> Machine:
        """A QEMU on the other server that waits for the guest; the caller closes it."""
        return Machine(devices=[self.there.qemu_device("vf1")], incoming=True).__enter__()

    def arrived(self, target: Machine) -> None:
        """Note that the guest is in `target` now, on the other server."""
        self.guest.close()
        self.guest, self.job = target, self.job.moved(target.check)
        self.here, self.there = self.there, self.here

    def finish(self) -> dict[str, Any]:
        """End the job, checked: its figures. The next test gets another one."""
        found = finish(self.job)
        self.job = start_io(self.guest, disk_of(self.guest, "vf1"))
        return found

    def check_runs(self) -> None:
        """The guest runs and writes, and the VF is as it was before a move: active, and no write record."""
        assert self.guest.qmp("query-status")["status"] == "running"
        assert self.guest.qmp("query-migrate-parameters")["downtime-limit"] == 300
        before = progress(self.job)
        after = wait_written(self.job, before["sectors_written"] + 500)
        assert (after["lost"], after["corrupt"], after["errors"]) == (0, 0, 0)
        with OwnerDriver.open(self.here.socket("pf")) as owner:
            assert owner.mode_get(1) == context.MODE_ACTIVE
            with pytest.raises(AdminError):
                owner.write_record_read(1)


def command(traveller: Traveller, target: Machine, *options: str) -> list[str]:
    """The command line of `vfu-migrate` for a move to the other server."""
    return command_line((traveller.guest, traveller.here), (target, traveller.there), *options)


def command_line(
    source: tuple[Machine, ServerProcess], destination: tuple[Machine, ServerProcess], *options: str
) -> list[str]:
    """The command line of `vfu-migrate` for VF 1."""
    words = [sys.executable, "-m", "vfu_client.move.cli", "--vf", "vf1", *options]
    for end, (machine, server) in (("from", source), ("to", destination)):
        words += [f"--{end}-qmp", str(machine.qmp_path), f"--{end}-qtest", str(machine.qtest_path)]
        words += [f"--{end}-server", str(server.folder)]
    return words
