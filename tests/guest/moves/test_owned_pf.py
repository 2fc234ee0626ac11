"""A guest that has its VFs' PF, and so enables, stops and resets them itself, cannot be moved by others."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.server_process import ServerProcess
from vfu_images.machine import Machine

GUEST = ["--sriov", "guest", "--total-vfs", "1", "--disk", "ram:1M"]
OWNER = ["--vfs", "1", "--disk", "ram:1M"]


@pytest.mark.parametrize("options", [GUEST, OWNER], ids=["guest", "owner"])
def test_refused(
    server: Callable[..., ServerProcess], machine: Callable[..., Machine], options: list[str]
) -> None:
    """Whoever SR-IOV is for; the guest runs on."""
    serving = server(*options)
    devices = [
        serving.qemu_device("pf", bus="port0", addr="00.0"),
        serving.qemu_device("vf1", bus="port0", addr="01.0"),
    ]
    guest = machine(devices=devices, spare_ports=1, ready=False)
    words = [sys.executable, "-m", "vfu_client.move.cli", "--vf", "vf1"]
    for end in ("from", "to"):
        words += [f"--{end}-qmp", str(guest.qmp_path), f"--{end}-qtest", str(guest.qtest_path)]
        words += [f"--{end}-server", str(serving.folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search(
        r"failed at the step 'check': the source QEMU has the PF of .* as its device 'pf': "
        r"a guest that owns its PF cannot move\. .*\nNothing was touched",
        done.stderr,
    )
    assert guest.qmp("query-status")["status"] == "running"
