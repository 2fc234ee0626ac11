"""What a VF must not do unless Active, and what must work all the same: DMA, interrupts, registers.

Silence is shown by all of the VF's memory, byte by byte, and by its eventfds; then that what was held
comes once the VF is Active.
"""

from __future__ import annotations

import struct

import pytest

from tests.wire.draft_rig import (
    ACTIVE,
    COMMON_CFG,
    CTX_DISCARD,
    EACH,
    FREEZE,
    NEEDS_RESET,
    OK,
    PATTERN,
    PENDING,
    QUEUE_DESC,
    QUEUE_SELECT,
    SILENT,
    STOP,
    T_OUT,
    TIMEOUT,
    Rig,
    build,
    context,
    field,
    parse,
    queue_select,
    value,
)
from tests.wire.running import until
from vfu_client.drivers.block import BlockDriver, BlockRequest


@pytest.fixture
def rig(rig: Rig) -> Rig:
    """Its disk begins with the pattern, there and back; queue_select is 0, and no eventfd is signalled."""
    rig.lay_out()
    return rig


# DMA.


@SILENT
@pytest.mark.spec("DEV-13", "DEV-22", "DEV-15")
@pytest.mark.parametrize("early", [True, False], ids=["queued-before", "queued-after"])
def test_nothing_moves(rig: Rig, mode: int, early: bool) -> None:
    """Requests queued and kicked, before or after the mode change: memory and eventfds stay as they are.

    Then Active: they complete without another kick, with one interrupt and the right data.
    """
    if early:
        requests = [rig.read_request(sector, kick=False) for sector in (0, 1)]
        rig.go(mode)
    else:
        rig.go(mode)
        requests = [rig.read_request(sector, kick=False) for sector in (0, 1)]
    used = rig.queue.device_used_idx
    with rig.silence():
        assert rig.queue.kick(force=True)
        assert rig.queue.kick(force=True)
    assert rig.queue.device_used_idx == used
    assert all(request.data is not None and (request.data.view == 0xEE).all() for request in requests)
    rig.go(ACTIVE)
    assert [rig.finish(request) for request in requests] == [PATTERN, PATTERN[::-1]]
    assert rig.queue.device_used_idx == (used + 2) & 0xFFFF


@SILENT
@pytest.mark.spec("DEV-13", "DEV-22")
def test_writes_to_the_disk_wait_too(rig: Rig, mode: int) -> None:
    """A write that was kicked reads no payload: it may be changed until Active, and the late one counts."""
    rig.go(mode)
    payload = rig.placed(b"\x01" * 512)
    request = rig.disk.submit(T_OUT, 0, payload)
    before = rig.context()
    with rig.silence():
        pass
    assert rig.context() == before
    payload.view[:] = 0x02
    rig.go(ACTIVE)
    rig.disk.finish(request)
    assert rig.disk.read(0).tobytes() == b"\x02" * 512


@SILENT
@pytest.mark.spec("DEV-22")
def test_rings_are_not_read(rig: Rig, mode: int) -> None:
    """Rings and descriptors full of nonsense while kicked, and restored before Active: nobody looked.

    A device that reads them breaks: 0xeeee buffers in a ring of 256, descriptors that point nowhere.
    """
    request = rig.read_request(kick=False)
    rig.go(mode)
    rings = rig.queue.parts
    saved = [ring.view.copy() for ring in rings]
    for ring in rings:
        ring.view[:] = 0xEE
    with rig.silence():
        for _ in range(3):
            rig.device.notify(0)
        rig.device.notify(1)
    for ring, content in zip(rings, saved, strict=True):
        ring.view[:] = content
    assert rig.device.status == 0x0F
    rig.go(ACTIVE)
    assert rig.finish(request) == PATTERN
    assert rig.device.status == 0x0F


@SILENT
@pytest.mark.spec("DEV-13", "DEV-22")
def test_memory_may_go_away(rig: Rig, mode: int) -> None:
    """All memory unmapped in Stop and Freeze, and mapped again before Active: nobody missed it."""
    request = rig.read_request(kick=False)
    rig.go(mode)
    (region,) = rig.device.memory.regions
    rig.device.memory.unmap(region)
    rig.device.notify(0)
    assert rig.mode == mode
    assert rig.signalled() == []
    rig.device.memory.map(region)
    assert rig.device.status == 0x0F
    rig.go(ACTIVE)
    assert rig.finish(request) == PATTERN


