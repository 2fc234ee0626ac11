"""A VF whose client goes while the guest has it: QEMU's connection to that one socket ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.guest.guest_disk import finish, progress, start_io, wait_written
from tests.guest.sriov.guest_sriov import Owned, guest_options
from tests.guest.sriov.relay import Relay
from tests.server_process import ServerProcess
from vfu_client.vfio.connection import Connection
from vfu_client.vfio.pci import PciFunction
from vfu_images.machine import Machine


@pytest.mark.long
def test_one_of_three(server: Callable[..., ServerProcess], machine: Callable[..., Machine]) -> None:
    """The PF and the other VFs go on; the server says which client left. QEMU does not come back to it.

    The VF that is lost reads as all ones, like hardware that fell off its bus. Linux waits for such a VF to
    be reset, so it cannot disable VFs any more, and QEMU gives up at the next reset of its machine.
    """
    owned = Owned(server(*guest_options(3, "--disk", "ram:16M")), 3)
    with Relay(owned.server.folder / "relay", owned.server.socket("vf3")) as relay:
        devices = owned.devices(vf_sockets=[str(relay.path)])
        guest = machine(devices=devices, spare_ports=1)
        owned.enable(guest, 3)
        owned.verify(guest, 3)
        beside = [start_io(guest, owned.disk(guest, number), depth=2, length="4M") for number in (0, 1)]
        mark = owned.server.mark()
        relay.cut()
        owned.server.wait_log(r"virtio\.vf3: detached: the client left", since=mark)
        assert owned.ask()["attached-vfs"] == 2
        for job in beside:
            wait_written(job, progress(job)["sectors_written"] + 50)
            finish(job)
        owned.verify(guest, 0, 1, 2)
        # Another client may come, and has a VF in reset state.
        with Connection(owned.server.socket("vf3"), timeout=30) as connection:
            assert PciFunction(connection).config_bytes()[:4] == bytes.fromhex("f41a4210")
            assert owned.ask()["attached-vfs"] == 3
        owned.verify(guest, 0, 1, 2)
    assert "Traceback" not in owned.server.log
