"""What the guest ring shares: servers, machines, and two guests that are booted once.

A boot takes five seconds of an emulated processor, so tests that leave a guest as they found it share
`plain` (one processor; PF, VF 1 with a file as its disk) and `multi` (two processors and queues; VF 2),
on one server.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compatibility import DRIVER, FINDING, RULES, VERSION
from tests.server_process import ServerProcess
from vfu_images.machine import Machine

DISK_SIZE = 32 << 20

IOMMU = ("-device", "intel-iommu,caching-mode=on,intremap=off")
"""What gives a machine an IOMMU; the guest uses it with `intel_iommu=on`."""

TEST_SECONDS = 300
"""For one test with the boots of its fixtures, on a machine that is busy with something else."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this folder, and have reports tell which driver a test is about."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.guest)
            item.user_properties += [(DRIVER, mark.args) for mark in item.iter_markers(DRIVER)]
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TEST_SECONDS))


@pytest.fixture
def version(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Take down the version of the driver that the test is about, as it says it itself."""
    return lambda text: record_property(VERSION, text)


@pytest.fixture
def finding(record_property: Callable[[str, object], None]) -> Callable[[str, str], None]:
    """Take down what a fault on purpose (its name) led to."""
    return lambda fault, text: record_property(FINDING, [fault, text])


@pytest.fixture
def server(
    request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> Iterator[Callable[..., ServerProcess]]:
    """Start a server with these options; it ends with the test. With --checked, note what it told."""
    checked = request.config.getoption("--checked")
    started: list[ServerProcess] = []
    with contextlib.ExitStack() as stack:

        def start(*options: str, **settings: Any) -> ServerProcess:
            more = ("--check-driver",) if checked and "--check-driver" not in options else ()
            started.append(stack.enter_context(ServerProcess(*options, *more, **settings)))
            return started[-1]

        yield start
        if checked:
            rules = [rule for each in started if each.alive for rule in each.ask("query-rules")]
            record_property(RULES, sorted({rule["rule"] for rule in rules if rule["breaches"]}))


@pytest.fixture
def machine() -> Iterator[Callable[..., Machine]]:
    """Start a machine, as `Machine` does, and wait until its guest is ready unless `ready` is false."""
    with contextlib.ExitStack() as stack:

        def start(*, kind: type[Machine] = Machine, ready: bool = True, **settings: Any) -> Machine:
            guest = stack.enter_context(kind(**settings))
            if ready:
                guest.wait_ready(timeout=120)
            return guest

        yield start


@dataclass(frozen=True)
class Plain:
    """A guest with the PF and VF 1, and all that was said until it was ready."""

    server: ServerProcess
    guest: Machine
    image: Path
    kernel_log: str
    server_log: str


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk image full of noise."""
    path = tmp_path_factory.mktemp("disk") / "vf1.img"
    path.write_bytes(np.random.default_rng(1).bytes(DISK_SIZE))
    return path


@pytest.fixture(scope="session")
def shared_server(image: Path) -> Iterator[ServerProcess]:
    """The server of `plain` and `multi`; VF 3 and VF 4 are for whoever needs one."""
    options = ["--vfs", "4", "--queues", "2", "--disk", "ram:32M", "--disk", f"vf1={image}"]
    with ServerProcess(*options, log_level="debug") as running:
        yield running


@pytest.fixture(scope="session")
def plain(shared_server: ServerProcess, image: Path) -> Iterator[Plain]:
    """See `Plain`."""
    devices = [shared_server.qemu_device("pf"), shared_server.qemu_device("vf1")]
    with Machine(devices=devices) as guest:
        guest.wait_ready(timeout=120)
        yield Plain(shared_server, guest, image, guest.check("dmesg -r"), shared_server.log)


@pytest.fixture(scope="session")
def multi(shared_server: ServerProcess) -> Iterator[Machine]:
    """A guest with two processors on VF 2."""
    with Machine(devices=[shared_server.qemu_device("vf2")], cpus=2) as guest:
        guest.wait_ready(timeout=120)
        yield guest
