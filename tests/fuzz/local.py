"""The model in this process: a connection is a direct call, and nothing happens that no call causes."""

from __future__ import annotations

import logging
import mmap
import os
import select
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pymodel.build import Options, build
from pymodel.devices.block.ram_disk import RamDisk
from pymodel.devices.net.port import NetBackend
from pymodel.errors import MemoryFault
from pymodel.memory import Bytes, GuestMemory
from pymodel.pci.function import Function
from tests.fuzz.plain_disk import PlainDisk
from tests.fuzz.world import DISKS, PATIENCE, STALL, Finding
from vfu_client.vfio import protocol
from vfu_client.vfio.connection import Connection
from vfu_server.networks.switch import Switch
from vfu_server.networks.switch_port import SwitchPort

# A file descriptor on which nothing ever happens.
NEVER = os.eventfd(0, os.EFD_CLOEXEC)

# Turns of all functions after one access. A guest may keep its own function busy for ever.
TURNS = 64


class LocalMemory(GuestMemory):
    """The memory that a client mapped, with the faults of the real one (`vfu_server.vfio`)."""

    def __init__(self) -> None:
        self._regions: list[tuple[int, Bytes, bool]] = []

    def map(self, fd: int, offset: int, address: int, size: int, writable: bool) -> None:
        view = np.frombuffer(mmap.mmap(fd, size, offset=offset), np.uint8)
        self._regions.append((address, view, writable))

    def unmap(self, address: int, size: int) -> None:
        self._regions = [region for region in self._regions if region[0] != address or len(region[1]) != size]

    def _find(self, address: int, write: bool) -> tuple[int, Bytes]:
        for start, view, writable in self._regions:
            if start <= address < start + len(view):
                if write and not writable:
                    raise MemoryFault(f"{address:#x} is read-only")
                return address - start, view
        raise MemoryFault(f"{address:#x} is not mapped")

    def view(self, address: int, length: int, *, write: bool) -> list[Bytes]:
        if address + length > 1 << 64:
            raise MemoryFault(f"{address:#x} + {length:#x} wraps around")
        views = []
        while length:
            at, view = self._find(address, write)
            part = view[at : at + length]
            part.flags.writeable = write
            views.append(part)
            address, length = address + len(part), length - len(part)
        return views

    def is_mapped(self, address: int, length: int) -> bool:
        return any(
            start < address + length and address < start + len(view) for start, view, _ in self._regions
        )

    def _word(self, address: int, write: bool) -> Bytes:
        at, view = self._find(address, write)
        if at + 2 > len(view) or at & 1:
            raise MemoryFault(f"{address:#x}: no 16-bit access")
        return view[at : at + 2]

    def load_u16(self, address: int) -> int:
        return int.from_bytes(self._word(address, False).tobytes(), "little")

    def store_u16(self, address: int, value: int) -> None:
        self._word(address, True)[:] = (value & 0xFF, value >> 8)

    def fence(self) -> None:
        pass


class LocalHost:
    """The `Host` of one function while a client is attached. Its thread is whoever pumps the world."""

    def __init__(self) -> None:
        self.mapped = LocalMemory()
        self.memory_in_flux = False
        self.awake = False
        self.eventfds: dict[int, int] = {}
        self.timers: list[Callable[[], None]] = []
        self.posted: list[tuple[int, bytes]] = []

    @property
    def memory(self) -> GuestMemory:
        return self.mapped

    def msix(self, vector: int) -> None:
        if vector in self.eventfds:
            os.eventfd_write(self.eventfds[vector], 1)

    def intx(self) -> None:
        self.msix(0)

    def post_write(self, address: int, data: bytes) -> None:
        self.posted.append((address, data))

    def wake(self) -> None:
        self.awake = True

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        self.timers.append(call)
        self.awake = True

    def end(self, reason: str) -> None:
        raise Finding(f"no rule is fatal here: {reason}")


