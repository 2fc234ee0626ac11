"""Accesses of the wrong width, at the wrong place or time, and device configuration."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pymodel.spec import virtio_pci
from tests.server_process import ServerProcess
from tests.wire.rules.author import VERSION_1, Author, Listener, Mistake
from tests.wire.rules.conftest import Checked


def _device(author: Author, offset: int, size: int) -> int:
    """Read device configuration in one access."""
    structure = author.device.structures[virtio_pci.CAP_DEVICE_CFG]
    return author.device.function.bar_read(structure.bar, structure.offset + offset, size)


def eight_bytes_at_once(author: Author) -> None:
    author.device.common.raw_read(32, 8)


def two_fields_at_once(author: Author) -> None:
    author.device.common.raw_read(20, 2)


def half_a_field(author: Author) -> None:
    author.agree()
    author.select()
    author.device.common.raw_write(24, 1, 8)


def an_address_at_once(author: Author) -> None:
    """Also of a network card: all six bytes."""
    author.read("config_generation")
    _device(author, 0, 4)
    author.read("config_generation")


def writes_a_capability(author: Author) -> None:
    capability = author.device.structures[virtio_pci.CAP_COMMON_CFG].capability
    author.device.function.config_write(capability + 8, 4, 0x1000)


def a_window_that_is_not_aligned(author: Author) -> None:
    assert author.device.window_read(0, 2, 4) == 0


def a_window_on_the_msix_table(author: Author) -> None:
    author.device.window_read(2, 0, 4)


def behind_the_common_configuration(author: Author) -> None:
    author.device.function.bar_read(0, 0x100, 4)


def behind_all_structures(author: Author) -> None:
    author.device.function.bar_read(2, 0, 4)  # the MSI-X table is there
    author.device.function.bar_read(0, 0x2000 + 0x100, 1)


def asleep(author: Author) -> None:
    author.device.function.set_power_state(3)
    assert author.device.function.bar_read(0, 20, 1) == 0xFF


def half_a_capacity_and_then_the_other(author: Author) -> None:
    _device(author, 0, 4)
    _device(author, 4, 4)
    author.read("config_generation")


def does_not_look_afterwards(author: Author) -> None:
    author.read("config_generation")
    _device(author, 0, 4)
    _device(author, 4, 4)
    author.read("device_status")


def geometry(author: Author) -> None:
    _device(author, 16, 2)


def writes_the_capacity(author: Author) -> None:
    author.agree()
    author.device.config_write(0, 4, 1)


def reads_writeback_early(author: Author) -> None:
    author.begin()
    _device(author, 32, 1)


def writes_an_address(author: Author) -> None:
    author.agree()
    author.device.config_write(0, 1, 2)


DISKS = [
    Mistake("PCI-01", eight_bytes_at_once, "queue_desc read", where={"expected": "two accesses of 32 bits"}),
    Mistake("PCI-01", two_fields_at_once, r"\(device_status and config_generation\) read"),
    Mistake(
        "PCI-01", half_a_field, r"1 bytes at 0x18 .*\(queue_size\) written", where={"expected": "16 bits"}
    ),
    Mistake("PCI-02", writes_a_capability, "0x1000 written to common.offset"),
    Mistake("PCI-03", a_window_that_is_not_aligned, "cap.bar 0, cap.offset 0x2, cap.length 4"),
    Mistake("PCI-04", a_window_on_the_msix_table, "cap.bar 2, cap.offset 0x0, cap.length 4"),
    Mistake("PCI-05", behind_the_common_configuration, "4 bytes at 0x100 of common configuration read"),
    Mistake("PCI-05", behind_all_structures, "1 bytes at 0x100 of device configuration read"),
    Mistake("PCI-06", asleep, "device_status read in D3"),
    Mistake("CONF-01", half_a_capacity_and_then_the_other, "capacity, 64 bits, read"),
    Mistake("CONF-01", does_not_look_afterwards, "capacity read, and then device_status read"),
    Mistake("CONF-02", geometry, "geometry.cylinders read, and feature bit 4 is not offered"),
    Mistake("CONF-04", writes_the_capacity, "0x1 written to capacity"),
    Mistake("CONF-05", reads_writeback_early, "writeback read before FEATURES_OK"),
]
NETWORKS = [
    Mistake("PCI-01", an_address_at_once, r"\(mac\) read", where={"expected": "8 bits at a time"}),
    Mistake("CONF-03", writes_an_address, "0x2 written to mac"),
]


@pytest.mark.parametrize("mistake", DISKS, ids=lambda mistake: mistake.id)
def test_mistake(author: Author, told: Callable[[Author, Mistake], None], mistake: Mistake) -> None:
    told(author, mistake)


@pytest.mark.parametrize("mistake", NETWORKS, ids=lambda mistake: mistake.id)
def test_mistake_at_a_network_card(
    net_author: Author, told: Callable[[Author, Mistake], None], mistake: Mistake
) -> None:
    told(net_author, mistake)


def in_the_middle_of_a_reset(author: Author) -> None:
    at = author.device.function.find_capability(0x10)
    author.device.function.config_write(at + 8, 2, 0x8000)
    author.device.function.bar_read(0, 20, 1)


@pytest.mark.parametrize(
    "mistake",
    [Mistake("PCI-07", in_the_middle_of_a_reset, "device_status read during a function-level reset")],
    ids=lambda mistake: mistake.id,
)
def test_mistake_during_a_function_level_reset(
    serve: Callable[..., ServerProcess], told: Callable[[Author, Mistake], None], mistake: Mistake
) -> None:
    server = serve("--vfs", "1", "--disk", "ram:64k", "--check-driver", "--flr-delay-ms", "500")
    listener = Listener(server)
    with Author(server, "vf1", listener) as author:
        told(author, mistake)
    listener.close()


def memory_space_is_off(author: Author) -> None:
    author.device.function.clear_command(2)
    author.read("device_status")


def vfs_without_the_feature(author: Author) -> None:
    author.run([VERSION_1])
    at = author.device.function.find_extended(0x10)
    author.device.function.config_write(at + 8, 2, 0)
    author.device.function.config_write(at + 8, 2, 9)


@pytest.mark.parametrize(
    "mistake",
    [
        Mistake("PCI-06", memory_space_is_off, "device_status read, and Memory Space Enable is clear"),
        Mistake("FEAT-07", vfs_without_the_feature, "VF Enable set, and SR_IOV .* was never negotiated"),
    ],
    ids=lambda mistake: mistake.id,
)
def test_mistake_at_the_physical_function(
    serve: Callable[..., ServerProcess], told: Callable[[Author, Mistake], None], mistake: Mistake
) -> None:
    checked = Checked(serve("--vfs", "1", "--disk", "ram:64k", "--check-driver"))
    with checked.author("pf") as author:
        author.device.function.set_command(6)
        told(author, mistake)
    checked.close()
