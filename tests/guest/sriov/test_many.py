"""As many VFs as make a guest use functions of devices, and not devices alone."""

from __future__ import annotations

from collections.abc import Callable

from images.machine import Machine
from tests.guest.sriov.guest_sriov import Owned, guest_options
from tests.server_process import ServerProcess

VFS = 64


def test_sixty_four(server: Callable[..., ServerProcess], machine: Callable[..., Machine]) -> None:
    """64 VFs come, work, go, and come again; each is a VF of the PF."""
    owned = Owned(server(*guest_options(VFS, "--disk", "ram:1M")), VFS)
    guest = machine(devices=owned.devices(), spare_ports=1)
    for _ in range(2):
        owned.enable(guest, VFS)
        assert owned.enabled(guest) == VFS
        bound = guest.check(f"ls -d {owned.folder(0)}/virtfn*/driver/module | wc -l")
        assert int(bound) == VFS
        for number in (1, 7, 8, 31, 63, 64):
            owned.verify(guest, number, count=10)
        owned.enable(guest, 0)
    assert "Traceback" not in owned.server.log
