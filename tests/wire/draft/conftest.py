"""VF 1 of a small server in the hands of a test, where a file has no server, or no rig, of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server_process import ServerProcess
from tests.wire.draft_rig import Rig, small_server


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """The file's server: two VFs of two queues."""
    with small_server() as started:
        yield started


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def rig(server: ServerProcess, request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Its VF 1, on split rings and on packed ones."""
    with Rig(server, packed=request.param) as made:
        yield made
