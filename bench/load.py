"""VFs that are kept busy: drivers of ours set them up, and a program in C has requests on all of them."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.measure import BenchError
from bench.processes import BUILT
from pymodel.spec import block, virtio, virtio_pci
from vfu_client.drivers.block import BlockDriver
from vfu_client.vfio import protocol
from vfu_client.vfio.memory import PAGE, GuestMemory
from vfu_client.virtio.split import SplitQueue
from vfu_images import program
from vfu_images.workspace import PROJECT

PROGRAM = BUILT / "vf-load"

DEPTH = 32
SIZE = 4096
DISK_MIB = 4
"""Of each VF's disk in memory: small, so that many of them are full before anything is measured."""

FEATURES = frozenset({virtio.F_EVENT_IDX, virtio.F_ACCESS_PLATFORM, virtio.F_ORDER_PLATFORM})
"""What the program can do, beside VERSION_1: a split ring, kicked and interrupted where either side asks."""

FILL_SECONDS = 1.0
BEYOND_ALL_RUNS = 3600.0

Kind = Literal["read", "write"]


@dataclass(frozen=True)
class Report:
    """What a run came to.

    per_second  requests of all VFs together that completed within the run's time
    requests    all, also those that were under way at its end
    slowest     what the slowest VF completed, as a part of what one VF did on average
    load_us     processor time of the program for a request
    per_kick    requests for which the server is notified once
    """

    per_second: float
    requests: int
    slowest: float
    load_us: float
    per_kick: float


class Load:
    """Drivers of a server's first VFs, which `vf-load` has requests for. Ends with its context."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path, vfs: int) -> None:
        """Set up VF 1 to `vfs` of the server at `folder`, and fill their disks."""
        if not PROGRAM.exists():
            raise BenchError(f"{PROGRAM.relative_to(PROJECT)} is missing: `make bench` builds it")
        memory = GuestMemory()
        stack.callback(memory.close)
        self._region = memory.add_region(vfs * 2 * DEPTH * SIZE)
        self._descriptors = [self._region.fd]
        self._vfs: list[str] = []
        for number in range(1, vfs + 1):
            path = folder / f"vf{number}.sock"
            driver = stack.enter_context(BlockDriver.open(path, memory=memory, features=FEATURES))
            self._vfs.append(self._described(driver))
        self.run("write", vfs, FILL_SECONDS)

    def _described(self, driver: BlockDriver) -> str:
        """A VF as the program takes it."""
        device, (queue,) = driver.device, driver.queues
        assert isinstance(queue, SplitQueue)
        assert device.msix is not None
        descriptors = device.connection.fileno(), device.msix.interrupts[queue.index + 1].fileno()
        self._descriptors += descriptors
        room = device.memory.allocate(DEPTH * (SIZE + block.REQUEST.itemsize + 1), PAGE)
        areas = [part.address for part in queue.parts]
        fields = (descriptors[0], _kick(driver).hex(), descriptors[1], queue.size, *areas, room.address)
        return ":".join(map(str, fields))

    def run(self, kind: Kind, vfs: int, seconds: float) -> Report:
        """Keep the first `vfs` of them busy for so long. Raises BenchError where a request failed."""
        return _report(self._start(kind, vfs, seconds), vfs)

    @contextlib.contextmanager
    def busy(self, kind: Kind, vfs: int) -> Iterator[None]:
        """Meanwhile the first `vfs` of them are busy. Raises as `run`."""
        process = self._start(kind, vfs, BEYOND_ALL_RUNS)
        try:
            yield
        except BaseException:
            program.kill(process)
            raise
        process.terminate()
        _report(process, vfs)

    def _start(self, kind: Kind, vfs: int, seconds: float) -> subprocess.Popen[bytes]:
        """The program, with all of them busy."""
        sectors = (DISK_MIB << 20) // block.SECTOR
        numbers = (DEPTH, SIZE, sectors, seconds, self._region.fd, self._region.address)
        process = subprocess.Popen(
            [*program.DIE_WITH_PARENT, str(PROGRAM), kind, *map(str, numbers), *self._vfs[:vfs]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=self._descriptors,
        )
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise _failed(process)
        return process


def _report(process: subprocess.Popen[bytes], vfs: int) -> Report:
    """What the program says when it has ended. Raises BenchError where a request failed."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise _failed(process)
    with process:
        found = json.loads(line)
    completed = int(found["requests"])
    if not completed:
        raise BenchError(f"no request completed within {found['seconds']} s")
    return Report(
        per_second=completed / float(found["seconds"]),
        requests=int(found["begun"]),
        slowest=int(found["slowest"]) * vfs / completed,
        load_us=float(found["cpu_seconds"]) / completed * 1e6,
        per_kick=completed / max(int(found["kicks"]), 1),
    )


def _failed(process: subprocess.Popen[bytes]) -> BenchError:
    """Why the program ended."""
    _, errors = process.communicate()
    return BenchError(f"{PROGRAM.name} ended with {process.returncode}: {errors.decode().strip()}")


def _kick(driver: BlockDriver) -> bytes:
    """The message that notifies a VF of its first queue: a posted write, as QEMU's are."""
    device = driver.device
    structure = device.structures[virtio_pci.CAP_NOTIFY_CFG]
    device.common.write("queue_select", 0)
    offset = structure.offset + device.common.read("queue_notify_off") * device.notify_multiplier
    value = (0).to_bytes(2, "little")
    access = protocol.REGION_ACCESS.pack(offset, protocol.REGION_BAR0 + structure.bar, len(value)) + value
    flags = protocol.TYPE_COMMAND | protocol.FLAG_NO_REPLY
    size = protocol.HEADER.size + len(access)
    return protocol.HEADER.pack(0, protocol.Command.REGION_WRITE, size, flags, 0) + access
