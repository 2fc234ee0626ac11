"""Linux's own options for how it treats PCI."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.guest.sriov.guest_sriov import Owned, guest_options
from tests.server_process import ServerProcess
from vfu_images.machine import Machine


@pytest.mark.long
def test_reassigned_and_without_ari(
    server: Callable[..., ServerProcess], machine: Callable[..., Machine]
) -> None:
    """`pci=realloc` may give VF BARs other addresses, `pci=noari` other numbers to VFs that have ARI."""
    owned = Owned(server(*guest_options(4, "--disk", "ram:8M")), 4)
    guest = machine(devices=owned.devices(), spare_ports=1, append="pci=realloc,noari")
    for number in (4, 2):
        owned.enable(guest, number)
        owned.verify(guest, *range(number + 1))
        owned.enable(guest, 0)


@pytest.mark.long
def test_without_messages(server: Callable[..., ServerProcess], machine: Callable[..., Machine]) -> None:
    """With `pci=nomsi` the PF works by INTx. VFs have none, as SR-IOV demands: their drivers fail cleanly."""
    owned = Owned(server(*guest_options(2, "--disk", "ram:8M")), 2)
    guest = machine(devices=owned.devices(), spare_ports=1, append="pci=nomsi")
    for times in (1, 2):
        owned.enable(guest, 2)
        assert owned.enabled(guest) == 2
        failed = guest.check("dmesg | grep -c 'probe with driver virtio_blk failed with error -22'")
        assert int(failed) == 2 * times
        owned.verify(guest, 0)
        owned.enable(guest, 0)
    assert " ERROR " not in owned.server.log
