"""What a stopped VF does not do, what works all the same, and how it goes on.

Silence is shown by all of the VF's memory, byte by byte, and by its eventfds; then that what was held comes
once the VF runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server_process import ServerProcess
from tests.wire.draft_rig import NEEDS_RESET, OK, PATTERN, T_OUT, TIMEOUT, outstanding, until_done
from tests.wire.driving import serves
from tests.wire.parts.rig import (
    ALL,
    MODE_SET,
    QUEUE_SELECT,
    RUNNING,
    STOPPED,
    WRONG_CONTENT,
    PartsRig,
    common,
    file_server,
    find,
    without_ours,
)
from tests.wire.pci_interfaces import pci_interfaces
from tests.wire.running import until
from vfu_client.drivers.block import BlockDriver


@pytest.fixture
def rig(rig: PartsRig) -> PartsRig:
    """Its disk begins with the pattern, there and back; queue_select is 0, and no eventfd is signalled."""
    rig.lay_out()
    return rig


@pytest.fixture(scope="module")
def slow_io(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose requests take a while."""
    with file_server(tmp_path_factory.mktemp("slow"), "--io-delay-ms", "400") as started:
        yield started


# Queues.


@pytest.mark.spec("P-DEV-49", "P-DEV-51", "P-DEV-54")
@pytest.mark.parametrize("early", [True, False], ids=["queued-before", "queued-after"])
def test_nothing_moves(rig: PartsRig, early: bool) -> None:
    """Requests queued and kicked: memory and eventfds stay as they are. They complete at the resume."""
    if early:
        requests = [rig.read_request(sector, kick=False) for sector in (0, 1)]
        rig.stop()
    else:
        rig.stop()
        requests = [rig.read_request(sector, kick=False) for sector in (0, 1)]
    used = rig.queue.device_used_idx
    with rig.silence():
        assert rig.queue.kick(force=True)
        assert rig.queue.kick(force=True)
    assert rig.queue.device_used_idx == used
    rig.resume()
    assert [rig.finish(request) for request in requests] == [PATTERN, PATTERN[::-1]]


@pytest.mark.spec("P-DEV-49", "P-DEV-54")
def test_writes_to_the_disk_wait_too(rig: PartsRig) -> None:
    """A payload may be changed until the resume, and the late one counts."""
    rig.stop()
    payload = rig.placed(b"\x01" * 512)
    request = rig.disk.submit(T_OUT, 0, payload)
    with rig.silence():
        pass
    payload.view[:] = 0x02
    rig.resume()
    rig.disk.finish(request)
    assert rig.disk.read(0).tobytes() == b"\x02" * 512


@pytest.mark.spec("P-DEV-54")
def test_queue_memory_is_not_touched(rig: PartsRig) -> None:
    """Rings full of nonsense, then unmapped, and as they were before the resume: nobody looked."""
    request = rig.read_request(kick=False)
    rig.stop()
    rings = rig.queue.parts
    saved = [ring.view.copy() for ring in rings]
    for ring in rings:
        ring.view[:] = 0xEE
    with rig.silence():
        for index in (0, 0, 1):
            rig.device.notify(index)
        assert rig.parts()
        assert rig.set(rig.parts()) == OK
    (region,) = rig.device.memory.regions
    rig.device.memory.unmap(region)
    rig.device.notify(0)
    assert rig.parts()
    rig.device.memory.map(region)
    for ring, content in zip(rings, saved, strict=True):
        ring.view[:] = content
    assert rig.device.status == 0x0F
    rig.resume()
    assert rig.finish(request) == PATTERN


@pytest.mark.spec("P-DEV-49", "P-DEV-50", "P-DEV-54")
def test_silence_under_load(rig: PartsRig) -> None:
    """Stopped while 100 requests run, again and again: each is used or untouched, none comes twice."""
    for _ in range(4):
        requests = [rig.read_request(number % 2, kick=False) for number in range(100)]
        rig.queue.kick(force=True)
        rig.stop()
        assert outstanding(rig.server, "vf1") == 0
        with rig.silence(0.05):
            rig.device.notify(0)
        rig.resume()
        for number, request in enumerate(requests):
            assert rig.finish(request) == (PATTERN, PATTERN[::-1])[number % 2]
            assert request.data is not None
            rig.device.memory.free(request.data)
        assert rig.disk.in_flight == 0


@pytest.mark.spec("P-DEV-49", "P-DEV-50")
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_all_that_was_seen_is_given_back(slow_io: ServerProcess, packed: bool) -> None:
    """Eight requests between fetch and completion: answered when all are in the used ring, then silence.

    One that came after the command is not seen any more, and completes after the resume.
    """
    with PartsRig(slow_io, packed=packed) as rig:
        before = rig.queue.device_used_idx

        def used() -> int:
            return (rig.queue.device_used_idx - before) & 0xFFFF

        requests = [rig.read_request(kick=False) for _ in range(8)]
        rig.queue.kick(force=True)
        until(lambda: outstanding(slow_io, "vf1") == 8, "fetched")
        mark = slow_io.mark()
        pending = rig.send(MODE_SET, STOPPED)
        slow_io.wait_log("DEV_MODE_SET vf1: waits", since=mark)
        late = rig.read_request()
        assert until_done(rig, pending, lambda: used() < 8).code == OK
        with rig.silence():
            rig.device.notify(0)
        assert used() == 8
        for request in requests:
            rig.finish(request)
        assert late.status is None
        rig.resume()
        rig.finish(late)


