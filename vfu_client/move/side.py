"""One side of a move, source or destination: a QEMU, and the PFs of the servers whose VFs that QEMU has."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

from vfu_client.move.dialect import CONTEXT
from vfu_client.move.moved_vf import Vf
from vfu_client.move.pci_state import NobodyAnswersError, PciState, identity
from vfu_client.move.pf import Pf, SideError
from vfu_client.move.progress import nobody
from vfu_client.move.qemu import Qemu
from vfu_client.owner.admin import AdminError
from vfu_client.owner.explain import explain
from vfu_client.owner.owner import CONTEXT_OPCODES, DriverRuleError
from vfu_client.owner.part import BadPartsError
from vfu_client.owner.stream import BadContextError
from vfu_client.qemu.address import Address
from vfu_client.qemu.qtest import QTestError
from vfu_client.qemu.running import QemuError, same_socket
from vfu_client.vfio.pci import Capability
from vfu_client.virtio.driver_queue import QueueBrokenError
from vfu_client.virtio.function import NegotiationError

Parameters = TypeVarTuple("Parameters")
T = TypeVar("T")


FAILURES = (
    AdminError,
    BadContextError,
    BadPartsError,
    DriverRuleError,
    LookupError,
    NegotiationError,
    OSError,
    QueueBrokenError,
)
"""What a PF's methods raise beside SideError, and what says nothing of whose it is."""

NOBODY = 0xFFFF_FFFF


