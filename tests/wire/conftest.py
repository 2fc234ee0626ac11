"""Servers for the wire tests: `serve` starts one for a test, `shared` is one that a file's tests share.

A client that leaves resets the function it had, so tests that share a server see a fresh device each, but
for the disk's content and the modes of VFs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

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
