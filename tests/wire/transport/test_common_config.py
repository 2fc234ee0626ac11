"""The common configuration structure, field by field. virtio 1.4, "Common configuration structure layout"."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator

import pytest

from tests.server_process import ServerProcess
from tests.wire.driving import (
    INDIRECT_DESC,
    RING_RESET,
    VERSION_1,
    Driven,
    bring_up,
    driven,
    split_queue,
)
from vfu_client.owner.owner import OwnerDriver
from vfu_client.virtio.common_config import CommonConfig
from vfu_client.virtio.function import VirtioPci

# Offset and size of every field, from the standard.
FIELDS = {
    "device_feature_select": (0x00, 4),
    "device_feature": (0x04, 4),
    "driver_feature_select": (0x08, 4),
    "driver_feature": (0x0C, 4),
    "config_msix_vector": (0x10, 2),
    "num_queues": (0x12, 2),
    "device_status": (0x14, 1),
    "config_generation": (0x15, 1),
    "queue_select": (0x16, 2),
    "queue_size": (0x18, 2),
    "queue_msix_vector": (0x1A, 2),
    "queue_enable": (0x1C, 2),
    "queue_notify_off": (0x1E, 2),
    "queue_desc": (0x20, 8),
    "queue_driver": (0x28, 8),
    "queue_device": (0x30, 8),
    "queue_notif_config_data": (0x38, 2),
    "queue_reset": (0x3A, 2),
    "admin_queue_index": (0x3C, 2),
    "admin_queue_num": (0x3E, 2),
}
BOTH = pytest.mark.parametrize("name", ["pf", "vf1"])
MODERN = 1 << 32
ACTIVE, STOP, FREEZE = 0, 1, 2


@pytest.fixture
def device(shared: ServerProcess, name: str) -> Iterator[VirtioPci]:
    """A function after reset, with Bus Master Enable."""
    with VirtioPci.open(shared.socket(name), timeout=10) as found:
        found.function.set_command(6)
        yield found


def read(common: CommonConfig, name: str) -> int:
    offset, size = FIELDS[name]
    return common.raw_read(offset, size)


def write(common: CommonConfig, name: str, value: int) -> None:
    offset, size = FIELDS[name]
    common.raw_write(offset, size, value)


def agree(device: VirtioPci, features: int = MODERN | 1 << RING_RESET) -> None:
    """Up to FEATURES_OK."""
    device.common.write("device_status", 1)
    device.common.write("device_status", 3)
    device.common.accept(features)
    device.common.write("device_status", 11)
    assert device.status == 11


@BOTH
def test_after_reset(device: VirtioPci, name: str) -> None:
    """Every field of a function that nobody touched, for every queue and for one that is not there."""
    admin = name == "pf"
    queues = 3 if admin else 2
    for select in range(queues + 1):
        write(device.common, "queue_select", select)
        values = {field: read(device.common, field) for field in FIELDS}
        exists = select < queues
        size = values.pop("queue_size")
        assert (size > 0) == exists
        assert size & (size - 1) == 0
        assert size <= 32768
        assert values.pop("device_feature") == read(device.common, "device_feature")
        assert values == {
            "device_feature_select": 0,
            "driver_feature_select": 0,
            "driver_feature": 0,
            "config_msix_vector": 0xFFFF,
            "num_queues": 2,  # the admin queue does not count
            "device_status": 0,
            "config_generation": 0,
            "queue_select": select,
            "queue_msix_vector": 0xFFFF,
            "queue_enable": 0,
            "queue_notify_off": select if exists else 0,
            "queue_desc": 0,
            "queue_driver": 0,
            "queue_device": 0,
            "queue_notif_config_data": 0,
            "queue_reset": 0,
            "admin_queue_index": 2 if admin else 0,
            "admin_queue_num": 1 if admin else 0,
        }


@BOTH
def test_features_offered(device: VirtioPci, name: str) -> None:
    """What is there is offered, ADMIN_VQ and SR_IOV on the PF only; words above 1 read 0."""
    features = device.common.features()
    expected = {1, 2, 6, *range(9, 15), 28, 29, 32, 33, 34, 35, 38, 39, 40} | (
        {37, 41} if name == "pf" else set()
    )
    assert {bit for bit in range(128) if features >> bit & 1} == expected
    for word in (2, 3, 4, 31, 32, 0x8000_0000, 0xFFFF_FFFF):
        write(device.common, "device_feature_select", word)
        assert read(device.common, "device_feature_select") == word
        assert read(device.common, "device_feature") == 0


@BOTH
def test_read_only_fields(device: VirtioPci) -> None:
    names = ("device_feature", "num_queues", "config_generation", "queue_notify_off")
    for name in (*names, "queue_notif_config_data", "admin_queue_index", "admin_queue_num"):
        before = read(device.common, name)
        write(device.common, name, before ^ 0xFF)
        assert read(device.common, name) == before, name


@BOTH
def test_driver_features_read_back(device: VirtioPci) -> None:
    """Each word reads back; after FEATURES_OK they are fixed."""
    device.common.write("device_status", 3)
    device.common.accept(MODERN | 1 << 28)
    assert device.common.features("driver_feature") == MODERN | 1 << 28
    device.common.write("device_status", 11)
    device.common.accept(0)
    assert device.common.features("driver_feature") == MODERN | 1 << 28


@BOTH
@pytest.mark.parametrize(
    "refused",
    [
        0,
        1 << 28,  # no VERSION_1
        MODERN | 1 << 0,  # not offered
        MODERN | 1 << 5,
        MODERN | 1 << 36,  # ORDER_PLATFORM
        MODERN | 1 << 63,
        MODERN | 1 << 64,
        MODERN | 1 << 127,
    ],
)
@pytest.mark.spec("Device Status Field")
def test_features_refused(device: VirtioPci, refused: int) -> None:
    """FEATURES_OK does not hold, nor what needs it; a good subset is taken afterwards without a reset."""
    device.common.write("device_status", 3)
    device.common.accept(refused)
    device.common.write("device_status", 11)
    assert device.status == 3
    device.common.write("device_status", 15)
    assert device.status == 3
    device.common.accept(MODERN)
    device.common.write("device_status", 11)
    assert device.status == 11


@BOTH
def test_features_of_far_words_refused(device: VirtioPci) -> None:
    """A bit in a word that no feature has is refused as well, and forgotten at reset."""
    device.common.write("device_status", 3)
    device.common.accept(MODERN)
    write(device.common, "driver_feature_select", 0xFFFF_FFFF)
    write(device.common, "driver_feature", 1)
    device.common.write("device_status", 11)
    assert device.status == 3
    device.common.write("device_status", 0)
    agree(device)


STEPS = [
    # (status, written, becomes, becomes with --strict), features being acceptable
    (0, 1, 1, 1),
    (0, 2, 2, 0),  # DRIVER without ACKNOWLEDGE
    (0, 3, 3, 3),
    (0, 4, 0, 0),  # DRIVER_OK before FEATURES_OK
    (0, 8, 8, 0),  # FEATURES_OK alone
    (0, 10, 10, 0),
    (0, 12, 12, 0),
    (0, 11, 11, 11),
    (0, 15, 15, 15),  # all in one write
    (0, 128, 128, 128),
    (0, 64, 0, 0),  # not the driver's to set
    (0, 16, 0, 0),  # SUSPEND is not offered
    (0, 32, 0, 0),
    (1, 2, 3, 3),  # bits left out stay
    (1, 9, 9, 1),
    (1, 5, 1, 1),
    (3, 7, 3, 3),
    (3, 11, 11, 11),
    (3, 0xFF, 0x8F, 0x8F),
    (11, 15, 15, 15),
    (11, 3, 11, 11),
    (11, 1, 11, 11),
    (15, 1, 15, 15),
    (15, 0x8F, 0x8F, 0x8F),
    (15, 0x4F, 15, 15),
    (15, 0x1F, 15, 15),
    (0x8F, 15, 0x8F, 0x8F),
    *((status, 0, 0, 0) for status in (0, 1, 3, 11, 15, 128, 0x8F)),
]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.spec("Device Status Field")
def test_status_steps(serve: Callable[..., ServerProcess], strict: bool) -> None:
    """A row for each write: what it does to the status. A departure from the order is told once."""
    server = serve("--vfs", "2", "--disk", "ram:1M", *(["--strict"] if strict else []))
    with VirtioPci.open(server.socket("vf1"), timeout=10) as device:
        for status, written, *becomes in STEPS:
            write(device.common, "device_status", 0)
            device.common.accept(MODERN)
            if status:
                write(device.common, "device_status", status)
            assert device.status == status
            write(device.common, "device_status", written)
            assert device.status == becomes[strict], (status, written)
    with VirtioPci.open(server.socket("vf2"), timeout=10) as device:
        for written in (1, 3, 0x10, 0x40):
            write(device.common, "device_status", written)
    (told,) = re.findall(
        "the driver wrote (.*) to device_status where it was (.*), .* [(](.*)[)]", server.log
    )
    assert told == ("DRIVER", "0", "refused" if strict else "taken: DRIVER")


@pytest.mark.parametrize(
    ("before", "after"),
    [((8,), 12), ((1, 0, 2, 10), 14), ((9, 11), 15)],
    ids=["as iPXE after ifclose", "as U-Boot", "FEATURES_OK before DRIVER"],
)
def test_a_device_set_going_in_another_order(
    shared: ServerProcess, before: Iterable[int], after: int
) -> None:
    """It works, as one that was set going in the standard's order does; an owner can move it too."""
    with (
        OwnerDriver.open(shared.socket("pf"), timeout=10) as owner,
        VirtioPci.open(shared.socket("vf1"), timeout=10) as device,
    ):
        device.function.set_command(6)
        device.common.write("device_status", 0)
        for status in before:
            device.common.accept(MODERN)
            device.common.write("device_status", status)
        device.features = MODERN
        device.enable_interrupts()
        block = Driven(device, split_queue(device, 0, size=8))
        device.common.write("device_status", after)
        assert device.status == after
        block.flushed()
        for vf in (1, 2):
            for mode in (STOP, FREEZE):
                owner.mode_set(vf, mode)
        owner.context_write(2, owner.context_read(1))
        for vf in (1, 2):
            owner.mode_set(vf, ACTIVE)


