"""VF 1 of a small server whose disk is a file, where a test file has no server, or no rig, of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server_process import ServerProcess
from tests.wire.parts.rig import PartsRig, file_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The file's server: two VFs of two queues, which share a disk."""
    with file_server(tmp_path_factory.mktemp("parts")) as started:
        yield started


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def rig(server: ServerProcess, request: pytest.FixtureRequest) -> Iterator[PartsRig]:
    """Its VF 1, on split rings and on packed ones."""
    with PartsRig(server, packed=request.param) as made:
        yield made
