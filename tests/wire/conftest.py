"""Servers for the wire tests: `serve` starts one for a test, `shared` is one that a file's tests share.

A client that leaves resets the function it had, so tests that share a server see a fresh device each, but
for the disk's content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.wire.running import RunningServer, running


@pytest.fixture
def serve() -> Iterator[Callable[..., RunningServer]]:
    """Starts servers with the given options. When the test ends each must end cleanly too."""
    with running() as start:
        yield start


@pytest.fixture(scope="module")
def shared() -> Iterator[RunningServer]:
    """A PF and three VFs of two queues each."""
    with running() as start:
        yield start("--vf", "3", "--queues", "2", "--disk", "ram:1M", "--log-level", "debug")