@pytest.mark.spec("P-DEV-49")
def test_a_stop_that_is_given_up(slow_io: ServerProcess) -> None:
    """The owner's device is reset while MODE_SET waits: no answer, and the VF runs on."""
    with PartsRig(slow_io) as rig:
        request = rig.read_request()
        until(lambda: outstanding(slow_io, "vf1") == 1, "fetched")
        rig.send(MODE_SET, STOPPED)
        rig.owner.device.connection.device_reset()
        late = rig.read_request()
        rig.finish(request)
        rig.finish(late)


@pytest.mark.spec("P-DEV-49")
def test_other_functions_go_on(rig: PartsRig) -> None:
    rig.stop()
    with BlockDriver.open(rig.server.socket("vf2"), timeout=TIMEOUT) as other:
        assert other.read(0).tobytes() == PATTERN


# Notifications.


@pytest.mark.spec("P-DEV-51")
def test_notifications_are_accepted(rig: PartsRig) -> None:
    """Of every queue, one that is not enabled too; the kick is not lost, and no part tells of it."""
    rig.stop()
    before = rig.parts()
    request = rig.read_request(kick=False)
    for index in (0, 1, 0):
        rig.device.notify(index)
    assert rig.device.status == 0x0F
    assert rig.parts() == before
    rig.resume()
    assert rig.finish(request) == PATTERN


@pytest.mark.spec("P-DEV-54")
def test_a_configuration_change_is_held(rig: PartsRig) -> None:
    """It happens while stopped; its vector is silent, and is signalled once at the resume."""
    rig.stop()
    with rig.silence():
        rig.break_device()
    assert rig.device.msix is not None
    assert rig.device.msix.pending(0)
    rig.resume()
    assert rig.signalled(10) == [0]
    assert rig.device.status & NEEDS_RESET
    assert rig.signalled() == []


@pytest.mark.spec("P-DEV-54")
def test_a_queue_interrupt_is_held(rig: PartsRig) -> None:
    """A used buffer whose vector was masked: unmasking lets nothing out while stopped; the resume does."""
    assert rig.device.msix is not None
    rig.device.msix.mask(1)
    used = rig.queue.device_used_idx
    rig.queue.ask_for_interrupt()
    request = rig.read_request()
    until(lambda: rig.queue.device_used_idx != used, "used")
    rig.stop()
    with rig.silence():
        rig.device.msix.mask(1, masked=False)
        assert rig.device.msix.pending(1)
    rig.resume()
    assert rig.signalled(10) == [1]
    assert rig.finish(request) == PATTERN


# What parts say meanwhile.


@pytest.mark.spec("P-DEV-51", "P-DEV-62")
def test_parts_change_by_the_driver_alone(rig: PartsRig) -> None:
    """They are the same for as long as nobody writes a register; then they are what was written."""
    rig.stop()
    before = rig.parts()
    with rig.silence():
        assert [rig.parts() for _ in range(3)] == [before] * 3
    rig.device.common.write("queue_select", 1)
    assert find(rig.parts(), *common(QUEUE_SELECT)[:2]).value == b"\1\0"
    rig.device.common.write("queue_select", 0)
    assert rig.parts() == before


# PCI.


@pytest.mark.spec("P-DEV-52")
def test_pci_reads_are_valid(rig: PartsRig) -> None:
    """Configuration space, the virtio structures and MSI-X say the same, stopped or not."""

    def seen() -> list[Any]:
        device = rig.device
        assert device.msix is not None
        registers = [
            device.common.read(name) for name in ("num_queues", "device_status", "queue_size", "queue_desc")
        ]
        return [device.function.config_bytes(), device.config_bytes(), registers, device.msix.read_entry(1)]

    running = seen()
    rig.stop()
    assert seen() == running
    assert running[2][:2] == [2, 15]
    rig.resume()
    assert seen() == running


@pytest.mark.spec("P-DEV-53")
def test_pci_interfaces_are_alike(server: ServerProcess) -> None:
    """BAR sizing, COMMAND, MSI-X, power states and FLR give the same results, stopped or not."""
    seen: dict[bool, dict[str, Any]] = {}
    for stopped in (False, True):
        with PartsRig(server) as rig:
            if stopped:
                rig.stop()
            seen[stopped] = pci_interfaces(rig)
    for name, expected in seen[False].items():
        assert seen[True][name] == expected, name
    assert seen[True]["power"][0] == (3, 0xFF, 0x0003)


