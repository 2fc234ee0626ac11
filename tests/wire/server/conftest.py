"""A device of the extension alone, in this process, and its client.

The extension is imported late: its handler of SIGBUS is to come after that of pytest, which reads this first.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.wire.raw_client import RawClient

if TYPE_CHECKING:
    from tests.wire.server.context_rig import Device


@pytest.fixture(scope="module")
def no_garbage() -> None:
    """Descriptors of earlier tests are not closed while those of this file are counted."""
    gc.collect()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    from tests.wire.server.context_rig import Device

    made = Device(tmp_path / "f.sock")
    yield made
    made.close()


@pytest.fixture
def client(device: Device) -> Iterator[RawClient]:
    with RawClient(device.path) as made:
        yield made
