"""The VFs' own BARs in QEMU: programmed to where the PF's SR-IOV capability says, as firmware would have."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

from pymodel.spec import pci
from vfu_client.plug.server import Bar, Served, Server, ServerError
from vfu_client.qemu.address import Address
from vfu_client.qemu.config_space import CONFIG_ADDRESS, CONFIG_DATA, Ecam, selected
from vfu_client.qemu.qtest import QTest
from vfu_client.qemu.running import QemuError, RunningQemu, same_socket

Say = Callable[[str], None]

SETTLE_SECONDS = 5.0
"""For the server to see what was written."""

POLL_SECONDS = 0.1

ANSWER = re.compile(r"= 0x([0-9a-fA-F]+)")


async def await_addresses(server: Server, seconds: float, say: Say) -> Served:
    """Wait until the guest has given the VFs addresses, and changes them no more. Raises ServerError."""
    deadline = time.monotonic() + seconds
    tell_at = time.monotonic() + 3
    before: tuple[int, ...] | None = None
    while True:
        served = await server.served()
        if served.addressed:
            # A guest that finds out the size of a BAR has it elsewhere for a moment.
            wanted = tuple(bar.wanted for bar in served.bars)
            if wanted == before:
                return served
            before = wanted
        if time.monotonic() > deadline:
            raise ServerError(
                f"within {seconds:g} s the guest gave the VFs no addresses, though all is plugged. It has not"
                " looked there yet, or the port's window is too small for all VFs: then its kernel's log says"
                " so, and the port needs pref64-reserve=32M. `vfu-qemu place` goes on from here"
            )
        if time.monotonic() > tell_at:
            say("waiting for the guest to give the VFs addresses")
            tell_at += 5
        await asyncio.sleep(POLL_SECONDS)


async def devices_of(served: Served, qemu: RunningQemu) -> dict[str, str]:
    """The server's functions that this QEMU has, and the ids of their devices. Raises QemuError."""
    found = {}
    for device, named in (await qemu.devices()).items():
        for function in served.functions:
            # Quicker than to look at files: there may be hundreds of each.
            if named.endswith(f"{function}.sock") and same_socket(named, served.socket(function)):
                found[function] = device
    return found


async def place(server: Server, qemu: RunningQemu, qtest: Path | None, say: Say) -> int:
    """Program what is elsewhere; how many BARs that were. Raises ServerError, QemuError, QTestError."""
    served = await server.served()
    if not served.addressed:
        served.for_guest()
        raise ServerError(
            "the SR-IOV capability says nothing of where the VFs' BARs are: the guest has not set up the PF"
        )
    misplaced = served.misplaced
    if misplaced:
        where = await _addresses(served, qemu, sorted({bar.vf for bar in misplaced}))
        writes = [
            (where[bar.vf], pci.BAR_FIRST + 4 * bar.number + 4 * half, bar.wanted >> 32 * half & 0xFFFFFFFF)
            for bar in misplaced
            for half in (0, 1)
        ]
        ecam = await _ecam(qemu, qtest)
        if qtest is not None and ecam is not None:
            say(f"programming {len(misplaced)} BARs through qtest")
            await asyncio.to_thread(_write_ecam, qtest, ecam, writes)
        else:
            say(f"programming {len(misplaced)} BARs through QMP; the guest stands still meanwhile")
            await _write_ports(qemu, writes)
    left = await _misplaced_after(server)
    if left:
        first = left[0]
        raise ServerError(
            f"{len(left)} BARs did not take their addresses: BAR {first.number} of {first.vf} is at"
            f" {first.found:#x}, and the SR-IOV capability says {first.wanted:#x}. If the guest moved them"
            " meanwhile, run `vfu-qemu place` again"
        )
    return len(misplaced)


async def _misplaced_after(server: Server) -> Sequence[Bar]:
    """What is elsewhere once the server has seen what was written."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        left = (await server.served()).misplaced
        if not left or time.monotonic() > deadline:
            return left
        await asyncio.sleep(POLL_SECONDS)


async def _addresses(served: Served, qemu: RunningQemu, vfs: Sequence[str]) -> dict[str, Address]:
    """Where VFs are, which is where SR-IOV says. Raises QemuError."""
    devices = await devices_of(served, qemu)
    missing = [name for name in ("pf", *vfs) if name not in devices]
    if missing:
        raise QemuError(
            f"{qemu.name} at {qemu.qmp_path} does not have {', '.join(missing)} of {served.folder}: does"
            " another QEMU?"
        )
    pf, *found = await qemu.addresses([devices[name] for name in ("pf", *vfs)])
    for vf, address in zip(vfs, found, strict=True):
        slot, function = divmod(served.for_guest().devfn(vf), 8)
        wanted = Address(pf.bus, slot, function)
        if address != wanted or (pf.slot, pf.function) != (0, 0):
            raise QemuError(
                f"{qemu.name}: {vf} is at {address} and its PF at {pf}, and a guest looks for it at {wanted}:"
                f" start QEMU with what `vfu-qemu {served.folder}` prints"
            )
    return dict(zip(vfs, found, strict=True))


# -- two ways to write configuration space


async def _ecam(qemu: RunningQemu, qtest: Path | None) -> Ecam | None:
    """Where ECAM is, None on a PC without qtest or whose guest has it nowhere. Raises QemuError."""
    space = await qemu.config_space()
    if not isinstance(space, Ecam):
        return None if qtest is None else await qemu.guests_ecam()
    if qtest is None:
        raise QemuError(
            f"{qemu.name}: this machine's PCI registers are reached through qtest alone: start it with"
            " -qtest unix:QTEST,server=on,wait=off -qtest-log none, and give --qtest QTEST"
        )
    return space


def _write_ecam(path: Path, ecam: Ecam, writes: Sequence[tuple[Address, int, int]]) -> None:
    """Each register in one access, so that the guest can go on."""
    with QTest(path) as qtest:
        qtest.run_steps([ecam.write(at, register, 4, value) for at, register, value in writes])


async def _write_ports(qemu: RunningQemu, writes: Sequence[tuple[Address, int, int]]) -> None:
    """Each register takes two accesses, and the guest may be between two of its own."""
    async with _standing_still(qemu):
        said = await _hmp(qemu, f"i /w {CONFIG_ADDRESS:#x}")
        selected = ANSWER.search(said)
        if selected is None:
            raise QemuError(f"{qemu.name}: the monitor's command `i` says {said.strip()!r}")
        try:
            for line in _port_writes(writes):
                await _hmp(qemu, line)
        finally:
            await _hmp(qemu, f"o /w {CONFIG_ADDRESS:#x} 0x{selected[1]}")


def _port_writes(writes: Sequence[tuple[Address, int, int]]) -> Iterator[str]:
    for at, register, value in writes:
        yield f"o /w {CONFIG_ADDRESS:#x} {selected(at, register):#x}"
        yield f"o /w {CONFIG_DATA:#x} {value:#x}"


async def _hmp(qemu: RunningQemu, line: str) -> str:
    return str(await qemu.execute("human-monitor-command", {"command-line": line}))


@contextlib.asynccontextmanager
async def _standing_still(qemu: RunningQemu) -> AsyncIterator[None]:
    """The guest runs on afterwards if it ran."""
    if await qemu.status() != "running":
        yield
        return
    await qemu.execute("stop")
    try:
        yield
    finally:
        await qemu.execute("cont")
