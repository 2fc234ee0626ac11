"""The options `--net`, `--uplink`, `--mac` and `--mtu`: what each virtio-net function is connected to."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pymodel.devices.net.port import NetBackend, Port
from pymodel.spec import net
from vfu_server.networks.datagram import DatagramPort
from vfu_server.networks.frame_port import NoPort
from vfu_server.networks.links import LinkWatch
from vfu_server.networks.stream import StreamPort
from vfu_server.networks.switch import Switch, SwitchPort
from vfu_server.networks.tap import TapPort
from vfu_server.networks.uplink import Uplink

SWITCH: Final = "switch"
NONE: Final = "none"

_OUTSIDE: Final = r"tap:.+|stream:[^,]+(?:,server)?|dgram:[^,]+,[^,]+"
_FUNCTION: Final = r"(?:(pf|vf[1-9][0-9]*)=)?"

Given = Sequence[tuple[str | None, str]]


def net_option(text: str) -> tuple[str | None, str]:
    """(function or None for all, what it is connected to)."""
    match = re.fullmatch(rf"{_FUNCTION}({SWITCH}|{NONE}|{_OUTSIDE})", text, re.DOTALL)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give switch, none, tap:NAME, stream:PATH, stream:PATH,server or dgram:LOCAL,REMOTE"
        )
    return match[1], match[2]


def uplink_option(text: str) -> str:
    """What the switch is connected to."""
    if re.fullmatch(_OUTSIDE, text, re.DOTALL) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give tap:NAME, stream:PATH, stream:PATH,server or dgram:LOCAL,REMOTE"
        )
    return text


def mac_option(text: str) -> tuple[str | None, bytes]:
    """(function or None for the PF, address)."""
    match = re.fullmatch(rf"{_FUNCTION}([0-9A-Fa-f]{{2}}(?::[0-9A-Fa-f]{{2}}){{5}})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: give an address such as 02:00:00:00:00:01")
    address = bytes.fromhex(match[2].replace(":", ""))
    if address[0] & 1 or not any(address):
        raise argparse.ArgumentTypeError(f"{match[2]} is no address of one function")
    return match[1], address


def mtu_option(text: str) -> int:
    """The MTU that the driver is told."""
    value = int(text)
    if not net.MTU_MIN <= value <= net.MTU_MAX:
        raise argparse.ArgumentTypeError(f"{value} is not in {net.MTU_MIN} to {net.MTU_MAX}")
    return value


@dataclass(frozen=True, slots=True)
class NetOptions:
    """What the command line says. `seed` tells one server's addresses from another's."""

    nets: Given = ()
    uplink: str | None = None
    macs: Sequence[tuple[str | None, bytes]] = ()
    mtu: int | None = None
    seed: str = ""


class Networks:
    """The ports of all functions, by name, and the switch between them, from `open` to `close`.

    Raises ValueError for options that contradict each other.
    """

    def __init__(self, options: NetOptions, names: Sequence[str]) -> None:
        self._chosen = _chosen(dict.fromkeys(names, SWITCH), options.nets)
        self._macs = _macs(options, names)
        self._mtu = options.mtu
        self._outside = options.uplink
        if self._outside is not None and SWITCH not in self._chosen.values():
            raise ValueError("--uplink is the switch's, and no function is at the switch")
        if self._outside in self._chosen.values():
            raise ValueError(f"{self._outside} can't be the uplink and a function's")
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
            for name, kind in self._chosen.items():
                port = SwitchPort(switch) if kind == SWITCH else self._open(kind)
                self._opened.callback(port.close)
                self.backends[name] = NetBackend(port, self._macs[name], self._mtu)
            self._opened = self._opened.pop_all()
        return self.backends

    @property
    def ports(self) -> Mapping[str, Port]:
        """The port of each function."""
        return {name: backend.port for name, backend in self.backends.items()}

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
        return NoPort()


def _chosen(default: dict[str, str], given: Given) -> dict[str, str]:
    """What each function has: what is said of it, else what is said of all."""
    chosen = dict(default)
    for function, value in given:
        if function is None:
            chosen.update(dict.fromkeys(chosen, value))
    for function, value in given:
        if function is not None:
            if function not in chosen:
                raise ValueError(f"there is no function {function}: --total-vfs says how many VFs there are")
            chosen[function] = value
    outside = [value for value in chosen.values() if value not in {SWITCH, NONE}]
    for value in outside:
        if outside.count(value) > 1:
            raise ValueError(f"{value} can be one function's only: name it, as in pf={value}")
    return chosen


def _macs(options: NetOptions, names: Sequence[str]) -> dict[str, bytes]:
    """An address for each function: given, or counted on from the PF's, or made of the server's seed."""
    macs: dict[str, bytes] = {}
    for name in names:
        digest = hashlib.sha256(f"{options.seed}/{name}".encode()).digest()
        macs[name] = b"\x02" + digest[: net.MAC_SIZE - 1]  # locally administered
    for function, address in options.macs:
        if function is None:
            for index, name in enumerate(names):
                number = int.from_bytes(address) + index
                if number >= 1 << 8 * net.MAC_SIZE or number >> 40 & 1:
                    raise ValueError(
                        "--mac: the VFs' addresses count on from the PF's, and there are too few"
                    )
                macs[name] = number.to_bytes(net.MAC_SIZE)
    for function, address in options.macs:
        if function is not None:
            if function not in macs:
                raise ValueError(f"there is no function {function}: --total-vfs says how many VFs there are")
            macs[function] = address
    if len(set(macs.values())) < len(macs):
        raise ValueError("--mac: two functions would have the same address")
    return macs