@BOTH
def test_queue_sizes(device: VirtioPci) -> None:
    """Powers of 2 up to the queue's own size; everything else leaves it as it was."""
    agree(device)
    most = read(device.common, "queue_size")
    for value, becomes in ((1, 1), (most, most), (2, 2), (0, 2), (3, 2), (2 * most, 2), (0x8000, 2), (48, 2)):
        write(device.common, "queue_size", value)
        assert read(device.common, "queue_size") == becomes
    write(device.common, "device_status", 0)
    assert read(device.common, "queue_size") == most


@BOTH
def test_queue_fields_before_features(device: VirtioPci) -> None:
    """A queue is set up after FEATURES_OK, not before."""
    write(device.common, "queue_size", 2)
    device.common.write("queue_desc", 0x1000)
    write(device.common, "queue_enable", 1)
    assert read(device.common, "queue_size") != 2
    assert device.common.read("queue_desc") == 0
    assert read(device.common, "queue_enable") == 0


@BOTH
def test_queue_fields(device: VirtioPci, name: str) -> None:
    """Each queue has its own; a wide field's halves are written one at a time; enabled, they are fixed."""
    agree(device)
    for index in range(3 if name == "pf" else 2):
        write(device.common, "queue_select", index)
        write(device.common, "queue_size", 4 << index)
        write(device.common, "queue_msix_vector", index)
        for number, field in enumerate(("queue_desc", "queue_driver", "queue_device")):
            value = 0x1122_0000_0000 * (index + 1) + 0x1000 * (number + 1)
            offset, _ = FIELDS[field]
            device.common.raw_write(offset + 4, 4, value >> 32)
            assert read(device.common, field) == value >> 32 << 32
            device.common.raw_write(offset, 4, value & 0xFFFFFFFF)
            assert read(device.common, field) == value
    for index in range(3 if name == "pf" else 2):
        write(device.common, "queue_select", index)
        assert read(device.common, "queue_size") == 4 << index
        assert read(device.common, "queue_msix_vector") == index
        assert read(device.common, "queue_desc") == 0x1122_0000_0000 * (index + 1) + 0x1000
    write(device.common, "queue_select", 0)
    write(device.common, "queue_enable", 1)
    assert read(device.common, "queue_enable") == 1
    for field in ("queue_size", "queue_desc", "queue_driver", "queue_device", "queue_enable"):
        before = read(device.common, field)
        write(device.common, field, 0)
        assert read(device.common, field) == before, field
    assert device.status == 11


