"""As many VFs as make a guest use functions of devices, and not devices alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.guest.sriov.guest_sriov import Owned, guest_options
from tests.server_process import ServerProcess
from vfu_images.machine import Machine

VFS = 40


@pytest.mark.long
def test_forty(server: Callable[..., ServerProcess], machine: Callable[..., Machine]) -> None:
    """VFs at 01.0 to 05.7 come with drivers, work, and go; slow_life.py has more of them."""
    owned = Owned(server(*guest_options(VFS, "--disk", "ram:1M")), VFS)
    guest = machine(devices=owned.devices(), spare_ports=1)
    owned.enable(guest, VFS)
    assert owned.enabled(guest) == VFS
    bound = guest.check(f"ls -d {owned.folder(0)}/virtfn*/driver/module | wc -l")
    assert int(bound) == VFS
    assert (owned.address(1), owned.address(VFS)) == ("0000:01:01.0", "0000:01:05.7")
    for number in (1, VFS):
        link = guest.check(f"readlink {owned.folder(0)}/virtfn{number - 1}").strip()
        assert link == f"../{owned.address(number)}"
    owned.verify(guest, 1, 7, 8, VFS, count=10)
    owned.enable(guest, 0)
    assert "Traceback" not in owned.server.log
