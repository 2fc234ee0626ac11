"""Puts a physical function and its virtual functions together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final

from pymodel.devices import registry
from pymodel.devices.device import Device
from pymodel.host import NOBODY, Observer
from pymodel.pci.function import Delays, Function
from pymodel.pci.physical_function import PhysicalFunction
from pymodel.pci.sriov.vf_slot import VfSlot, VfSlots
from pymodel.pci.virtual_function import VirtualFunction

VFS_MAX: Final = 0xFFFF
"""TotalVFs has 16 bits, as routing IDs have: VF n is n behind the PF, over as many buses as that takes."""

GUEST_VFS_MAX: Final = 248
"""VFs on one bus behind a PF at device 0, whose device they leave alone: below a port QEMU has no second bus
without a bridge.
"""


@dataclass(frozen=True, slots=True)
class Options:
    """What `vfu-server` is asked for. Delays are in seconds and concern VFs.

    With `guest_sriov` the PF's SR-IOV is a guest's (`pymodel.pci.sriov`), and `vfs` is 0; `ecam` is the
    `ecam_address` of `PhysicalFunction`.

    `legacy`: VFs can be driven by legacy drivers, through the PF's admin queue.

    `backends` has what each function stands on, by its name: a `Disk` (blk) or a `Port` (net). `without` are
    features that no function offers, by their names in `pymodel.transport.features`.
    """

    device: str
    backends: Mapping[str, Any]
    vfs: int
    total_vfs: int
    guest_sriov: bool = False
    ecam: int | None = None
    queues: int = 1
    context_opcodes: int | None = 0x40
    legacy: bool = False
    strict: bool = False
    without: frozenset[str] = frozenset()
    delays: Delays = field(default_factory=Delays)


def build(
    options: Options,
    *,
    lock: Callable[[], AbstractContextManager[Any]],
    observer: Observer = NOBODY,
    watch: Callable[[Function], None] = lambda _: None,
) -> PhysicalFunction:
    """Make the PF, and its VFs as VF Enable calls for them. `lock` makes a lock for each function.

    `watch` is called with each function when it is made.

    Raises ValueError for options that cannot be built: an unknown device type, more VFs than there can be,
    a feature that there is not, `legacy` for a type that legacy drivers don't know here.
    """
    registry.find(options.device)
    if not 0 <= options.vfs <= options.total_vfs <= VFS_MAX:
        raise ValueError(f"{options.vfs} of {options.total_vfs} VFs")
    if options.guest_sriov and (options.vfs or not 0 < options.total_vfs <= GUEST_VFS_MAX):
        raise ValueError(f"a guest enables VFs itself, and can have 1 to {GUEST_VFS_MAX}")

    def device(name: str) -> Device:
        # Found each time: it may have been read again.
        return registry.find(options.device)(options.backends.get(name), name=name, queues=options.queues)

    def make_vf_with(number: int, vf_lock: AbstractContextManager[Any]) -> VirtualFunction:
        vf = VirtualFunction(
            number,
            device(f"vf{number}"),
            vf_lock,
            delays=options.delays,
            vf_memory=lambda: pf.vf_memory,
            without=options.without,
            strict=options.strict,
            transitional=options.legacy,
            observer=observer,
        )
        watch(vf)
        return vf

    def make_vf(number: int) -> VirtualFunction:
        return make_vf_with(number, lock())

    # A VF's BARs are the same for every VF; the PF's SR-IOV capability tells their sizes.
    vf_bars = make_vf(1).bars if options.total_vfs else {}
    pf = PhysicalFunction(
        device("pf"),
        lock(),
        make_vf=make_vf,
        vfs=options.vfs,
        total_vfs=options.total_vfs,
        vf_bars=vf_bars,
        context_opcodes=options.context_opcodes,
        legacy=options.legacy,
        strict=options.strict,
        slots=VfSlots([VfSlot(number, lock(), make_vf_with) for number in range(1, options.total_vfs + 1)])
        if options.guest_sriov
        else None,
        ecam_address=options.ecam,
        without=options.without,
        observer=observer,
    )
    watch(pf)
    return pf


def reload(options: Options, pf: PhysicalFunction) -> None:
    """Read the module of a device type of one's own again.

    All functions have what is in it now, each from its next device reset on. Raises ValueError, with the
    reason, where that cannot be; nothing has changed then but the module.
    """
    make = registry.reload(options.device)
    functions = [pf, *pf.vfs.values()]
    made = [make(options.backends.get(one.name), name=one.name, queues=options.queues) for one in functions]
    for function, device in zip(functions, made, strict=True):
        function.transport.check_successor(device)
    for function, device in zip(functions, made, strict=True):
        with function.lock:
            function.transport.succeed(device)
