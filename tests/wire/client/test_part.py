"""Device parts for people: decoding, comparing, Linux's records around them, and `vfu-owner show`."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.wire.client.test_context import BLOCK as CONTEXT
from vfu_client.owner import cli as owner_cli
from vfu_client.owner.context import compare
from vfu_client.owner.part import BadPartsError, decode, sets
from vfu_client.owner.part_set import as_reset, common_fields

OPTIONAL = 1
VERSION_1 = 1 << 32


def part(kind: int, selector: bytes, value: bytes, *, flags: int = 0) -> bytes:
    return struct.pack("<HBB8sI", kind, flags, 0, selector, len(value)) + value


def common(offset: int, value: bytes) -> bytes:
    return part(0x102, struct.pack("<I", offset), value)


def control(kind: int, command: int, value: bytes) -> bytes:
    return part(0x200, bytes([kind, command]), value)


def own(field: int, value: bytes, queue: int = 0) -> bytes:
    return part(0x5F0, struct.pack("<HH", field, queue), value, flags=OPTIONAL)


def record(data: bytes, *, tag: int = 0) -> bytes:
    """As Linux's virtio_vfio_pci hands it to VFIO's user."""
    return struct.pack("<QII", len(data), 0, tag) + data


# As Linux has a network card of one pair with a device of ours that was taken from it.
PARTS = (
    part(0x100, b"", struct.pack("<2Q", VERSION_1 | 1 << 5, 0), flags=OPTIONAL)
    + part(0x101, b"", struct.pack("<2Q", VERSION_1, 0))
    + common(0, struct.pack("<I", 1))
    + common(16, struct.pack("<H", 0))
    + common(18, struct.pack("<H", 3))
    + part(0x103, b"", b"\x0f")
    + part(0x104, b"\1", struct.pack("<4H3Q", 256, 2, 1, 0, 0x1000, 0x2000, 0x3000))
    + part(0x105, b"\1", struct.pack("<2H4x", 1, 0x101))
    + control(0, 0, b"\1")
    + control(1, 0, struct.pack("<I", 1) + b"\2\0\0\0\0\7" + struct.pack("<I", 1) + b"\1\0\x5e\0\0\1")
    + control(1, 1, b"\2\0\0\0\0\1")
    + control(2, 0, struct.pack("<2H", 7, 4095))
    + control(3, 0, b"")
    + control(4, 0, struct.pack("<H", 1))
    + control(4, 1, struct.pack("<IHHHHHB2s", 6, 1, 1, 0, 1, 2, 2, b"\x6d\x5a"))
    + control(4, 2, struct.pack("<I8xB2s", 6, 2, b"\x6d\x5a"))
    + own(0x0F, struct.pack("<4H", 1, 0, 0, 0))
    + own(0x12, struct.pack("<IIHHHBB", 1, 1, 0, 3, 2, 15, 7))
    + own(0x15, struct.pack("<4H", 1, 9, 8, 1), queue=1)
    + own(0x17, b"\1" + bytes(7))
    + part(0x5F1, b"\0\1", b"odd")
)


COMMON_TEXT = (
    "device_feature_select=1 driver_feature_select=1 config_msix_vector=0x0 num_queues=3 queue_select=2"
    " device_status=0xf config_generation=7"
)


def test_parts_have_names_and_members() -> None:
    """Each as people read it, also those of ours."""
    shown = [(found.label, found.text()) for found in decode(PARTS)]
    assert shown == [
        ("DEV_FEATURES", "bits=5,32"),
        ("DRV_FEATURES", "bits=32"),
        ("PCI_COMMON_CFG device_feature_select", "device_feature_select=1"),
        ("PCI_COMMON_CFG config_msix_vector", "config_msix_vector=0x0"),
        ("PCI_COMMON_CFG num_queues", "num_queues=3"),
        ("DEVICE_STATUS", "device_status=0xf"),
        (
            "VQ_CFG 1",
            "queue_size=256 vector=0x2 enabled=1 queue_desc=0x1000 queue_driver=0x2000 queue_device=0x3000",
        ),
        ("VQ_NOTIFY_CFG 1", "queue_notify_off=1 queue_notif_config_data=0x101"),
        ("NET_CVQ_CFG RX_PROMISC", "on=1"),
        ("NET_CVQ_CFG MAC_TABLE_SET", "unicast=02:00:00:00:00:07 multicast=01:00:5e:00:00:01"),
        ("NET_CVQ_CFG MAC_ADDR_SET", "mac=02:00:00:00:00:01"),
        ("NET_CVQ_CFG VLAN_ADD", "vlans=7,4095"),
        ("NET_CVQ_CFG ANNOUNCE_ACK", ""),
        ("NET_CVQ_CFG MQ_VQ_PAIRS_SET", "pairs=1"),
        ("NET_CVQ_CFG MQ_RSS_CONFIG", "types=6 unclassified=1 table=0,1 max_tx_vq=2 key=6d5a"),
        ("NET_CVQ_CFG MQ_HASH_CONFIG", "types=6 key=6d5a"),
        ("CONTEXT_FIELD DEVICE_ID", "virtio_id=1"),
        ("CONTEXT_FIELD COMMON_CFG", COMMON_TEXT),
        ("CONTEXT_FIELD VQ_SPLIT_STATE 1", "index=1 last_avail_idx=9 used_idx=8 flags=1"),
        ("CONTEXT_FIELD ISR_STATUS", "isr=0x1"),
        ("0x05f1 0001000000000000", "6f 64 64"),
    ]


@pytest.mark.parametrize(
    ("damaged", "label"),
    [
        (common(77, b"\1\0"), "PCI_COMMON_CFG 0x4d"),
        (part(0x103, b"", b"\1\2"), "DEVICE_STATUS"),
        (part(0x104, b"\2", b"cut"), "VQ_CFG 2"),
        (control(0, 0, b"no"), "NET_CVQ_CFG RX_PROMISC"),
        (control(1, 0, struct.pack("<I", 9)), "NET_CVQ_CFG MAC_TABLE_SET"),
        (control(1, 1, b"short"), "NET_CVQ_CFG MAC_ADDR_SET"),
        (control(2, 0, b"odd"), "NET_CVQ_CFG VLAN_ADD"),
        (control(4, 1, struct.pack("<IHH", 6, 128, 0)), "NET_CVQ_CFG MQ_RSS_CONFIG"),
        (control(9, 9, b"\1"), "NET_CVQ_CFG 9/9"),
        (own(0x15, b"cut", queue=3), "CONTEXT_FIELD VQ_SPLIT_STATE 3"),
        (own(0xF123, b"odd"), "CONTEXT_FIELD 0xf123"),
    ],
)
def test_what_is_not_known_is_shown_as_it_is(damaged: bytes, label: str) -> None:
    """Damaged values, and selectors that nobody has."""
    (found,) = decode(damaged)
    assert found.label == label
    assert damaged.endswith(bytes(found.value))
    assert found.text()


@pytest.mark.parametrize("cut", [b"", PARTS[:-1], PARTS[:-4], PARTS[:8], PARTS + b"\0"])
def test_what_is_cut_is_refused(cut: bytes) -> None:
    """A header or a value that is not all there."""
    with pytest.raises(BadPartsError):
        decode(cut)


def test_records_of_linux() -> None:
    """Each record is a set of its own; one that is cut, or of another kind, is refused."""
    stream = record(PARTS) + record(PARTS[:32])
    assert [(at, bytes(found)) for at, found in sets(stream)] == [
        (16, PARTS),
        (32 + len(PARTS), PARTS[:32]),
    ]
    assert [bytes(found) for _, found in sets(PARTS)] == [PARTS]
    for broken in (stream[:-1], stream + b"\0", record(PARTS) + record(PARTS, tag=1)):
        with pytest.raises(BadPartsError, match="the record at byte"):
            sets(broken)


def test_the_state_after_a_reset() -> None:
    """Nothing of the driver is left; what the device is, and what it holds for its user, is not told."""
    before = {found.label: found.members() for found in decode(PARTS)}
    after = {found.label: found.members() for found in decode(as_reset(PARTS))}
    for label in ("DEV_FEATURES", "PCI_COMMON_CFG num_queues", "VQ_NOTIFY_CFG 1"):
        assert after.pop(label) == before[label]
    assert after == {
        "DRV_FEATURES": {"bits": []},
        "PCI_COMMON_CFG device_feature_select": {"device_feature_select": 0},
        "PCI_COMMON_CFG config_msix_vector": {"config_msix_vector": 0xFFFF},
        "DEVICE_STATUS": {"device_status": 0},
        "VQ_CFG 1": {
            "queue_size": 256,
            "vector": 0xFFFF,
            "enabled": 0,
            "queue_desc": 0,
            "queue_driver": 0,
            "queue_device": 0,
        },
        "CONTEXT_FIELD COMMON_CFG": {
            "device_feature_select": 0,
            "driver_feature_select": 0,
            "config_msix_vector": 0xFFFF,
            "num_queues": 3,
            "queue_select": 0,
            "device_status": 0,
            "config_generation": 7,
        },
        "CONTEXT_FIELD ISR_STATUS": {"isr": 0},
    }


def test_what_parts_tell_as_fields() -> None:
    """The features, and what ours carry: as far as a context's common fields go."""
    fields = {found.label: found.members() for found in common_fields(PARTS)}
    assert fields["DEVICE_FEATURES"] == {"bits": [5, 32]}
    assert fields["DRIVER_FEATURES"] == {"bits": [32]}
    assert fields["DEVICE_ID"] == {"virtio_id": 1}
    assert list(fields) == [
        *("DEVICE_FEATURES", "DRIVER_FEATURES", "DEVICE_ID", "COMMON_CFG", "VQ_SPLIT_STATE 1", "ISR_STATUS"),
    ]


