"""What all functions of a server are connected to: their ports, and the switch between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from pymodel.devices.net.port import NetBackend, Port
from vfu_server.networks.datagram import DatagramPort
from vfu_server.networks.frame_port import NoPort
from vfu_server.networks.links import LinkWatch
from vfu_server.networks.options import NONE, SWITCH, NetOptions
from vfu_server.networks.stream import StreamPort
from vfu_server.networks.switch import Switch
from vfu_server.networks.switch_port import SwitchPort
from vfu_server.networks.tap import TapPort
from vfu_server.networks.uplink import Uplink


class Networks:
    """The ports of all functions, by name, and the switch between them, from `open` to `close`.

    Raises ValueError for options that contradict each other.
    """

    def __init__(self, options: NetOptions, names: Sequence[str]) -> None:
        self._connections = options.connections(names)
        self._addresses = options.addresses(names)
        self._mtu = options.mtu
        self._outside = options.uplink
        self._links = LinkWatch()
        self._opened = ExitStack()
        self.uplink: Uplink | None = None
        self.backends: dict[str, NetBackend] = {}

    def open(self) -> Mapping[str, NetBackend]:
        """Open what each function stands on. Raises OSError with nothing left open."""
        with self._opened:
            self._opened.callback(self._links.close)
            switch = Switch()
            if self._outside is not None:
                self.uplink = Uplink(self._open(self._outside), switch)
                self._opened.callback(self.uplink.close)
            for name, kind in self._connections.items():
                port = SwitchPort(switch) if kind == SWITCH else self._open(kind)
                self._opened.callback(port.close)
                self.backends[name] = NetBackend(port, self._addresses[name], self._mtu)
            self._opened = self._opened.pop_all()
        return self.backends

    def close(self) -> None:
        """Close all ports. No function may be served any more."""
        self._opened.close()

    def _open(self, text: str) -> Port:
        kind, _, where = text.partition(":")
        if kind == "tap":
            return TapPort(where, self._links)
        if kind == "stream":
            path, server, _ = where.partition(",")
            return StreamPort(Path(path), server=bool(server))
        if kind == "dgram":
            local, _, remote = where.partition(",")
            return DatagramPort(Path(local), Path(remote))
        if kind == NONE:
            return NoPort()
        raise ValueError(f"{text!r} is no network")
