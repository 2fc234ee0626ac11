"""What these tests share: a network with DHCP and TFTP."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.server_process import ServerProcess
from vfu_images import firmware, program
from vfu_images.workspace import IMAGES, SetupError

ADDRESS = "10.0.2.15"
"""What DHCP gives to whoever asks first."""

SERVER = "10.0.2.2"
"""Where DHCP and TFTP are."""

FILE = bytes(range(256)) * 400
"""What TFTP has under the name `file`; 102,400 bytes, 200 blocks."""


@pytest.fixture(scope="session", autouse=True)
def _prepared() -> None:
    if not firmware.OVMF.is_file():
        raise SetupError(f"{firmware.OVMF} is missing; run `python3 -m images drivers` first")


@dataclass(frozen=True)
class Served:
    """A server whose VF 1 is a network card on the network, and the folder of TFTP."""

    server: ServerProcess
    folder: Path


@pytest.fixture
def network(server: Callable[..., ServerProcess]) -> Iterator[Served]:
    """VF 1 is on a network with QEMU's own DHCP and TFTP, whose boot file is `file`."""
    with tempfile.TemporaryDirectory(prefix="net-") as temporary:
        folder, wire = Path(temporary), Path(temporary, "wire")
        (folder / "file").write_bytes(FILE)
        serving = server("--vfs", "1", "--net", "none", "--net", f"vf1=stream:{wire},server", device="net")
        command = [
            str(IMAGES / "qemu-system-x86_64"), "-machine", "none", "-nodefaults", "-display", "none",
            "-netdev", f"user,id=services,tftp={folder},bootfile=file",
            "-netdev", f"stream,id=wire,server=off,addr.type=unix,addr.path={wire}",
            "-netdev", "hubport,id=one,hubid=0,netdev=services",
            "-netdev", "hubport,id=other,hubid=0,netdev=wire",
        ]  # fmt: skip
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*program.DIE_WITH_PARENT, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            serving.wait_log(r"wire: connected")
            yield Served(serving, folder)
        finally:
            program.kill(process)
