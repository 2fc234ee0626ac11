"""What the tests of moves share: a `Traveller` for each file, a QEMU to move to for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.conftest import DISK_SIZE
from tests.guest.guest_disk import disk_of, start_io
from tests.guest.moves.traveller import OPTIONS, Traveller
from tests.server_process import ServerProcess
from vfu_images.machine import Machine


@pytest.fixture(scope="module")
def travel_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The disk that both servers share."""
    path = tmp_path_factory.mktemp("travel") / "disk.img"
    with path.open("wb") as file:
        file.truncate(DISK_SIZE)
    return path


@pytest.fixture(scope="module")
def traveller(travel_image: Path) -> Iterator[Traveller]:
    """See `Traveller`. Tests leave it on one of its two servers, running, and with a job; in any order."""
    options = [*OPTIONS, "--disk", str(travel_image)]
    with ServerProcess(*options) as here, ServerProcess(*options) as there:
        guest = Machine(devices=[here.qemu_device("vf1")]).__enter__()
        found = None
        try:
            guest.wait_ready(timeout=120)
            found = Traveller(guest, start_io(guest, disk_of(guest, "vf1")), here, there)
            yield found
        finally:
            (guest if found is None else found.guest).close()


@pytest.fixture
def target(traveller: Traveller) -> Iterator[Machine]:
    """A QEMU on the other server that waits for the guest; it stays when the guest moved in."""
    machine = traveller.incoming()
    try:
        yield machine
    finally:
        if traveller.guest is not machine:
            machine.close()