@SILENT
@pytest.mark.spec("DEV-13", "DEV-14", "DEV-22")
def test_silence_under_load(rig: Rig, mode: int) -> None:
    """The mode changes while 200 requests run, again and again: from the answer on nothing moves.

    Each request completes once, with the right data.
    """
    for _ in range(4):
        requests = [rig.read_request(number % 2, kick=False) for number in range(200)]
        rig.queue.kick(force=True)
        rig.go(mode)
        with rig.silence(0.05):
            rig.device.notify(0)
        rig.go(ACTIVE)
        for number, request in enumerate(requests):
            assert rig.finish(request) == (PATTERN, PATTERN[::-1])[number % 2]
            assert request.data is not None
            rig.device.memory.free(request.data)
        assert rig.disk.in_flight == 0


@SILENT
@pytest.mark.spec("DEV-13")
def test_other_functions_go_on(rig: Rig, mode: int) -> None:
    """The PF, its admin queue included, is no member (A-28); the gate is that of one VF."""
    rig.go(mode)
    with BlockDriver.open(rig.server.socket("vf2"), timeout=TIMEOUT) as other:
        other.write(0, PATTERN)
        assert other.read(0).tobytes() == PATTERN
    assert rig.mode == mode


# Notifications.


@SILENT
@pytest.mark.spec("DEV-15")
def test_notifications_are_accepted(rig: Rig, mode: int) -> None:
    """Every queue's notify address takes a write, of a queue that is not enabled too; nothing breaks.

    The kick is not lost, in Freeze neither (A-18): the requests complete in Active without another.
    """
    rig.go(mode)
    request = rig.read_request(kick=False)
    for index in (0, 1, 0):
        rig.device.notify(index)
    assert rig.device.status == 0x0F
    assert rig.mode == mode
    rig.go(ACTIVE)
    assert rig.finish(request) == PATTERN


@pytest.mark.spec("DEV-15")
def test_a_kick_in_stop_survives_freeze(rig: Rig) -> None:
    """Kicked in Stop, then Freeze and back to Stop, then Active."""
    rig.go(STOP)
    request = rig.read_request()
    rig.go(FREEZE)
    rig.go(STOP)
    assert rig.signalled() == []
    rig.go(ACTIVE)
    assert rig.finish(request) == PATTERN


# Interrupts and configuration changes.


@SILENT
@pytest.mark.spec("DEV-23", "DEV-13")
def test_a_configuration_change_is_held(rig: Rig, mode: int) -> None:
    """It happens in Stop; its vector is silent, in Freeze too, and fires exactly once after Active."""
    rig.go(STOP)
    with rig.silence():
        rig.break_device()
        rig.go(mode)
    assert value(rig.context(), PENDING)[0] == 1
    assert rig.device.msix is not None
    assert rig.device.msix.pending(0)
    rig.go(ACTIVE)
    assert rig.signalled(10) == [0]
    assert rig.device.isr_read() == 2
    assert rig.device.status & NEEDS_RESET
    assert rig.signalled() == []
    assert not rig.device.msix.pending(0)


@SILENT
@pytest.mark.spec("DEV-23")
def test_a_change_that_was_owed_before_stays_owed(rig: Rig, mode: int) -> None:
    """Owed and masked in Active: unmasking in Stop or Freeze lets nothing out; Active does, once."""
    assert rig.device.msix is not None
    rig.device.msix.mask(0)
    rig.break_device()
    assert rig.device.msix.pending(0)
    rig.go(mode)
    with rig.silence():
        rig.device.msix.mask(0, masked=False)
        rig.device.msix.control = 0xC000
        rig.device.msix.control = 0x8000
        assert rig.device.msix.pending(0)
    rig.go(ACTIVE)
    assert rig.signalled(10) == [0]
    assert rig.signalled() == []


@EACH
@pytest.mark.spec("DEV-23")
def test_changes_from_outside(rig: Rig, mode: int) -> None:
    """The operator changes the configuration, twice: told at once in Active, otherwise once after it."""
    rig.go(mode)
    before = rig.memory()
    for _ in range(2):
        rig.server.ask("config-change", function="vf1")
        if mode == ACTIVE:
            assert rig.signalled(10) == [0]
    assert rig.signalled() == []
    assert (rig.memory() == before).all()
    if mode != ACTIVE:
        rig.go(ACTIVE)
        assert rig.signalled(10) == [0]
        assert rig.signalled() == []
    assert rig.device.isr_read() == 2


