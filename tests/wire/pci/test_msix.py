"""MSI-X, ISR status and INTx: which event signals what, when, and how often."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.server_process import ServerProcess
from tests.wire.driving import EVENT_IDX, INDIRECT_DESC, RING_RESET, VERSION_1, Driven, driven
from tests.wire.running import until
from vfu_client.vfio.connection import Connection
from vfu_client.vfio.interrupt import Interrupt
from vfu_client.vfio.msix import Msix
from vfu_client.vfio.pci import PciFunction

BOTH = pytest.mark.parametrize("name", ["pf", "vf1"])


@BOTH
def test_capability(shared: ServerProcess, name: str) -> None:
    """Table and PBA each in a page of its own, and the table's is full: 256 vectors of 16 bytes."""
    with Connection(shared.socket(name)) as connection:
        function = PciFunction(connection)
        at = function.find_capability(0x11)
        assert function.config_read(at + 2, 2) == 255
        assert connection.irq_info(2).count == 256
        table, pending = function.config_read(at + 4, 4), function.config_read(at + 8, 4)
        assert table == 2
        assert pending == 0x1000 | 2
        assert connection.region_info(2).size == 0x2000
        function.config_write(at + 2, 2, 0xFFFF)
        assert function.config_read(at + 2, 2) == 0xC000 | 255
        function.config_write(at + 4, 4, 0)
        assert function.config_read(at + 4, 4) == table


def test_table(shared: ServerProcess) -> None:
    """Entries keep what is written, the address its alignment, control its mask bit; 0 at first."""
    with Connection(shared.socket("vf1")) as connection:
        msix = Msix(PciFunction(connection))
        assert msix.read_entry(2) == (0, 0, 0)
        msix.write_entry(2, 0x1122_3344_FEE0_1003, 0xDEAD_BEEF, 0xFFFF_FFFF)
        assert msix.read_entry(2) == (0x1122_3344_FEE0_1000, 0xDEAD_BEEF, 1)
        assert msix.read_entry(1) == (0, 0, 0)
        connection.region_write(2, 2 * 16 + 4, (0x55).to_bytes(8, "little"))
        assert msix.read_entry(2) == (0x55_FEE0_1000, 0, 1)
        assert msix.read_entry(255) == (0, 0, 0)
        msix.write_entry(255, 0x4FEE0_0000, 7, 1)
        assert msix.read_entry(255) == (0x4FEE0_0000, 7, 1)
        connection.region_write(2, 0x1000, b"\xff" * 16)  # past the table
        assert connection.region_read(2, 0x1000, 16) == bytes(16)


@pytest.mark.parametrize(("queues", "vectors"), [(255, 256), (256, 512)])
def test_the_table_fills_its_pages(serve: Callable[..., ServerProcess], queues: int, vectors: int) -> None:
    """As many queues as a page of entries has room for, and one more: two pages, full as well."""
    server = serve("--vfs", "1", "--queues", str(queues), "--disk", "ram:1M")
    with Connection(server.socket("vf1")) as connection:
        function = PciFunction(connection)
        at = function.find_capability(0x11)
        assert function.config_read(at + 2, 2) + 1 == connection.irq_info(2).count == vectors
        assert function.config_read(at + 8, 4) == 16 * vectors | 2
        assert 16 * vectors % 0x1000 == 0
        assert connection.region_info(2).size >= 16 * vectors + 0x1000


@BOTH
def test_each_event_to_its_vector(shared: ServerProcess, name: str) -> None:
    """One message per event, at the vector it is mapped to; the ISR queue bit is not used."""
    with driven(shared.socket(name)) as block:
        block.flushed()
        assert block.signals()[:3] == [0, 1, 0]
        assert block.device.isr_read() == 0
        block.device.common.write("queue_select", 0)
        block.device.common.write("queue_msix_vector", 2)
        block.flushed()
        assert block.signals()[:3] == [0, 0, 1]