@BOTH
def test_queue_that_is_not_there(device: VirtioPci, name: str) -> None:
    agree(device)
    for select in (3 if name == "pf" else 2, 100, 0xFFFF):
        write(device.common, "queue_select", select)
        for field in (
            "queue_size",
            "queue_desc",
            "queue_driver",
            "queue_device",
            "queue_enable",
            "queue_reset",
        ):
            write(device.common, field, 1)
            assert read(device.common, field) == 0
        write(device.common, "queue_msix_vector", 0)
        assert read(device.common, "queue_msix_vector") == 0xFFFF


@BOTH
@pytest.mark.parametrize(("field", "value"), [("queue_desc", 8), ("queue_driver", 1), ("queue_device", 2)])
@pytest.mark.spec("Split Virtqueues")
def test_misaligned_rings(device: VirtioPci, field: str, value: int) -> None:
    """Enabling a queue with a ring that is not aligned: DEVICE_NEEDS_RESET, and the queue stays off."""
    agree(device)
    device.common.write(field, 0x10000 + value)
    write(device.common, "queue_enable", 1)
    assert device.status == 11 | 64
    assert read(device.common, "queue_enable") == 0
    write(device.common, "device_status", 0)
    agree(device)


@BOTH
def test_reset_clears_everything(device: VirtioPci, name: str) -> None:
    device.common.write("device_feature_select", 1)
    before = {field: read(device.common, field) for field in FIELDS}
    before.update(device_feature_select=0)
    block = bring_up(device, features=(VERSION_1, INDIRECT_DESC, RING_RESET))
    for index in range(3 if name == "pf" else 2):
        write(device.common, "queue_select", index)
        write(device.common, "queue_msix_vector", 1)
        if index:
            device.common.write("queue_desc", 0x1000)
            write(device.common, "queue_size", 4)
    assert block.device.status == 15
    write(device.common, "device_status", 0)
    after = {field: read(device.common, field) for field in FIELDS}
    assert after["device_status"] == 0
    assert after["queue_select"] == 0
    before.pop("device_feature")
    after.pop("device_feature")
    assert after == before
    for index in range(3 if name == "pf" else 2):
        write(device.common, "queue_select", index)
        assert read(device.common, "queue_msix_vector") == 0xFFFF
        assert read(device.common, "queue_enable") == 0
        assert read(device.common, "queue_desc") == 0
        assert read(device.common, "queue_size") > 4
    assert device.isr_read() == 0