@pytest.mark.spec("DEV-23", "DEV-20")
def test_a_change_from_outside_in_freeze_joins_later(rig: Rig) -> None:
    """In Freeze it is held apart from the context (A-21), a written one too, and joins it in Stop."""
    rig.device.config_bytes()
    rig.go(FREEZE)
    before = rig.context()
    with rig.silence():
        rig.server.ask("config-change", function="vf1")
        assert rig.context() == before
        assert rig.device.common.read("config_generation") == 0
        assert rig.write(before) == OK
        assert rig.context() == before
        rig.go(STOP)
        after = rig.context()
    assert (value(before, PENDING)[0], value(after, PENDING)[0]) == (0, 1)
    assert (value(before, COMMON_CFG)[15], value(after, COMMON_CFG)[15]) == (0, 1)
    rig.go(ACTIVE)
    assert rig.signalled(10) == [0]
    assert rig.signalled() == []


@pytest.mark.spec("DEV-13", "DEV-23")
def test_an_interrupt_is_not_late(rig: Rig) -> None:
    """Active for an instant only: what is owed comes before Stop is answered, or stays owed; not after it.

    Half a message holds up the VF's own thread meanwhile, so that it has no chance to be in time.
    """
    message = struct.pack("<HHIIIQII", 0x7FFF, 9, 32, 0, 0, 0, 7, 4)
    for _ in range(5):
        rig.go(FREEZE)
        rig.server.ask("config-change", function="vf1")
        rig.device.connection.send_raw(message[:20])
        rig.go(ACTIVE)
        rig.go(STOP)
        told = rig.signalled(0)
        rig.device.connection.send_raw(message[20:])
        assert rig.signalled(0.05) == []
        assert value(rig.context(), PENDING)[0] == (0 if told else 1)
        rig.go(ACTIVE)
        if not told:
            assert rig.signalled(10) == [0]


@pytest.mark.spec("DEV-23")
def test_a_change_written_in_freeze_is_told_in_active(rig: Rig) -> None:
    """PENDING in a written context: silent in Freeze and in Stop, once in Active."""
    rig.go(FREEZE)
    with rig.silence():
        assert rig.write(context(field(PENDING, b"\1" + bytes(7)))) == OK
        assert value(rig.context(), PENDING)[0] == 1
        rig.go(STOP)
    rig.go(ACTIVE)
    assert rig.signalled(10) == [0]
    assert rig.signalled() == []


def used_and_masked(rig: Rig) -> BlockRequest:
    """A request that completes and whose interrupt is wanted; the caller masked it."""
    used = rig.queue.device_used_idx
    rig.queue.ask_for_interrupt()
    request = rig.read_request()
    until(lambda: rig.queue.device_used_idx != used, "the request to complete")
    return request


@SILENT
@pytest.mark.spec("DEV-13")
def test_a_queue_interrupt_is_held_too(rig: Rig, mode: int) -> None:
    """A used buffer's interrupt that was masked: it is owed in the context, silent, and sent after Active."""
    assert rig.device.msix is not None
    rig.device.msix.mask(1)
    request = used_and_masked(rig)
    rig.go(mode)
    assert value(rig.context(), rig.vq_state)[6] == 1
    with rig.silence():
        rig.device.msix.mask(1, masked=False)
    rig.go(ACTIVE)
    assert rig.signalled(10) == [1]
    assert rig.finish(request) == PATTERN
    assert value(rig.context(), rig.vq_state)[6] == 0


@SILENT
@pytest.mark.spec("DEV-13", "DEV-18")
def test_bus_master_and_power_do_not_open_the_gate(rig: Rig, mode: int) -> None:
    """Bus Master Enable 0 to 1, and D3hot to D0, in Stop and Freeze: still silent (A-31 needs Active)."""
    rig.go(mode)
    request = rig.read_request()
    with rig.silence():
        rig.device.function.clear_command(4)
        rig.device.function.set_command(4)
        rig.device.function.set_power_state(3)
        rig.device.function.set_power_state(0)
    rig.go(ACTIVE)
    assert rig.finish(request) == PATTERN


# The context in Freeze.


@pytest.mark.spec("DEV-20", "DEV-25")
def test_nothing_changes_the_context_in_freeze(rig: Rig) -> None:
    """Kicks, writes to every virtio register, MSI-X masks, power states, Bus Master: not a byte differs."""
    requests = [rig.read_request(kick=False), rig.disk.submit(T_OUT, 1, rig.placed(b"\7" * 512), kick=False)]
    rig.go(FREEZE)
    before = rig.context()
    rig.device.notify(0)
    write_everything(rig)
    assert rig.device.msix is not None
    rig.device.msix.mask(0)
    rig.device.msix.mask(0, masked=False)
    rig.device.function.set_power_state(3)
    rig.device.function.set_power_state(0)
    rig.device.function.clear_command(4)
    rig.device.function.set_command(4)
    rig.signalled()
    assert rig.adm(CTX_DISCARD).code == OK
    assert rig.read_rest() == before
    rig.go(ACTIVE)
    for request in requests:
        rig.disk.finish(request)


