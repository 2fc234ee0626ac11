"""Device types by name."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from pymodel.devices import registry

ROOT = Path(__file__).resolve().parents[3]


def test_ours_are_registered_as_others_are() -> None:
    """As entry points of the package, and in the table for a source tree that is not installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["vfu_virtio.devices"] == registry.DEVICES
    assert {"blk", "net"} <= set(registry.names())
    for name, place in registry.DEVICES.items():
        assert registry.find(name) is registry.find(place)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gpu", "device type 'gpu': there are .*blk.*; or give module:Class"),
        ("no.such:Class", "no.such: ModuleNotFoundError"),
        ("pymodel.devices.registry:Nothing", "has no class 'Nothing'"),
    ],
)
def test_there_is_none(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        registry.find(name)