@BOTH
def test_every_access_width(device: VirtioPci) -> None:
    """Any aligned access of 1, 2, 4 or 8 bytes, and the whole structure at once."""
    device.common.write("device_feature_select", 1)
    device.common.write("queue_select", 1)
    whole = device.common._function.bar_bytes(0, device.structures[1].offset, 64)
    for width in (1, 2, 4, 8):
        pieces = [
            device.common.raw_read(offset, width).to_bytes(width, "little") for offset in range(0, 64, width)
        ]
        assert b"".join(pieces) == whole
    agree(device)
    for offset, byte in enumerate(b"\x00\x10\x20\x30\x40\x50\x60\x70"):
        device.common.raw_write(0x20 + offset, 1, byte)
    assert device.common.raw_read(0x20, 8) == 0x7060504030201000
    device.common.raw_write(0x20, 8, 0xABCD0)
    assert device.common.read("queue_desc") == 0xABCD0
    device.common.raw_write(0x08, 8, 1 << 32 | 5)
    assert device.common.read("driver_feature_select") == 5


@BOTH
def test_device_configuration(device: VirtioPci) -> None:
    """Struct virtio_blk_config, readable before any feature is agreed, and read-only."""
    raw = device.config_bytes()
    assert len(raw) == 60
    capacity, size_max, seg_max = struct.unpack_from("<QII", raw)
    assert (capacity, size_max) == (2048, 4 << 20)
    assert 0 < seg_max <= 254
    assert struct.unpack_from("<I", raw, 20) == (512,)
    assert struct.unpack_from("<H", raw, 34) == (2,)
    device.config_write(0, 4, 0)
    device.config_write(32, 1, 0)  # before CONFIG_WCE was agreed
    assert device.config_bytes() == raw
    for offset in range(60):
        assert device.config_bytes(offset, 1) == raw[offset : offset + 1]
    assert device.config_bytes(56, 8) == raw[56:] + bytes(4)


def test_generation_moves_with_what_was_read(shared: ServerProcess) -> None:
    """Nothing changed, so the generation does not, however often the configuration is read."""
    with driven(shared.socket("vf1")) as block:
        first = block.device.common.read("config_generation")
        for _ in range(3):
            block.device.config_bytes()
            assert block.device.common.read("config_generation") == first


def test_one_queue_means_no_mq(serve: Callable[..., ServerProcess]) -> None:
    server = serve("--vfs", "1")
    with VirtioPci.open(server.socket("vf1")) as device:
        assert not device.common.features() >> 12 & 1
        assert device.common.read("num_queues") == 1