@pytest.mark.spec("DEV-20")
def test_what_was_owed_does_not_change_in_freeze(rig: Rig) -> None:
    """A configuration change and a used buffer owed on entry: the context goes on to say so."""
    assert rig.device.msix is not None
    rig.device.msix.control = 0xC000
    used_and_masked(rig)
    rig.go(STOP)
    rig.break_device()
    rig.go(FREEZE)
    before = rig.context()
    assert (value(before, PENDING)[0], value(before, rig.vq_state)[6]) == (1, 1)
    with rig.silence():
        rig.device.msix.control = 0x8000
        rig.device.msix.control = 0
        rig.device.msix.control = 0x8000
    assert rig.context() == before


def write_everything(rig: Rig) -> None:
    """Write other values to every byte, word and double word of the virtio structures; status 0 too."""
    common = rig.device.common
    for size in (1, 2, 4):
        for offset in range(0, 0x40, size):
            common.raw_write(offset, size, ~common.raw_read(offset, size) & (1 << 8 * size) - 1)
            common.raw_write(offset, size, 0)
    for name, new in (
        ("device_status", 0),
        ("queue_select", 1),
        ("queue_size", 16),
        ("queue_enable", 1),
        ("queue_msix_vector", 2),
        ("config_msix_vector", 2),
        ("driver_feature_select", 1),
        ("driver_feature", 0),
        ("queue_reset", 1),
    ):
        common.write(name, new)
    for offset in range(60):
        rig.device.config_write(offset, 1, 0xA5)


@pytest.mark.spec("DEV-25")
def test_register_writes_change_nothing_in_freeze(rig: Rig) -> None:
    """Common and device configuration (A-17), byte by byte and field by field: in Stop all is as before."""
    registers = [rig.device.common.raw_read(offset, 1) for offset in range(0x40)]
    config = rig.device.config_bytes()
    rig.go(FREEZE)
    before = rig.context()
    write_everything(rig)
    assert rig.context() == before
    rig.go(STOP)
    assert [rig.device.common.raw_read(offset, 1) for offset in range(0x40)] == registers
    assert rig.device.config_bytes() == config
    assert rig.context() == before
    # The same write counts in Stop: it is Freeze that closed the registers.
    rig.device.common.raw_write(QUEUE_SELECT, 2, 1)
    assert queue_select(rig.context()) == 1
    rig.go(ACTIVE)
    assert rig.disk.read(0).tobytes() == PATTERN


@pytest.mark.spec("DEV-25")
def test_a_device_reset_in_freeze_is_ignored(rig: Rig) -> None:
    """device_status = 0 (A-16): the status stays, and the request that waits completes in Active."""
    rig.go(STOP)
    request = rig.read_request()
    rig.go(FREEZE)
    rig.device.common.write("device_status", 0)
    assert rig.device.status == 0x0F
    rig.go(ACTIVE)
    assert rig.device.status == 0x0F
    assert rig.finish(request) == PATTERN


@pytest.mark.spec("DEV-26")
def test_register_reads_in_freeze_are_true(rig: Rig) -> None:
    """Any value is allowed; we answer with the true ones (A-19), also of a context that was just written."""
    registers = rig.device.common.raw_read(0, 4), rig.device.common.raw_read(0x10, 4)
    config = rig.device.config_bytes()
    rig.go(FREEZE)
    assert (rig.device.common.raw_read(0, 4), rig.device.common.raw_read(0x10, 4)) == registers
    assert rig.device.config_bytes() == config
    assert rig.device.status == 0x0F
    common = value(rig.context(), COMMON_CFG)
    assert rig.write(context(field(COMMON_CFG, common[:12] + b"\1\0" + common[14:]))) == OK
    assert rig.device.common.raw_read(QUEUE_SELECT, 2) == 1


# PCI reads, and the window in configuration space.


def sweep(rig: Rig) -> dict[str, bytes]:
    """All of configuration space and of both BARs."""
    function = rig.device.function
    return {
        "config": function.config_bytes(0, 256) + function.config_bytes(256, 256),
        "bar0": b"".join(function.bar_bytes(0, offset, 64) for offset in range(0, 0x4000, 64)),
        "bar2": b"".join(function.bar_bytes(2, offset, 64) for offset in range(0, 0x2000, 64)),
    }


