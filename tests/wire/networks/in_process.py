"""A server of network functions in the test's own process, and what of it was Python's work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pymodel.devices.net.port import NetBackend
from pymodel.memory import Bytes
from tests.wire.frames import mac
from tests.wire.in_process import serving
from vfu_client.drivers.net import NetDriver
from vfu_server.networks.frame_port import FramePort
from vfu_server.networks.switch import Switch
from vfu_server.networks.switch_port import SwitchPort
from vfu_server.server import Server


@dataclass
class Served:
    """A PF and VFs at one switch. `asked` are the frames that went through Python, by what it did."""

    folder: Path
    ports: dict[str, SwitchPort]
    server: Server
    asked: dict[str, int] = field(default_factory=lambda: {"send": 0, "receive": 0})

    @contextlib.contextmanager
    def driver(self, number: int, **options: Any) -> Iterator[NetDriver]:
        """A VF, driven as by a kernel: it waits for no answer to a write."""
        path = self.folder / f"vf{number}.sock"
        with NetDriver.open(path, timeout=20.0, posted_writes=True, **options) as driver:
            assert driver.mac  # an answer: all that was written before is done
            yield driver

    def lost(self, number: int) -> int:
        """Frames for a VF that are lost at its port."""
        return self.ports[f"vf{number}"].counters()["dropped-receiving"]


@contextlib.contextmanager
def served(monkeypatch: pytest.MonkeyPatch, *, vfs: int) -> Iterator[Served]:
    """The functions have the addresses mac(0) and so on, that of the PF first."""
    switch = Switch()
    names = ["pf", *(f"vf{number}" for number in range(1, vfs + 1))]
    with contextlib.ExitStack() as stack:
        ports = {name: SwitchPort(switch) for name in names}
        for port in ports.values():
            stack.callback(port.close)
        backends = {name: NetBackend(ports[name], mac(number)) for number, name in enumerate(names)}
        path, server = stack.enter_context(serving("net", backends))
        found = Served(path, ports, server)
        send, receive = FramePort.send, FramePort.receive

        def counted_send(port: FramePort, frame: Sequence[Bytes]) -> bool:
            found.asked["send"] += 1
            return send(port, frame)

        def counted_receive(port: FramePort) -> Bytes | None:
            frame = receive(port)
            found.asked["receive"] += frame is not None
            return frame

        monkeypatch.setattr(FramePort, "send", counted_send)
        monkeypatch.setattr(FramePort, "receive", counted_receive)
        yield found
        assert not any(thread.failed for thread in found.server.threads.values())
