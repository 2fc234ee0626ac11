"""What a function offers of the features of its rings."""

from __future__ import annotations

import threading

import pytest

from pymodel.build import Options, build
from pymodel.devices.block.ram_disk import RamDisk

RINGS = {
    "indirect": 28,
    "event-idx": 29,
    "packed": 34,
    "in-order": 35,
    "notification-data": 38,
    "notif-config-data": 39,
    "ring-reset": 40,
}


def offered(*without: str) -> list[set[str]]:
    """By the PF and by a VF."""
    backends = {"pf": RamDisk(512), "vf1": RamDisk(512)}
    options = Options(device="blk", backends=backends, vfs=1, total_vfs=1, without=frozenset(without))
    pf = build(options, lock=threading.RLock)
    functions = [pf, pf.vfs[1]]
    found = [function.transport.offered for function in functions]
    assert all(features >> 32 & 1 for features in found)
    return [{name for name, bit in RINGS.items() if features >> bit & 1} for features in found]


def test_all_of_them() -> None:
    assert offered() == [set(RINGS)] * 2


@pytest.mark.parametrize("name", RINGS)
def test_without_one(name: str) -> None:
    assert offered(name) == [RINGS.keys() - {name}] * 2


def test_an_unknown_one() -> None:
    with pytest.raises(ValueError, match="'paked'; there are: packed, in-order"):
        offered("packed", "paked")


def test_a_device_whose_requests_overtake_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """IN_ORDER is a promise that it cannot keep."""
    monkeypatch.setattr(RamDisk, "in_order", False)
    assert offered() == [RINGS.keys() - {"in-order"}] * 2