class Mistakes(logging.Handler):
    """Raises, within its context, where the model logs an exception that it did not let out."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)

    def __enter__(self) -> None:
        logging.getLogger("virtio").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("virtio").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            raise Finding(record.getMessage())


class LocalWorld:
    """The model, built as the server builds it."""

    def __init__(
        self, device: str = "blk", backends: Mapping[str, Any] | None = None, *, queues: int = 1
    ) -> None:
        """A PF and three VFs; without `backends` the disks that are fuzzed, or ports of one switch.

        The disks of device `file` are no part of a function's state.
        """
        if backends is None and device == "net":
            switch = Switch()
            backends = {name: NetBackend(SwitchPort(switch)) for name in DISKS}
        elif backends is None:
            kind = PlainDisk if device == "file" else RamDisk
            backends = {name: kind(size) for name, size in DISKS.items()}
        device = "blk" if device == "file" else device
        self._build(Options(device=device, backends=backends, vfs=3, total_vfs=3, queues=queues))

    def _build(self, options: Options) -> None:
        """Make the functions; nobody is attached."""
        self._pf = build(options, lock=threading.RLock)
        self.hosts: dict[str, LocalHost] = {}
        self.attached: dict[str, Function] = {}

    def function(self, name: str) -> Function:
        return self._pf if name == "pf" else self._pf.vfs[int(name[2:])]

    def connect(self, function: str) -> Connection:
        return LocalConnection(self, function)

    def pump(self) -> bool:
        """Let woken functions work. Whether all are quiet then."""
        for _ in range(TURNS):
            awake = [name for name, host in self.hosts.items() if host.awake or self._ready(name)]
            if not awake:
                return True
            for name in awake:
                self.serve(name)
        return False

    def _ready(self, name: str) -> bool:
        """Whether something that an attached function waits for happened, one that the PF took away too."""
        waiting = select.poll()
        for fd, events in self.attached[name].waits:
            waiting.register(fd, events)
        return bool(waiting.poll(0))

    def serve(self, name: str) -> None:
        """One turn of a function's thread."""
        host = self.hosts[name]
        host.awake = False
        begin = time.thread_time()
        timers, host.timers = host.timers, []
        with Mistakes():
            for timer in timers:
                timer()
            self.attached[name].service()
        taken = time.thread_time() - begin
        if taken > STALL:
            raise Finding(f"{name} held its lock for {taken:.2f} s")

    def wait(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> bool:
        deadline = time.monotonic() + seconds
        while not condition():
            if self.pump() or time.monotonic() > deadline:
                return condition()
        return True

    def renew_vfs(self, disable: Callable[[], None], enable: Callable[[], None]) -> None:
        disable()
        enable()

    def check(self) -> None:
        """An exception out of the model comes out of the access; nothing is left to look at."""

    def close(self) -> None:
        """Nothing outlives it."""


class LocalConnection(Connection):
    """A client of a function of the model."""

    def __init__(self, world: LocalWorld, name: str) -> None:
        self.path = name
        self.timeout = PATIENCE
        self.posted_writes = False
        self._world = world
        self._host = world.hosts[name] = LocalHost()
        self._function = world.attached[name] = world.function(name)
        self._function.attach(self._host)

    def close(self) -> None:
        if not self.closed:
            self._function.detach()
            del self._world.hosts[self.path], self._world.attached[self.path]

    def fileno(self) -> int:
        """What those who wait for an interrupt look at: nobody hangs up here while they wait."""
        return NEVER

    @property
    def closed(self) -> bool:
        return self._world.hosts.get(self.path) is not self._host

    def device_reset(self) -> None:
        self._function.device_reset()
        self._work()

    def _work(self) -> None:
        self._world.serve(self.path)
        self._world.pump()

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        if region == protocol.REGION_CONFIG:
            data = self._function.config_read(offset, count)
        else:
            data = self._function.bar_read(region, offset, count)
        self._work()
        return data

    def region_write(self, region: int, offset: int, data: bytes, *, posted: bool | None = None) -> None:
        if region == protocol.REGION_CONFIG:
            self._function.config_write(offset, data)
        else:
            self._function.bar_write(region, offset, data)
        self._work()

    def set_eventfds(self, index: int, start: int, fds: Sequence[int]) -> None:
        if index == protocol.IRQ_MSIX:
            self._host.eventfds.update(enumerate(fds, start))

    def disable_irqs(self, index: int) -> None:
        self._host.eventfds.clear()

    def unmask_irqs(self, index: int, start: int, count: int) -> None:
        pass

    def dma_map(self, fd: int | None, offset: int, address: int, size: int, *, writable: bool = True) -> None:
        assert fd is not None
        self._host.mapped.map(fd, offset, address, size, writable)

    def dma_unmap(self, address: int, size: int) -> None:
        self._host.mapped.unmap(address, size)
