"""Linux of Debian 13, and the usual guest's, which is the newest, when it does the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guest.drivers.conftest import Served
from tests.guest.drivers.linux import drive
from tests.server_process import ServerProcess
from vfu_images import variants
from vfu_images.machine import Machine
from vfu_images.workspace import IMAGES

DOES = "disks and network, driver unbound and bound again"


@pytest.mark.parametrize(
    "images",
    [
        pytest.param(variants.linux("6.12"), marks=pytest.mark.driver("Linux (Debian 13)", DOES)),
        pytest.param(IMAGES, marks=pytest.mark.driver("Linux (Debian backports)", DOES)),
    ],
    ids=["6.12", "7.3"],
)
def test_linux(
    network: Served,
    server: Callable[..., ServerProcess],
    machine: Callable[..., Machine],
    version: Callable[[str], None],
    images: Path,
) -> None:
    drive(network, server, machine, images, version)
