"""Where the functions of a server are in a machine: QEMU's devices, its root ports, its shared memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vfu_client.plug.server import Served, ServerError
from vfu_client.qemu.running import DRIVER

Device = dict[str, Any]

MSG_TIMEOUT_MS = 60_000
"""How long QEMU waits for an answer before it hangs up for good; its own 5 s are short on a busy host."""

PORTS_MOST = 28
"""Root ports for which a q35 machine has room on pcie.0, beside what it has there itself."""


@dataclass(frozen=True)
class Memory:
    """The guest's memory, which the server has to share. `size` is as people write it, such as 1G."""

    size: str
    id: str

    @property
    def bytes(self) -> int:
        """How much it is."""
        return int(self.size[:-1]) << {"K": 10, "M": 20, "G": 30, "T": 40}[self.size[-1].upper()]


@dataclass(frozen=True)
class Arrangement:
    """Devices as QMP's device_add takes them. VFs come before their PF, for that is the order of plugging."""

    ports: list[Device] = field(default_factory=list)
    devices: list[Device] = field(default_factory=list)
    memory: Memory | None = None


def arrange(
    served: Served,
    functions: Sequence[str] = (),
    *,
    prefix: str = "",
    bus: str | None = None,
    slot: int = 1,
    memory: str | None = None,
) -> Arrangement:
    """A machine with these functions, or all. Raises ServerError where that can't be.

    Without `bus` there are root ports, `slot` is the number of the first one's.
    """
    ports: list[Device] = []

    def port() -> str:
        if bus is not None:
            return bus
        number = len(ports) + 1
        # Each needs a slot number of its own in the machine.
        made = {"driver": "pcie-root-port", "id": f"{prefix}port{number}", "slot": slot + number - 1}
        ports.append(made)
        return str(made["id"])

    if served.sriov is not None:
        if functions:
            raise ServerError(
                f"the server in {served.folder} has --sriov guest: PF and VFs go together, name no function"
            )
        devices = placed(served, port(), prefix)
    else:
        missing = [name for name in functions if name not in served.functions]
        if missing:
            has = ", ".join(served.functions)
            raise ServerError(f"{served.folder} has no function {', '.join(missing)}: it has {has}")
        chosen = functions or served.functions
        if bus is None and len(chosen) > PORTS_MOST:
            raise ServerError(
                f"{len(chosen)} functions on root ports of their own do not fit pcie.0: name up to"
                f" {PORTS_MOST} of them, or start the server with --sriov guest"
            )
        devices = [device(served, name, port(), prefix) for name in chosen]
    return Arrangement(ports, devices, Memory(memory, f"{prefix}mem") if memory else None)


def placed(served: Served, bus: str, prefix: str) -> list[Device]:
    """A guest's SR-IOV on the bus of one port: the VFs where the PF says, and the PF."""
    sriov = served.for_guest()
    devices = []
    for name in (*served.vfs, "pf"):
        slot, function = divmod(sriov.devfn(name), 8)
        more = {"addr": f"{slot:02x}.{function}"}
        dense: Device = {"multifunction": True} if name != "pf" and sriov.vf_stride < 8 else {}
        devices.append(device(served, name, bus, prefix, **more, **dense))
    return devices


def device(served: Served, function: str, bus: str, prefix: str, **properties: Any) -> Device:
    """One function. Raises ServerError where QEMU could not be told its socket."""
    path = str(served.socket(function))
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ServerError(f"{path!r} is not UTF-8, and QEMU takes no other names: rename it") from None
    return {
        "driver": DRIVER,
        "id": f"{prefix}{function}",
        "bus": bus,
        **properties,
        "x-msg-timeout": MSG_TIMEOUT_MS,
        "socket": {"type": "unix", "path": path},
    }
