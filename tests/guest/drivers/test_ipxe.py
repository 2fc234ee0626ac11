"""iPXE under a PC's BIOS."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.guest.bare_machine import BareMachine
from tests.guest.drivers.conftest import Served
from tests.guest.drivers.ipxe import SCRIPT, watch
from vfu_images import firmware


@pytest.mark.driver("iPXE, BIOS", "DHCP, TFTP, closed and opened again")
def test_bios(network: Served, machine: Callable[..., BareMachine], version: Callable[[str], None]) -> None:
    script = network.folder / "script"
    script.write_text(SCRIPT)
    # Without a display SeaBIOS, and so iPXE, has the serial port for a console.
    guest = machine(
        kind=BareMachine,
        ready=False,
        devices=[network.server.qemu_device("vf1")],
        arguments=["-machine", "graphics=off", "-kernel", str(firmware.IPXE), "-initrd", str(script)],
    )
    version(watch(guest, driver="virtio-net")["iPXE"])
    assert " ERROR " not in network.server.log
