"""UEFI boots over a network function, by OVMF's own driver and by the one in iPXE's ROM."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest

from tests.guest.bare_machine import BareMachine
from tests.guest.drivers import ipxe
from tests.guest.drivers.conftest import Served
from vfu_images import firmware


@pytest.mark.parametrize(
    ("properties", "driver", "name"),
    [
        pytest.param(
            {},
            "SNP",
            "firmware",
            id="ovmf",
            marks=pytest.mark.driver(
                "OVMF (EDK II)", "starts iPXE over the network, which then uses its driver"
            ),
        ),
        pytest.param(
            {"romfile": str(firmware.IPXE_EFI_ROM)},
            "virtio-net",
            "iPXE",
            id="rom",
            marks=pytest.mark.driver("iPXE, UEFI ROM", "DHCP, TFTP, closed and opened again"),
        ),
    ],
)
def test_uefi(
    network: Served,
    machine: Callable[..., BareMachine],
    version: Callable[[str], None],
    properties: dict[str, Any],
    driver: str,
    name: str,
) -> None:
    """The firmware fetches iPXE over the driver and starts it; iPXE then goes by the same driver."""
    shutil.copyfile(firmware.IPXE_EFI, network.folder / "file")
    (network.folder / "autoexec.ipxe").write_text(ipxe.SCRIPT)
    guest = machine(
        kind=BareMachine,
        ready=False,
        devices=[{**network.server.qemu_device("vf1"), **properties}],
        # EDK II has no network without a source of random numbers.
        arguments=["-bios", str(firmware.OVMF), "-cpu", "max"],
    )
    guest.expect(rb"NBP file downloaded successfully", timeout=120)
    versions = ipxe.watch(guest, driver=driver, size=firmware.IPXE_EFI.stat().st_size)
    version(versions[name])
    assert " ERROR " not in network.server.log
