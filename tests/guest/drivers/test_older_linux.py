"""Linux of an older Debian release, with the usual programs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.guest.drivers.conftest import Served
from tests.guest.drivers.linux import drive
from tests.server_process import ServerProcess
from vfu_images import variants
from vfu_images.machine import Machine


@pytest.mark.driver("Linux (Debian 12)", "disks and network, driver unbound and bound again")
def test_6_1(
    network: Served,
    server: Callable[..., ServerProcess],
    machine: Callable[..., Machine],
    version: Callable[[str], None],
) -> None:
    drive(network, server, machine, variants.linux("6.1"), version)