def reason(error: BaseException) -> str:
    """A failure in words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def noted_servers(notes: Mapping[str, Any]) -> dict[str, Path]:
    """The servers that `Side.plain` told of."""
    return {str(server): Path(folder) for server, folder in notes["servers"].items()}


async def attempt(work: Awaitable[Any], warnings: list[str]) -> bool:
    """Do something whose failure must not keep the rest from being done; whether it was done."""
    try:
        await work
    except Exception as error:  # noqa: BLE001  # whatever it is, what comes after it must be done too
        warnings.append(reason(error))
        return False
    return True


class Side:
    """A QEMU and its servers: the folder of each by its name, which is empty where there is only one.

    What blocks runs in threads: one for each PF and one for qtest, one call at a time in each. A call that is
    cancelled runs on in its thread; calls that follow come after it. `say` hears how far large states are.
    """

    def __init__(
        self,
        name: str,
        qemu: Qemu,
        servers: Mapping[str, Path],
        *,
        context_opcodes: int = CONTEXT_OPCODES,
        dialect: str = CONTEXT,
        say: Callable[[str], None] = nobody,
    ) -> None:
        self.name = name
        self.qemu = qemu
        self.context_opcodes = context_opcodes
        self.dialect = dialect
        self._pfs = {
            server: Pf(f"{name} server {server}".strip(), folder, context_opcodes, dialect, say)
            for server, folder in servers.items()
        }
        self._threads = {
            server: ThreadPoolExecutor(1, thread_name_prefix=f"{name}-{server or 'owner'}")
            for server in servers
        }
        self._qtest_thread = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-qtest")

    @classmethod
    def load(
        cls,
        name: str,
        notes: Mapping[str, Any],
        context_opcodes: int,
        dialect: str,
        say: Callable[[str], None] = nobody,
    ) -> Side:
        """The side that `plain` told of. Raises LookupError, TypeError or ValueError for what it did not."""
        qemu = Qemu.at(name, Path(notes["qmp"]), Path(notes["qtest"]))
        servers = noted_servers(notes)
        return cls(name, qemu, servers, context_opcodes=context_opcodes, dialect=dialect, say=say)

    async def open(self) -> None:
        """Connect to QEMU and to the PFs. Raises QemuError, QTestError or SideError; `close` is due in any
        case.
        """
        await self.qemu.connect()
        await self._check_owner()
        for server, pf in self._pfs.items():
            try:
                await _run(self._threads[server], pf.open)
            except FAILURES as error:
                raise SideError(f"the {pf.name} ({pf.folder}): {self._reason(error)}") from error

    async def _check_owner(self) -> None:
        """Raise SideError if a PF is the guest's own: nobody else can stop its VFs, and it can't be moved."""
        devices = await self.qemu.devices()
        for pf in self._pfs.values():
            for name, named in devices.items():
                if same_socket(named, pf.folder / "pf.sock"):
                    raise SideError(
                        f"the {self.name} QEMU has the PF of {pf.folder} as its device {name!r}: a guest that"
                        " owns its PF cannot move. Give the guest VFs only, and the server --sriov owner"
                    )

    elsewhere = False
    """Whether a side is on another host, and may be cut off."""

    cut: Exception | None = None
    """Why nothing can be asked of a side any more; never of one on this host."""

    async def open_again(self) -> None:
        """Reach a side once more that was cut off. Raises SideError, QemuError."""

    async def ready(self) -> None:
        """The guest may be told to go on here: from now on the other side alone says where it runs."""

    async def wait_until_quiet(self) -> None:
        """Return when the VFs of a side that was cut off do nothing any more, whatever they did."""

    async def open_what_is_there(self) -> list[str]:
        """As `open`, for what may be gone in part: what was not reached, in words. Nothing is raised."""
        missing = []
        try:
            await self.qemu.connect()
        except (QemuError, QTestError) as error:
            missing.append(str(error))
        for server, pf in self._pfs.items():
            try:
                await _run(self._threads[server], pf.open)
            except (SideError, *FAILURES) as error:
                missing.append(f"the {pf.name} ({pf.folder}): {self._reason(error)}")
        return missing

    def plain(self) -> dict[str, Any]:
        """Where its QEMU and its servers are, for a journal."""
        return {
            "qmp": str(self.qemu.qmp_path.absolute()),
            "qtest": str(self.qemu.qtest_path.absolute()),
            "servers": {server: str(pf.folder.absolute()) for server, pf in self._pfs.items()},
        }

    async def close(self) -> None:
        """Hang up on all; all go on."""
        await self.qemu.close()
        for server, pf in self._pfs.items():
            await _run(self._threads[server], pf.close)
        for thread in (*self._threads.values(), self._qtest_thread):
            thread.shutdown()

    async def call(self, vf: Vf, function: Callable[[Pf, int, *Parameters], T], *arguments: *Parameters) -> T:
        """Run a method of Pf for a VF, in its PF's thread, after what that is doing.

        What it raises is SideError, and names the VF and the server.
        """
        pf = self._pfs[vf.server]
        try:
            return await _run(self._threads[vf.server], function, pf, vf.number, *arguments)
        except FAILURES as error:
            what = f"{vf} at the {self.name} (server {pf.folder})"
            raise SideError(f"{what}: {self._reason(error)}") from error

    async def check_attached(self, vf: Vf, address: Address) -> None:
        """Raise SideError unless QEMU is still attached to the VF; the machine must be stopped.

        QEMU itself is silent about it: it hangs up on a server that does not answer in time, for good.
        """
        if await self.outside(identity, self.qemu.qtest, self.qemu.registers, address) == NOBODY:
            raise self._lost(vf)

    async def write_pci(self, state: PciState) -> None:
        """`PciState.write`, into the machine of this side. Raises as that does."""
        await self.outside(state.write, self.qemu.qtest, self.qemu.registers)

    async def read_pci(self, vf: Vf, address: Address, likely: Sequence[Capability]) -> PciState:
        """`PciState.read` of a VF. Raises SideError as `check_attached`."""
        qemu = self.qemu
        try:
            return await self.outside(PciState.read, qemu.qtest, qemu.registers, address, likely)
        except NobodyAnswersError as error:
            raise self._lost(vf) from error

    def _lost(self, vf: Vf) -> SideError:
        what = f"{vf} at the {self.name} (server {self._pfs[vf.server].folder})"
        return SideError(
            f"{what}: QEMU hung up on it, for good: the server ended, or was silent for longer than"
            " QEMU's x-msg-timeout allows"
        )

    def _reason(self, error: BaseException) -> str:
        return explain(error, self.context_opcodes) if isinstance(error, AdminError) else reason(error)

    async def outside(self, function: Callable[[*Parameters], T], *arguments: *Parameters) -> T:
        """Run something with qtest, in its thread, after what that is doing."""
        return await _run(self._qtest_thread, function, *arguments)

    async def settle(self) -> None:
        """Wait for what cancelled calls left running."""
        for thread in (*self._threads.values(), self._qtest_thread):
            await _run(thread, lambda: None)

    async def device(self, vf: Vf, given: str | None) -> str:
        """The id of the QEMU device that is this VF; one that is given must exist. Raises QemuError."""
        devices = await self.qemu.devices()
        if given is not None:
            if given not in devices:
                has = ", ".join(devices) or "none"
                raise QemuError(f"the {self.name} QEMU has no vfio-user device {given!r}: it has {has}")
            return given
        socket = self._pfs[vf.server].folder / f"vf{vf.number}.sock"
        for name, named in devices.items():
            if same_socket(named, socket):
                return name
        raise QemuError(
            f"no device of the {self.name} QEMU is connected to {socket}: look at --vf, or name the device"
            " with --device (it needs an id)"
        )


async def _run(
    thread: ThreadPoolExecutor, function: Callable[[*Parameters], T], *arguments: *Parameters
) -> T:
    return await asyncio.get_running_loop().run_in_executor(thread, function, *arguments)
