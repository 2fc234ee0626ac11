"""A running vfu-server as its monitor tells of it: which functions it serves, and where they are to be."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfu_client.qemu.monitor import Monitor, MonitorError

PF = "pf"


class ServerError(MonitorError):
    """There is no server, or it has not what is needed; the message says what to do."""


@dataclass(frozen=True)
class Bar:
    """A BAR of a VF: where the PF's SR-IOV capability has it, and where its client has it."""

    vf: str
    number: int
    size: int
    wanted: int
    found: int


@dataclass(frozen=True)
class Sriov:
    """Where a guest has the VFs: their numbers on the bus count from that of the PF, which is 0."""

    enabled_vfs: int
    first_vf_offset: int
    vf_stride: int

    def devfn(self, function: str) -> int:
        """Device and function number of the PF or a VF."""
        if function == PF:
            return 0
        return self.first_vf_offset + (int(function.removeprefix("vf")) - 1) * self.vf_stride


@dataclass(frozen=True)
class Served:
    """All functions of a server. `attached` are those that have a client; `sriov` is None where SR-IOV is for
    the PF's owner and not for a guest.
    """

    folder: Path
    functions: tuple[str, ...]
    attached: frozenset[str]
    sriov: Sriov | None
    bars: tuple[Bar, ...]

    def socket(self, function: str) -> Path:
        """The socket of a function."""
        return self.folder / f"{function}.sock"

    @property
    def vfs(self) -> list[str]:
        """The names of the VFs."""
        return [name for name in self.functions if name != PF]

    def for_guest(self) -> Sriov:
        """What the guest sees. Raises ServerError where it sees no SR-IOV."""
        if self.sriov is None:
            raise ServerError(
                f"the server in {self.folder} keeps SR-IOV for the PF's owner: start it with --sriov guest,"
                f" or plug functions one by one, as `vfu-qemu {self.folder} --json` has them"
            )
        return self.sriov

    @property
    def memory_of_bars(self) -> int:
        """Bytes of the BARs of all VFs, and of the PF, which has as much as one."""
        return sum(bar.size for bar in self.bars) * (len(self.vfs) + 1) // max(1, len(self.vfs))

    @property
    def addressed(self) -> bool:
        """Whether the SR-IOV capability says where the VFs' BARs are."""
        first = [bar for bar in self.bars if bar.vf == "vf1"]
        # While a guest finds out the size, a BAR reads as ones.
        return bool(first) and all(0 < bar.wanted < 1 << 52 for bar in first)

    @property
    def misplaced(self) -> list[Bar]:
        """The BARs of VFs that have a client, and are not where the capability says."""
        return [bar for bar in self.bars if bar.vf in self.attached and bar.found != bar.wanted]


class Server(Monitor):
    """A server's monitor."""

    error = ServerError

    def __init__(self, folder: Path) -> None:
        """`folder` is its --socket-dir."""
        self.folder = Path(os.path.abspath(folder))
        super().__init__(
            "vfu-server",
            self.folder / "monitor.sock",
            f"is a vfu-server running with --socket-dir {folder}? Its monitor takes 16 clients at a time",
        )

    async def served(self) -> Served:
        """The functions as they are now. Raises ServerError."""
        rows = await self.execute("query-functions")
        by_name: Mapping[str, Mapping[str, Any]] = {row["name"]: row for row in rows}
        sriov = by_name.get(PF, {}).get("sriov")
        return Served(
            self.folder,
            tuple(by_name),
            frozenset(name for name, row in by_name.items() if row["client-attached"]),
            sriov and Sriov(sriov["num-vfs"], sriov["first-vf-offset"], sriov["vf-stride"]),
            tuple(_bars(by_name.items())),
        )


def _bars(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[Bar]:
    for name, row in rows:
        for bar in row.get("bars", ()):
            yield Bar(name, bar["bar"], bar["size"], bar["wanted"], bar["found"])
