"""Streams that are no good are refused by the server, or by the kernel, and change nothing of a VF in use."""

from __future__ import annotations

import os

import pytest

from tests.guest.parts import streams
from tests.guest.parts.streams import Part, changed, flipped, lengthened, parts_of, patched, record
from tests.guest.parts.test_resets import LOADS
from tests.guest.parts.vfio_guest import VfioGuest

TAKEN = ""
OPTIONAL = 1


def broken(good: bytes, other: bytes, *, packed: bool) -> dict[str, tuple[bytes, str]]:
    """Streams by name, each with the error of writing it; `other` is of another type of device."""
    parts = parts_of(good)
    size = len(good) - 16
    # The kernel waits for the rest of a record, and passes nothing on; of a head it looks at size and tag.
    kernel = {
        "nothing": (b"", TAKEN),
        "half-a-head": (good[:10], TAKEN),
        "head-alone": (good[:16], TAKEN),
        "last-byte-missing": (good[:-1], TAKEN),
        "optional-record": (record(os.urandom(100), tag=7, flags=OPTIONAL), TAKEN),
        "unknown-tag": (record(parts, tag=7), "EOPNOTSUPP"),
        "too-large": (record(parts, size=1 << 32), "ENOMEM"),
    }
    server = {
        "garbage": record(os.urandom(300)),
        "garbage-behind": record(good[16:] + os.urandom(8)),
        "head-too-small": record(good[16:], size=size - 1),
        "cut-in-a-part": record(good[16:-5]),
        "foreign": other,
        **{name: record(bad) for name, bad in broken_parts(parts, packed=packed).items()},
    }
    return kernel | {name: (stream, "EINVAL") for name, stream in server.items()}


def broken_parts(parts: list[Part], *, packed: bool) -> dict[str, list[Part]]:
    """The same with a single fault each."""
    position = (streams.VQ_PACKED_STATE if packed else streams.VQ_SPLIT_STATE).to_bytes(2, "little")
    common = streams.COMMON_CFG.to_bytes(2, "little")
    acknowledged = changed(parts, streams.DEVICE_STATUS, patched(0, b"\x01"))
    found = {
        "twice": [*parts, parts[-1]],
        "unknown-part": [*parts, Part(streams.NOBODYS, False, bytes(8), b"1234")],
        "other-device-features": changed(parts, streams.DEV_FEATURES, flipped),
        "features-not-offered": changed(parts, streams.DRV_FEATURES, patched(15, b"\x80")),
        "number-of-queues": changed(parts, streams.PCI_COMMON_CFG, flipped, selector=b"\x12"),
        "field-longer": changed(parts, streams.PCI_COMMON_CFG, lengthened),
        # It is told twice.
        "queues-before-features": changed(
            acknowledged, streams.CONTEXT_FIELD, patched(14, b"\x01"), selector=common
        ),
        "queue-too-large": changed(parts, streams.VQ_CFG, patched(0, b"\x00\x80")),
        "queue-misaligned": changed(parts, streams.VQ_CFG, patched(8, b"\x01")),
        "vector-of-nothing": changed(parts, streams.VQ_CFG, patched(2, b"\x77\x77")),
        "notify-elsewhere": changed(parts, streams.VQ_NOTIFY_CFG, patched(0, b"\x55")),
        "another-queue": changed(parts, streams.CONTEXT_FIELD, patched(0, b"\x09"), selector=position),
    }
    if packed:
        past = patched(2, b"\xff\x7f")
        found["past-the-end"] = changed(parts, streams.CONTEXT_FIELD, past, selector=position)
        found["no-position"] = changed(parts, streams.CONTEXT_FIELD, lambda _: None, selector=position)
    return found


@LOADS
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_streams(vfio: VfioGuest, load: str, packed: bool) -> None:
    """A busy VF is to resume from each of them, and then goes on as it was."""
    options = "--packed" if packed else ""
    good = vfio.stream(load, options)
    other = vfio.stream("net" if load == "blk" else "blk", options)
    steps, expected = [], []
    for name, (stream, error) in broken(good, other, packed=packed).items():
        path = vfio.keep(f"{load}-{name}", stream)
        steps += ["fill", "note", "state=resuming", "fill", f"load={path}", "state=running", "drain", "same"]
        expected += [(f"load={path}", "write", error)] if error else []
    steps += ["io=100", "check" if load == "blk" else "probe"]
    report = vfio.run(load, "io=100", *steps, options=options, functions=1)
    assert report.refusals == expected
    assert {step["state"] for step in report.steps[::8]} == {"running"}
    if load == "net":
        assert report.steps[-1]["arrived"] == ["end", "own", "second", "vlan"]
        assert report.done["lost"] == 0