@pytest.mark.spec("DEV-17")
@pytest.mark.parametrize("pending", [False, True], ids=["idle", "requests-waiting"])
def test_pci_reads_in_stop_are_valid(rig: Rig, pending: bool) -> None:
    """Configuration space and BARs, whole: the same in Stop as before, and nothing reads as all ones."""
    before = sweep(rig)
    for name, content in before.items():
        assert content.strip(b"\xff"), name
    request = rig.read_request(kick=False)
    rig.go(STOP)
    if pending:
        rig.device.notify(0)
    assert sweep(rig) == before
    rig.go(ACTIVE)
    rig.device.notify(0)
    assert rig.finish(request) == PATTERN


@pytest.mark.spec("DEV-27")
def test_pci_cfg_writes_are_ignored_in_freeze(rig: Rig) -> None:
    """Window and data: read back unchanged, and so is the register that the window is on."""
    function, window = rig.device.function, rig.device.structures[5].capability
    common = rig.device.structures[1].offset
    rig.device.window_write(0, common + QUEUE_SELECT, 2, 1)
    assert rig.device.common.read("queue_select") == 1
    before = function.config_bytes(window, 20)
    assert before[4:16] == bytes.fromhex("00000000 16000000 02000000")
    rig.go(FREEZE)
    for size in (1, 2, 4):
        for at in range(4, 20, size):
            function.config_write(window + at, size, 0)
            function.config_write(window + at, size, (1 << 8 * size) - 1)
    function.connection.region_write(7, window + 4, bytes(16))
    assert function.config_bytes(window, 20) == before
    assert rig.device.common.read("queue_select") == 1
    rig.go(STOP)
    assert function.config_bytes(window, 20) == before
    assert rig.device.common.read("queue_select") == 1
    # In Stop and in Active they count.
    function.config_write(window + 16, 2, 0)
    assert rig.device.common.read("queue_select") == 0


@pytest.mark.spec("DEV-27", "DRV-06")
@pytest.mark.parametrize(("structure", "at"), [(1, 0x14), (2, 0)], ids=["status", "notify"])
def test_the_window_resets_and_kicks_nothing_in_freeze(rig: Rig, structure: int, at: int) -> None:
    """A window on device_status, one on the notify structure: a write of 0 does nothing in Freeze."""
    function, window = rig.device.function, rig.device.structures[5].capability
    rig.device.window_read(0, rig.device.structures[structure].offset + at, 1)
    rig.go(FREEZE)
    request = rig.read_request(kick=False)
    with rig.silence():
        function.config_write(window + 16, 1, 0)
    assert rig.device.status == 0x0F
    rig.go(ACTIVE)
    assert rig.finish(request) == PATTERN


@pytest.mark.spec("DEV-28")
def test_pci_cfg_reads_are_alike_in_every_mode(rig: Rig) -> None:
    """A window on num_queues, set in Active: data and window read the same in all three modes."""
    function, window = rig.device.function, rig.device.structures[5].capability
    assert rig.device.window_read(0, rig.device.structures[1].offset + 0x12, 2) == 2
    before = function.config_bytes(window, 20)
    for mode in (ACTIVE, STOP, FREEZE, STOP, ACTIVE, FREEZE):
        rig.go(mode)
        assert function.config_read(window + 16, 2) == 2
        assert function.config_bytes(window, 20) == before


@EACH
@pytest.mark.spec("DEV-28")
@pytest.mark.parametrize(
    ("structure", "offset", "length", "expected"),
    [(1, 0x14, 1, 0x0F), (1, QUEUE_DESC, 4, None), (4, 0, 4, 8), (2, 0, 2, 0)],
    ids=["status", "desc", "capacity", "notify"],
)
def test_pci_cfg_reads_are_true(
    rig: Rig, mode: int, structure: int, offset: int, length: int, expected: int | None
) -> None:
    """The window shows what the BAR has, in each mode."""
    found = rig.device.structures[structure]
    rig.device.window_read(0, found.offset + offset, length)
    if expected is None:
        expected = rig.queue.parts[0].address & 0xFFFFFFFF
    rig.go(mode)
    data = rig.device.function.config_read(rig.device.structures[5].capability + 16, length)
    assert data == expected == rig.device.function.bar_read(0, found.offset + offset, length)


@pytest.mark.spec("DEV-20")
def test_a_written_context_stays_as_written(rig: Rig) -> None:
    """CTX_WRITE may change the context (A-14), nothing else does afterwards."""
    rig.go(FREEZE)
    base = rig.context()
    stream = build([(k, b"\1" + bytes(7) if k == PENDING else v) for k, v in parse(base)])
    assert rig.write(stream) == OK
    rig.device.notify(0)
    write_everything(rig)
    with rig.silence():
        pass
    assert rig.context() == stream