@pytest.mark.spec("P-DEV-53")
def test_no_pme(rig: PartsRig) -> None:
    """PME comes from no state; PME_En and PME_Status read 0, also after writing them and an event."""
    rig.break_device()
    rig.stop()
    function = rig.device.function
    power = function.find_capability(0x01)
    assert function.config_read(power + 2, 2) & 0xF800 == 0
    for state in (0, 3, 0):
        function.config_write(power + 4, 2, 0x8100 | state)
        assert function.config_read(power + 4, 2) & 0x8100 == 0


# MODE_SET.


@pytest.mark.spec("P-DEV-58", "P-DEV-02")
def test_the_same_mode_again(rig: PartsRig) -> None:
    """Stop when stopped, resume when running: OK, nothing is lost, and what was set stays set."""
    rig.resume()
    rig.stop()
    request = rig.read_request()
    assert rig.set(rig.selecting(1)) == OK
    with rig.silence():
        rig.stop()
        rig.stop()
    rig.resume()
    rig.resume()
    assert rig.finish(request) == PATTERN
    assert rig.queue_select == 1
    rig.device.common.write("queue_select", 0)
    # What took effect once does not do so again.
    rig.stop()
    rig.resume()
    assert rig.queue_select == 0


@pytest.mark.spec("P-DEV-04", "P-DEV-05")
@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_flags_that_there_are_not(rig: PartsRig, stopped: bool) -> None:
    """Only bit 0 is one: whatever else is set, nothing happens."""
    if stopped:
        rig.stop()
    for flags in range(2, 256):
        assert rig.adm(MODE_SET, bytes([flags])).code == WRONG_CONTENT
    request = rig.read_request()
    if stopped:
        with rig.silence():
            pass
        rig.resume()
    assert rig.finish(request) == PATTERN


@pytest.mark.spec("P-DEV-16")
def test_no_data_is_a_resume(rig: PartsRig) -> None:
    """A flags byte that is missing is 0; what stands behind it is nobody's business."""
    assert rig.adm(MODE_SET, STOPPED + b"\xff" * 40).code == OK
    request = rig.read_request()
    with rig.silence():
        pass
    assert rig.adm(MODE_SET).code == OK
    assert rig.finish(request) == PATTERN
    assert rig.adm(MODE_SET, RUNNING + b"\xff" * 40).code == OK


# Resets.


@pytest.mark.parametrize("by", ["flr", "vfio"])
@pytest.mark.spec("P-DEV-59")
def test_a_function_reset_ends_stopped(rig: PartsRig, by: str) -> None:
    """The driver that comes next drives a VF that runs, without a MODE_SET; what was set is forgotten."""
    rig.read_request(kick=False)
    rig.stop()
    assert rig.set(rig.selecting(1)) == OK
    if by == "flr":
        rig.device.function.flr()
    else:
        rig.device.connection.device_reset()
    assert rig.set(rig.parts()) == (22, 1)
    rig.device.initialize()
    rig.disk.queues[0] = rig.device.setup_queue(0)
    rig.device.driver_ok()
    rig.device.common.write("queue_select", 0)
    assert rig.disk.read(0).tobytes() == PATTERN
    rig.resume()
    assert rig.queue_select == 0
    assert rig.disk.read(1).tobytes() == PATTERN[::-1]


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
@pytest.mark.parametrize("by", ["flr", "vfio", "status"])
@pytest.mark.spec("P-DEV-59")
def test_a_reset_clears_all_parts(server: ServerProcess, by: str, stopped: bool) -> None:
    """They are those of a VF that nobody has driven; one that a driver resets stays stopped."""
    with PartsRig(server) as rig:
        rig.device.connection.device_reset()
        new = rig.parts()
    with PartsRig(server) as rig:
        rig.device.common.write("queue_select", 1)
        rig.disk.read(0)
        if stopped:
            rig.stop()
            assert rig.set(rig.selecting(0)) == OK
        assert without_ours(rig.parts()) != without_ours(new)
        if by == "status":
            rig.device.common.write("device_status", 0)
            until(lambda: rig.device.status == 0, "the device reset")
        elif by == "flr":
            rig.device.function.flr()
        else:
            rig.device.connection.device_reset()
        assert rig.parts() == new
        assert rig.set(new) == (OK if stopped and by == "status" else (22, 1))
        assert rig.parts_get(ALL).code == OK


def test_the_owners_reset_leaves_members_alone(rig: PartsRig) -> None:
    """Stopped stays stopped when the PF's driver goes, and the next one resumes it."""
    rig.stop()
    request = rig.read_request()
    rig.owner.close()
    with rig.silence():
        pass
    rig.owner = type(rig.owner).open(rig.server.socket("pf"), obey=False, timeout=TIMEOUT)
    rig.begin()
    with rig.silence():
        pass
    rig.resume()
    assert rig.finish(request) == PATTERN


def test_a_stopped_vf_that_is_disabled(tmp_path: Path) -> None:
    """VF Enable off and on again: the VF that comes runs."""
    with file_server(tmp_path) as server, PartsRig(server) as rig:
        rig.stop()
        rig.device.close()
        rig.owner.sriov.disable()
        rig.owner.sriov.enable(1)
        serves(server.socket("vf1"))
