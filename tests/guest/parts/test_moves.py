"""VFs move with I/O under way, to another VF of their PF and to one of another server."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.guest.parts.vfio_guest import Report, VfioGuest

STOP_COPY, P2P, PRE_COPY = 1, 2, 4
RING_PACKED = 34
FORMATS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


def rows(does: str) -> pytest.MarkDecorator:
    """FORMATS, each with a row of docs/compatibility.md."""
    name = "Linux (Debian backports), virtio_vfio_pci"
    kinds = {"split": False, "packed": True}
    return pytest.mark.parametrize(
        "packed",
        [
            pytest.param(packed, id=kind, marks=pytest.mark.driver(name, f"{does}, {kind} rings"))
            for kind, packed in kinds.items()
        ],
    )


def check_start(report: Report, *, packed: bool) -> None:
    """The kernel offers all kinds of migration, and the rings are as they were asked for."""
    assert report.start["migration"] == STOP_COPY | P2P | PRE_COPY
    assert report.start["features"] >> RING_PACKED & 1 == packed


@rows("moves a busy disk to another VF and another server")
def test_disk(vfio: VfioGuest, version: Callable[[str], None], packed: bool) -> None:
    """Requests under way at the stop, and those after it, are answered where the disk goes on, each once.

    Interrupts come for them without a kick; a kick of the stopped VF does nothing.
    """
    version(vfio.guest.check("uname -r").strip())
    before = vfio.requests()
    # A packed ring's size need not be a power of two.
    options = "--packed --depth 48 --ring 200" if packed else "--depth 48"
    report = vfio.run(
        "blk", "io=300", "size", "move=1", "io=100", "move=2", "io=100", "move=0", "io=100",
        "jump=1", "io=100", "jump=2", "io=100", "jump=0", "check",
        options=options,
    )  # fmt: skip
    assert not report.refusals
    check_start(report, packed=packed)
    assert [step["at"] for step in report.steps if "stopped_ms" in step] == [1, 2, 0, 1, 2, 0]
    (size,) = {step["bytes"] for step in report.step("size")}
    whole = 16 + size
    # Whole records, each with a head: the first one, those that were left when it was read, and the last one.
    for step in report.step("move"):
        assert step["left"] >= size
        assert step["precopy"] == whole * (1 + step["left"] / size)
        assert step["stream"] == step["precopy"] + whole
    assert {step["stream"] for step in report.step("jump")} == {whole}
    assert min(min(counts) for counts in report.done["interrupts"]) > 0
    # Nothing was carried out twice.
    assert vfio.requests() - before == report.done["written"] + report.done["read"]


@rows("moves a busy network card to another VF and another server")
def test_network(vfio: VfioGuest, version: Callable[[str], None], packed: bool) -> None:
    """What the driver sends arrives once and in order; its address, MAC table and VLANs go where it goes."""
    version(vfio.guest.check("uname -r").strip())
    report = vfio.run(
        "net", "io=300", "probe", "move=1", "io=100", "probe", "move=2", "io=100", "probe", "jump=0",
        "io=100", "probe", "drain",
        options=f"--renew {'--packed' if packed else ''}",
    )  # fmt: skip
    assert not report.refusals
    check_start(report, packed=packed)
    assert [step["at"] for step in report.step("probe")] == [0, 1, 2, 0]
    assert {tuple(step["arrived"]) for step in report.step("probe")} == {("end", "own", "second", "vlan")}
    assert report.done["lost"] == 0
    assert min(min(counts[:2]) for counts in report.done["interrupts"]) > 0


def test_hundred_moves(vfio: VfioGuest) -> None:
    """A disk moves a hundred times on end, among three VFs of two servers."""
    report = vfio.run("blk", "moves=100", "check", options="--packed --depth 16")
    assert not report.refusals
    assert (report.done["moves"], report.steps[0]["at"]) == (100, 1)


def test_bus_master_last(vfio: VfioGuest) -> None:
    """A VF that runs before it may use the bus goes on when it may."""
    for load in ("blk", "net"):
        report = vfio.run(load, "io=100", "move=1", "io=100", "drain", options="--master-last", functions=2)
        assert not report.refusals


def test_parts_of_the_standard_alone(vfio: VfioGuest) -> None:
    """Split rings move without what is optional; packed ones cannot, and go on where they were."""
    report = vfio.run("blk", "io=100", "jump=1", "io=100", "jump=2", "io=100", "check", options="--plain")
    assert not report.refusals
    report = vfio.run("blk", "io=100", "jump=1", "drain", "io=100", "check", options="--plain --packed")
    assert report.refusals == [("jump=1", "write", "EINVAL")]
    assert report.done["moves"] == 0
