"""A qcow2 image of qemu-storage-daemon as a VF's disk: moved between servers, and served anew meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.guest.conftest import DISK_SIZE
from tests.guest.guest_disk import disk_of, finish, progress, start_io, wait_written
from tests.guest.moves.traveller import OPTIONS, Traveller
from tests.server_process import ServerProcess
from tests.storage_daemon import StorageDaemon, make_qcow2
from vfu_images.machine import Machine


@pytest.fixture
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageDaemon]:
    folder = tmp_path_factory.mktemp("nbd")
    image = folder / "disk.qcow2"
    make_qcow2(image, DISK_SIZE)
    with StorageDaemon(image, folder, driver="qcow2") as running:
        yield running


def test_moves_with_its_disk(
    daemon: StorageDaemon, server: Callable[..., ServerProcess], machine: Callable[..., Machine]
) -> None:
    """A guest with I/O that checks itself: there, its storage's server started anew, and back."""
    options = [*OPTIONS, "--disk", f"{daemon.uri},reconnect-delay=60"]
    here, there = server(*options), server(*options)
    guest = machine(devices=[here.qemu_device("vf1")])
    traveller = Traveller(guest, start_io(guest, disk_of(guest, "vf1")), here, there)
    for _ in range(2):
        wait_written(traveller.job, progress(traveller.job)["sectors_written"] + 500)
        target = traveller.incoming()
        try:
            traveller.move(target)
        except BaseException:
            target.close()
            raise
        traveller.arrived(target)
        wait_written(traveller.job, progress(traveller.job)["sectors_written"] + 500)
        daemon.stop()
        daemon.start()
    wait_written(traveller.job, progress(traveller.job)["sectors_written"] + 500)
    finish(traveller.job)
    traveller.guest.close()
    for each in (here, there):
        assert "Traceback" not in each.log
        assert "no connection" in each.log


def test_errors_while_it_is_away(
    daemon: StorageDaemon, server: Callable[..., ServerProcess], machine: Callable[..., Machine]
) -> None:
    """Without a delay: a read fails at once, and works again when the server is back."""
    guest = machine(devices=[server("--vfs", "1", "--disk", f"vf1={daemon.uri}").qemu_device("vf1")])
    read = f"dd if={disk_of(guest, 'vf1')} of=/dev/null bs=4k count=1 iflag=direct"
    guest.check(read)
    daemon.kill()
    status, output = guest.run(read)
    assert status != 0
    assert "Input/output error" in output or "I/O error" in output
    daemon.start()
    guest.check(f"until {read} 2>/dev/null; do usleep 50000; done", timeout=60)
