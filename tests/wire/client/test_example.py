"""The client of `examples`, which docs/vmm-author.md shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.server_process import ServerProcess

PROJECT = Path(__file__).parents[3]
SAYS = """\
memory at 0x100000000, DeviceInfo(flags=3, regions=10, irqs=5)
RegionInfo(index=0, flags=3, size=16384)
RegionInfo(index=2, flags=3, size=8192)
RegionInfo(index=7, flags=3, size=4096)
IrqInfo(index=2, flags=1, count=256)
49152 sectors, b'hello'
status 0
"""


def test_it_says_what_the_document_shows() -> None:
    with ServerProcess("--vfs", "1", "--disk", "ram:24M") as server:
        done = subprocess.run(
            [sys.executable, "examples/client.py", str(server.folder / "vf1.sock")],
            cwd=PROJECT,
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
    # The libvfio-user of 2026 counts one region less, for migration.
    assert done.stdout.replace("regions=9", "regions=10") == SAYS


def test_the_document_shows_it() -> None:
    document = (PROJECT / "docs/vmm-author.md").read_text()
    assert f"```python\n{(PROJECT / 'examples/client.py').read_text()}```\n" in document
    assert f"$ python examples/client.py /tmp/device/vf1.sock\n{SAYS}```\n" in document
