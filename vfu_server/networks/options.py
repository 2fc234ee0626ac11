"""The options `--net`, `--uplink`, `--mac` and `--mtu`: what each virtio-net function is connected to."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pymodel.spec import net
from vfu_server.function_option import FUNCTION, Given, chosen
from vfu_server.networks.tap import check_name
from vfu_server.socket_path import check_path

SWITCH: Final = "switch"
NONE: Final = "none"

_OUTSIDE: Final = r"tap:.+|stream:[^,]+(?:,server)?|dgram:[^,]+,[^,]+"


def net_option(text: str) -> tuple[str | None, str]:
    """(function or None for all, what it is connected to)."""
    match = re.fullmatch(rf"{FUNCTION}({SWITCH}|{NONE}|{_OUTSIDE})", text, re.DOTALL)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give switch, none, tap:NAME, stream:PATH, stream:PATH,server or dgram:LOCAL,REMOTE"
        )
    _check(match[2])
    return match[1], match[2]


def uplink_option(text: str) -> str:
    """What the switch is connected to."""
    if re.fullmatch(_OUTSIDE, text, re.DOTALL) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give tap:NAME, stream:PATH, stream:PATH,server or dgram:LOCAL,REMOTE"
        )
    _check(text)
    return text


def _check(text: str) -> None:
    """Refuse names that there can't be, whatever the machine is like."""
    kind, _, where = text.partition(":")
    try:
        if kind == "tap":
            check_name(where)
        elif kind in {"stream", "dgram"}:
            names = [where.removesuffix(",server")] if kind == "stream" else where.split(",")
            for name in names:
                check_path(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def mac_option(text: str) -> tuple[str | None, bytes]:
    """(function or None for the PF, address)."""
    match = re.fullmatch(rf"{FUNCTION}([0-9A-Fa-f]{{2}}(?::[0-9A-Fa-f]{{2}}){{5}})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: give an address such as 02:00:00:00:00:01")
    address = bytes.fromhex(match[2].replace(":", ""))
    if address[0] & 1 or not any(address):
        raise argparse.ArgumentTypeError(f"{match[2]} is no address of one function")
    return match[1], address


def mtu_option(text: str) -> int:
    """The MTU that the driver is told."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not net.MTU_MIN <= value <= net.MTU_MAX:
        raise argparse.ArgumentTypeError(f"{value} is not in {net.MTU_MIN} to {net.MTU_MAX}")
    return value


@dataclass(frozen=True, slots=True)
class NetOptions:
    """What the command line says. `seed` tells one server's addresses from another's.

    An address of no function is the PF's, and those of the VFs count on from it.
    """

    nets: Given[str] = ()
    uplink: str | None = None
    macs: Given[bytes] = ()
    mtu: int | None = None
    seed: str = ""

    def connections(self, names: Sequence[str]) -> dict[str, str]:
        """What each function is connected to, as `net_option` takes it.

        Raises ValueError where the options contradict each other.
        """
        found = chosen(dict.fromkeys(names, SWITCH), self.nets)
        outside = [value for value in found.values() if value not in {SWITCH, NONE}]
        for value in outside:
            if outside.count(value) > 1:
                raise ValueError(f"{value} can be one function's only: name it, as in pf={value}")
        if self.uplink is not None and SWITCH not in found.values():
            raise ValueError("--uplink is the switch's, and no function is at the switch")
        if self.uplink in outside:
            raise ValueError(f"{self.uplink} can't be the uplink and a function's")
        return found

    def addresses(self, names: Sequence[str]) -> dict[str, bytes]:
        """An address for each function: given, or counted on from the PF's, or made of the server's seed.

        Raises ValueError where there are too few, or two functions would have the same.
        """
        found: dict[str, bytes] = {}
        for name in names:
            digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
            found[name] = b"\x02" + digest[: net.MAC_SIZE - 1]  # locally administered
        for function, address in self.macs:
            if function is None:
                for index, name in enumerate(names):
                    number = int.from_bytes(address) + index
                    if number >= 1 << 8 * net.MAC_SIZE or number >> 40 & 1:
                        raise ValueError(
                            "--mac: the VFs' addresses count on from the PF's, and there are too few"
                        )
                    found[name] = number.to_bytes(net.MAC_SIZE)
        named = [(function, address) for function, address in self.macs if function is not None]
        found = chosen(found, named)
        if len(set(found.values())) < len(found):
            raise ValueError("--mac: two functions would have the same address")
        return found
