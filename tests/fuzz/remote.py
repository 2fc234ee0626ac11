"""A real `vfu-server` process, a neighbour that uses VF 3 all the time, a watch on the server's memory."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.world import DISKS, PATIENCE, STALL, Finding, memory_bound
from tests.server_process import ServerProcess
from vfu_client.drivers.block import BlockDriver
from vfu_client.drivers.net import NetDriver
from vfu_client.vfio.connection import Connection, ServerUnreachableError

# Between two looks of the neighbour; a machine that lets a sleeper oversleep by more than the second says
# nothing about the server.
PERIOD = 0.05
BUSY = 0.3
# More processes than processors that want to run: then it may take longer.
CROWD = 1.5 * (os.cpu_count() or 1)
CROWDED_STALL = 4 * STALL


class BlockNeighbour:
    """Reads what it has written."""

    def __init__(self, socket: Path) -> None:
        self._disk = BlockDriver.open(socket, timeout=PATIENCE)

    def works(self, turn: int) -> bool:
        self._disk.write(turn, bytes([turn]) * 512)
        return self._disk.read(turn).tobytes() == bytes([turn]) * 512

    def close(self) -> None:
        self._disk.close()


class NetNeighbour:
    """Sends a frame that is for nobody, and has itself received by an address of its own."""

    def __init__(self, socket: Path) -> None:
        self._net = NetDriver.open(socket, timeout=PATIENCE)
        self._net.set_mode(0, False)

    def works(self, turn: int) -> bool:
        self._net.poll()
        address = bytes([2, 0, 0, 0, 3, turn])
        self._net.set_mac(address)
        self._net.send(bytes([2, 0, 0, 0, 4, turn]) + address + bytes(48))
        self._net.flush()
        return self._net.mac == address

    def close(self) -> None:
        self._net.close()


class RemoteWorld:
    """A server process and what is watched about it."""

    def __init__(self, device: str = "blk") -> None:
        """The disks of device `file` are files; of `net` there are none."""
        self._folder = tempfile.TemporaryDirectory(prefix="vfu-")
        backends = {
            "blk": {name: f"ram:{size}" for name, size in DISKS.items()},
            "file": {name: f"{self._folder.name}/{name},size={size}" for name, size in DISKS.items()},
            "net": {},
        }[device]
        disks = [option for name, disk in backends.items() for option in ("--disk", f"{name}={disk}")]
        self._server = ServerProcess("--vfs", "3", *disks, device="net" if device == "net" else "blk")
        self._server.__enter__()
        self._open = NetNeighbour if device == "net" else BlockNeighbour
        try:
            self._neighbour = self._open(self._server.socket("vf3"))
        except BaseException:
            self._server.close()
            raise
        self.idle = self._own_memory()
        self.most = self.idle
        self.slowest = 0.0
        self._trouble = ""
        self._logged = 0
        self._start()

    def _start(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _own_memory(self) -> int:
        """Bytes of the server that are not the guests'."""
        for line in Path(f"/proc/{self._server.process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
        raise Finding("the server ended:\n" + self._server.log[-4000:])

    def _watch(self) -> None:
        turn = 0
        try:
            while not self._trouble and not self._stopping.is_set():
                before = time.monotonic()
                self._stopping.wait(PERIOD)
                start = time.monotonic()
                turn = (turn + 1) & 0xFF
                same = self._neighbour.works(turn)
                taken = time.monotonic() - start
                if not same:
                    self._trouble = "the neighbour did not get what it had asked for"
                if start - before < PERIOD + BUSY:
                    self.slowest = max(self.slowest, taken)
                    if taken > (STALL if os.getloadavg()[0] < CROWD else CROWDED_STALL):
                        self._trouble = f"the neighbour took {taken:.2f} s"
                self.most = max(self.most, self._own_memory())
                if self.most - self.idle > memory_bound():
                    self._trouble = f"the server took {self.most - self.idle} bytes, bound {memory_bound()}"
        except Exception as error:  # noqa: BLE001 - whatever it is, the campaign has to hear of it
            self._trouble = f"the neighbour: {error!r}"

    def connect(self, function: str) -> Connection:
        """As QEMU does: only writes that nobody waits for are served without the interpreter."""
        return Connection(self._server.socket(function), timeout=PATIENCE, posted_writes=True)

    def wait(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> bool:
        deadline = time.monotonic() + seconds
        pause = 0.0
        while not condition():
            if time.monotonic() > deadline:
                return condition()
            time.sleep(pause)
            pause = min(pause + 0.0002, 0.01)
        return True

    def renew_vfs(self, disable: Callable[[], None], enable: Callable[[], None]) -> None:
        self._stop()
        self.check()
        self._neighbour.close()
        disable()
        # Until then a client would reach the VF that is gone.
        sockets = [self._server.socket(f"vf{number}") for number in (1, 2, 3)]
        if not self.wait(lambda: not any(socket.exists() for socket in sockets)):
            raise Finding("VFs are served without VF Enable")
        enable()
        if not self.wait(self._neighbour_comes):
            raise Finding("VF 3 is not served")
        self._start()

    def _neighbour_comes(self) -> bool:
        """Whether VF 3, the last one to be served, is there for its neighbour."""
        try:
            self._neighbour = self._open(self._server.socket("vf3"))
        except ServerUnreachableError:
            return False
        return True

    def check(self) -> None:
        if not self._server.alive:
            raise Finding("the server ended:\n" + self._server.log[-4000:])
        with (self._server.folder / "log").open("rb") as log:
            log.seek(self._logged)
            text = log.read().decode(errors="replace")
            # A line may have been written in part.
            self._logged = max(log.tell() - 20, 0)
        for bug in ("Traceback", "internal error"):
            if bug in text:
                raise Finding("the server logged a bug:\n" + text[-4000:])
        if self._trouble:
            raise Finding(self._trouble)

    def close(self) -> None:
        self._stop()
        try:
            self.check()
            self._neighbour.close()
            if self._server.stop() != 0:
                raise Finding("the server did not end cleanly:\n" + self._server.log[-4000:])
        finally:
            self._server.close()
            self._folder.cleanup()