@BOTH
def test_masked_entry(shared: ServerProcess, name: str) -> None:
    """Masked: the pending bit is set and nothing is sent. Unmasked: sent once, the bit is clear."""
    with driven(shared.socket(name)) as block:
        msix = block.device.msix
        assert msix is not None
        msix.mask(1)
        assert not msix.pending(1)
        block.flushed()
        block.flushed()
        assert msix.pending(1)
        assert not msix.pending(0)
        assert sum(block.signals()) == 0
        block.device.function.bar_write(2, 0x1000, 4, 0)  # the pending bits take no write
        assert msix.pending(1)
        msix.mask(1, masked=False)
        msix.interrupts[1].wait(10)
        assert not msix.pending(1)
        msix.mask(1)
        msix.mask(1, masked=False)
        assert sum(block.signals()) == 0


@BOTH
def test_function_mask(shared: ServerProcess, name: str) -> None:
    """Function mask holds all vectors back; those masked by themselves stay so when it goes."""
    with driven(shared.socket(name)) as block:
        msix = block.device.msix
        assert msix is not None
        msix.control |= 0x4000
        msix.mask(0)
        block.flushed()
        block.device.common.write("queue_desc", 0)  # ignored: the queue is enabled
        block.queue.publish(999)
        block.queue.kick(force=True)
        until(lambda: bool(block.device.status & 64), "needs reset")
        assert (msix.pending(0), msix.pending(1)) == (True, True)
        assert sum(block.signals()) == 0
        msix.control &= ~0x4000
        assert block.signals()[:2] == [0, 1]
        assert (msix.pending(0), msix.pending(1)) == (True, False)
        msix.mask(0, masked=False)
        assert block.signals()[:2] == [1, 0]


def test_no_vector_no_interrupt(shared: ServerProcess) -> None:
    """NO_VECTOR with MSI-X on: the event is not signalled at all, nor is it later."""
    with driven(shared.socket("vf1")) as block:
        common = block.device.common
        common.write("queue_select", 0)
        common.write("queue_msix_vector", 0xFFFF)
        block.flushed()
        assert sum(block.signals()) == 0
        common.write("queue_msix_vector", 1)
        assert sum(block.signals()) == 0
        block.flushed()
        assert block.signals()[1] == 1


@pytest.mark.parametrize("field", ["config_msix_vector", "queue_msix_vector"])
def test_vector_that_does_not_exist(shared: ServerProcess, field: str) -> None:
    """Mapping failed: reads back NO_VECTOR; the greatest vector works; so does unmapping."""
    with driven(shared.socket("vf1")) as block:
        common = block.device.common
        for value, becomes in ((2, 2), (255, 255), (256, 0xFFFF), (0, 0), (0x7FF, 0xFFFF), (0xFFFF, 0xFFFF)):
            common.write(field, value)
            assert common.read(field) == becomes


def held_back(block: Driven) -> Msix:
    """The vectors of a function that was made to signal vector 1 while that is masked."""
    msix = block.device.msix
    assert msix is not None
    msix.mask(1)
    block.flushed()
    return msix


def test_pending_ends_with_a_reset(shared: ServerProcess) -> None:
    """Reset forgets what was owed: no interrupt afterwards."""
    with driven(shared.socket("vf1")) as block:
        msix = held_back(block)
        assert msix.pending(1)
        block.device.reset()
        assert not msix.pending(1)
        msix.mask(1, masked=False)
        assert sum(block.signals()) == 0


def test_pending_ends_with_a_queue_reset(shared: ServerProcess) -> None:
    with driven(shared.socket("vf1"), features=(VERSION_1, RING_RESET)) as block:
        msix = held_back(block)
        block.device.reset_queue(0)
        assert not msix.pending(1)


def test_no_messages_without_bus_master(shared: ServerProcess) -> None:
    """An MSI is a memory write: it waits for Bus Master Enable."""
    with driven(shared.socket("vf1"), ok=False) as block:
        device = block.device
        device.function.clear_command(4)
        device.driver_ok()
        device.common.write("queue_select", 1)
        device.common.write("queue_desc", 8)
        device.common.write("queue_enable", 1)
        assert device.status & 64
        assert sum(block.signals()) == 0
        device.function.set_command(4)
        assert block.signals() == [1, 0, 0]


def test_messages_wait_for_d0(shared: ServerProcess) -> None:
    with driven(shared.socket("vf1")) as block:
        msix = held_back(block)
        block.device.function.set_power_state(3)
        msix.control |= 0x4000
        block.device.function.bar_write(2, 16 + 12, 4, 0)  # nobody answers in D3hot
        msix.control &= ~0x4000
        block.device.function.set_power_state(0)
        assert msix.masked(1)
        assert sum(block.signals()) == 0
        msix.mask(1, masked=False)
        assert block.signals()[1] == 1


