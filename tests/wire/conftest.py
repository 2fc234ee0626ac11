"""Servers for the wire tests: `serve` starts one for a test, the others are for all tests of a file.

A client that leaves resets the function it had, so tests that share a server see a fresh device each, but
for the disk's content and the modes of VFs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pymodel.rules.checker import RULES
from tests.recorder import TOLD
from tests.server_process import ServerProcess
from tests.wire.running import running


@pytest.fixture
def serve() -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers with the given options. When the test ends each must end cleanly too."""
    with running() as start:
        yield start


@pytest.fixture(scope="module")
def shared() -> Iterator[ServerProcess]:
    """A PF and three VFs of two queues each."""
    with running() as start:
        yield start("--vfs", "3", "--queues", "2", "--disk", "ram:1M")


@pytest.fixture(scope="module", params=["ram", "file"])
def on_either_disk(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A PF and a VF, on a disk of 1 MiB in memory and then on one in a file."""
    disk = "ram:1M"
    if request.param == "file":
        image = tmp_path_factory.mktemp("disk") / "image"
        image.write_bytes(bytes(1 << 20))
        disk = f"vf1={image}"
    with running() as start:
        yield start("--vfs", "1", "--disk", disk, log_level="info")


@pytest.fixture
def said(server: ServerProcess, request: pytest.FixtureRequest) -> Iterator[None]:
    """What the file's server, which checks drivers, logs of broken rules: it goes into docs/rules.md."""
    mark = server.mark()
    yield
    for line in server.log[mark:].splitlines():
        for name, rule in RULES.items():
            _, found, rest = line.partition(f" {name} ({rule.level}: {rule.text}): ")
            if found:
                # The function comes first, and what the device does about it last.
                seen = rest.partition(" ")[2].removesuffix(f"; the device {rule.does} [{rule.section}]")
                request.node.user_properties.append((TOLD, (name, seen)))