def test_comparison_names_the_member_that_differs() -> None:
    """By type and selector, each class of the control queue with its commands."""
    other = decode(PARTS.replace(struct.pack("<Q", 0x2000), struct.pack("<Q", 0x9000)))
    (found,) = compare(decode(PARTS), other)
    assert (found.label, found.members()) == ("VQ_CFG 1", ["queue_driver"])
    alone = [found.label for found in compare(decode(PARTS), decode(PARTS[:32]))]
    assert alone[7:15] == [f"NET_CVQ_CFG {name}" for name in ("RX_PROMISC", *CLASSES)]


CLASSES = (
    *("MAC_TABLE_SET", "MAC_ADDR_SET", "VLAN_ADD", "ANNOUNCE_ACK"),
    *("MQ_VQ_PAIRS_SET", "MQ_RSS_CONFIG", "MQ_HASH_CONFIG"),
)


def show(capfd: pytest.CaptureFixture[str], *words: str | Path) -> Any:
    """What `vfu-owner show` prints: for programs where --json is asked for."""
    assert owner_cli.main(["show", *map(str, words)]) == 0
    said = capfd.readouterr().out
    return json.loads(said) if "--json" in words else said.splitlines()


def test_show_tells_parts_from_contexts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By their first bytes: parts, Linux's records of them, contexts."""
    for name, content in (("p", PARTS), ("r", record(PARTS) + record(PARTS)), ("c", CONTEXT)):
        (tmp_path / name).write_bytes(content)
    people = show(capfd, tmp_path / "p")
    assert people[0].split() == ["0", "DEV_FEATURES", "bits=5,32"]
    assert people[1].split() == ["32", "DRV_FEATURES", "bits=32"]
    assert len(people) == 21
    plain = show(capfd, tmp_path / "p", "--json")
    assert plain[0] == {
        "type": 0x100,
        "name": "DEV_FEATURES",
        "label": "DEV_FEATURES",
        "optional": True,
        "offset": 0,
        "length": 16,
        "value": {"bits": [5, 32]},
    }
    records = show(capfd, tmp_path / "r")
    assert records[0] == "record 1 of 2"
    assert records[1].split() == ["16", *people[0].split()[1:]]
    assert records[22] == "record 2 of 2"
    assert {row["record"] for row in show(capfd, tmp_path / "r", "--json")} == {1, 2}
    assert show(capfd, tmp_path / "c")[0].split() == ["0", "START_MARKER"]
    assert show(capfd, tmp_path / "p", tmp_path / "r") == ["no difference"]


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        (PARTS[:-1], None, "part 0x5f1 has 3 bytes, 2 are left"),
        (record(PARTS)[:-1], None, "the record at byte 0 is cut"),
        (PARTS, CONTEXT, "one file holds device parts and the other a context"),
        (b"", None, "END_MARKER"),
        (CONTEXT[16:], None, "field 0xf before START_MARKER"),
    ],
)
def test_show_says_what_is_wrong(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], first: bytes, second: bytes | None, why: str
) -> None:
    """Status 1 and a reason."""
    words = ["show"]
    for name, content in (("first", first), ("second", second)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
            words.append(str(tmp_path / name))
    assert owner_cli.main(words) == 1
    assert why in capfd.readouterr().err