def test_a_vf_has_no_intx(shared: ServerProcess) -> None:
    """MSI-X off on a VF: the ISR status tells, no interrupt, no Interrupt Status."""
    with driven(shared.socket("vf1")) as block:
        assert block.device.msix is not None
        assert block.device.connection.irq_info(0).count == 0
        block.device.msix.control &= ~0x8000
        block.flushed()
        assert sum(block.signals()) == 0
        assert block.device.function.config_read(6, 2) == 0x10
        assert block.device.isr_read() == 1
        assert block.device.isr_read() == 0


# INTx, which the PF alone has.


def line(block: Driven) -> Interrupt:
    """The interrupt pin's eventfd, without the driver's acknowledgement."""
    pin = Interrupt()
    block.device.connection.set_eventfds(0, 0, [pin.fileno()])
    return pin


def test_intx(shared: ServerProcess) -> None:
    """A driver without MSI-X: each request is told by INTx, the ISR status read clears it."""
    with driven(shared.socket("pf"), use_msix=False) as block:
        assert block.device.intx is not None
        for number in range(1, 4):
            block.flush()
            block.device.intx.wait(10)
            assert block.device.intx.last_isr == 1
            assert block.queue.device_used_idx == number
        assert block.device.isr_read() == 0


def test_intx_level(shared: ServerProcess) -> None:
    """The level stays up until the ISR status is read: after every other access it is asserted again."""
    with driven(shared.socket("pf"), use_msix=False) as block:
        pin = line(block)
        assert block.device.function.config_read(6, 2) == 0x10
        block.flush()
        pin.wait(10)
        for _ in range(3):
            assert block.device.function.config_read(6, 2) == 0x18
            block.device.connection.unmask_irqs(0, 0, 1)
            assert block.device.status == 15
            pin.wait(10)
        assert block.device.isr_read() == 1
        pin.drain()
        assert block.device.function.config_read(6, 2) == 0x10
        block.device.connection.unmask_irqs(0, 0, 1)
        assert block.device.status == 15
        assert pin.drain() == 0
        pin.close()


def test_intx_of_both_kinds(shared: ServerProcess) -> None:
    """Bit 0 for a queue, bit 1 for a configuration change; both are cleared by one read."""
    with driven(shared.socket("pf"), use_msix=False) as block:
        pin = line(block)
        block.flushed()
        block.queue.publish(999)
        block.queue.kick(force=True)
        until(lambda: bool(block.device.status & 64), "needs reset")
        pin.wait(10)
        assert block.device.isr_read() == 3
        assert block.device.isr_read() == 0
        pin.close()


def test_intx_disable(shared: ServerProcess) -> None:
    """INTx Disable: Interrupt Status shows the level, the line is silent; it rises when the bit goes."""
    with driven(shared.socket("pf"), use_msix=False) as block:
        pin = line(block)
        block.device.function.set_command(0x400)
        block.flushed()
        assert block.device.function.config_read(6, 2) == 0x18
        assert pin.drain() == 0
        block.device.function.clear_command(0x400)
        pin.wait(10)
        assert block.device.isr_read() == 1
        pin.close()


def test_intx_falls_with_a_reset(shared: ServerProcess) -> None:
    with driven(shared.socket("pf"), use_msix=False) as block:
        block.flushed()
        assert block.device.function.config_read(6, 2) == 0x18
        block.device.common.write("device_status", 0)
        assert block.device.function.config_read(6, 2) == 0x10
        assert block.device.isr_read() == 0


def test_isr_wide_reads(shared: ServerProcess) -> None:
    """A wider read gives the byte and zeros; a read next to it clears nothing."""
    with driven(shared.socket("pf"), use_msix=False, features=(VERSION_1, INDIRECT_DESC, EVENT_IDX)) as block:
        block.flushed()
        isr = block.device.structures[3]
        assert block.device.function.bar_read(isr.bar, isr.offset + 1, 1) == 0
        assert block.device.function.bar_read(isr.bar, isr.offset, 4) == 1
        assert block.device.function.bar_read(isr.bar, isr.offset, 4) == 0
