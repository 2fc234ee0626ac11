"""The draft's modes: which commands there are, what MODE_SET takes and refuses, what PCI is like."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.server_process import ServerProcess
from tests.wire.draft_rig import (
    ACTIVE,
    COMMON_CFG,
    EACH,
    FREEZE,
    MODE_SET,
    MODES,
    OK,
    STOP,
    WRONG_CONTENT,
    WRONG_STATE,
    Rig,
    context,
    field,
    parse,
    patched,
    queue_select,
)
from tests.wire.pci_interfaces import pci_interfaces
from vfu_client.owner.owner import OwnerDriver


@pytest.fixture
def rig(server: ServerProcess) -> Iterator[Rig]:
    with Rig(server) as made:
        yield made


# Which commands there are.


@pytest.mark.spec("DEV-01")
@pytest.mark.parametrize(
    ("option", "expected"),
    [("0x40", range(0x40, 0x47)), ("0x400", range(0x400, 0x407)), ("off", range(0))],
)
def test_all_commands_or_none(serve: Callable[..., ServerProcess], option: str, expected: range) -> None:
    """LIST_QUERY has the six bits and FIELDS_QUERY's (A-04), or none of them; without, none is executed."""
    server = serve("--vfs", "1", "--disk", "ram:4k", "--context-opcodes", option)
    base = expected.start or 0x40
    with OwnerDriver.open(server.socket("pf"), context_opcodes=base, obey=False, timeout=20) as owner:
        listed = owner.admin.list_query(1)
        assert {opcode for opcode in range(base, base + 7) if opcode in listed} == set(expected)
        answers = {
            owner.admin.wait(owner.admin.submit(opcode, group=1, member=1, data=bytes(8), result=16)).status
            for opcode in range(base, base + 4)
        }
        assert answers == ({0} if expected else {22})


def test_commands_at_a_high_base_are_found(serve: Callable[..., ServerProcess]) -> None:
    """The server takes any base up to 0x7ff6; the owner driver finds the commands there."""
    server = serve("--vfs", "1", "--disk", "ram:4k", "--context-opcodes", "0x2000")
    with OwnerDriver.open(server.socket("pf"), context_opcodes=0x2000, timeout=20) as owner:
        assert set(range(0x2000, 0x2007)) <= owner.commands


# MODE_SET.


@EACH
@pytest.mark.spec("DEV-02")
def test_the_same_mode_again_succeeds_and_touches_nothing(rig: Rig, mode: int) -> None:
    """OK, same mode, and a read that was begun goes on where it was."""
    rig.go(mode)
    expected = rig.context()
    rig.go(mode)
    assert rig.adm(0x46).code == OK
    left, first = rig.read(40)
    for _ in range(2):
        assert rig.set_mode(mode) == OK
        assert rig.mode == mode
    assert rig.size() == left
    assert first + rig.read_rest() == expected


@pytest.mark.spec("DEV-02")
def test_freeze_again_keeps_a_partial_write(rig: Rig) -> None:
    """A context that was begun before MODE_SET(Freeze) in Freeze can be ended after it."""
    rig.go(FREEZE)
    before = rig.context()
    stream = patched(before, COMMON_CFG, 12, b"\1\0")
    assert rig.write(stream[:50]) == OK
    assert rig.set_mode(FREEZE) == OK
    assert rig.write(stream[50:]) == OK
    assert queue_select(rig.context()) == 1


@EACH
@pytest.mark.spec("DEV-03", "DEV-04")
def test_other_values_are_refused_and_change_nothing(rig: Rig, mode: int) -> None:
    """Every u8 that is no mode: EINVAL, the mode stays, and the function goes on to behave like it."""
    rig.disk.write(0, b"\x5a" * 512)
    rig.go(mode)
    for wrong in range(3, 256):
        assert rig.set_mode(wrong) == WRONG_CONTENT
    assert rig.mode == mode
    request = rig.read_request(kick=False)
    with rig.silence() if mode != ACTIVE else contextlib.nullcontext():
        rig.queue.kick(force=True)
        assert rig.set_mode(200) == WRONG_CONTENT
    if mode == ACTIVE:
        assert rig.finish(request) == b"\x5a" * 512
    assert rig.write(context()) == (OK if mode == FREEZE else WRONG_STATE)
    assert rig.mode == mode


@pytest.mark.spec("DEV-05", "DEV-04", "DRV-04")
@pytest.mark.parametrize("target", [ACTIVE, STOP], ids=["active", "stop"])
@pytest.mark.parametrize("length", [1, 16, 33, -1])
def test_no_way_out_of_freeze_with_a_partial_context(rig: Rig, target: int, length: int) -> None:
    """One byte is partial, and all but one. Both ways out fail, Freeze is OK; the rest lets it out."""
    rig.go(FREEZE)
    stream = rig.context()
    request = rig.read_request(kick=False)
    with rig.silence():
        assert rig.write(stream[:length]) == OK
        assert rig.set_mode(target) == WRONG_STATE
        assert rig.mode == FREEZE
        assert rig.set_mode(FREEZE) == OK
        assert rig.set_mode(target) == WRONG_STATE
    assert rig.write(stream[length:]) == OK
    assert rig.set_mode(target) == OK
    assert rig.mode == target
    rig.go(ACTIVE)
    rig.finish(request)


@pytest.mark.spec("DRV-02", "DEV-02")
@pytest.mark.parametrize("written", [False, True], ids=["without-write", "with-write"])
@pytest.mark.parametrize("target", [ACTIVE, STOP], ids=["active", "stop"])
def test_freeze_is_left_with_and_without_a_written_context(rig: Rig, target: int, written: bool) -> None:
    """Freeze goes to Stop and to Active directly, whether or not a context was written in it."""
    rig.disk.write(1, b"\x77" * 512)
    rig.go(FREEZE)
    if written:
        assert rig.write(rig.context()) == OK
    rig.go(target)
    assert rig.mode == target
    rig.go(ACTIVE)
    assert rig.disk.read(1).tobytes() == b"\x77" * 512


@pytest.mark.spec("DEV-03")
@pytest.mark.parametrize("source", MODES.values(), ids=MODES)
@pytest.mark.parametrize("target", MODES.values(), ids=MODES)
def test_every_mode_is_reached_from_every_mode(rig: Rig, source: int, target: int) -> None:
    """The three values are modes: each pair is accepted (A-25), also without the reserved bytes."""
    rig.go(source)
    assert rig.adm(MODE_SET, bytes([target])).code == OK
    assert rig.mode == target


# PCI in every mode.


@pytest.mark.spec("DEV-18")
def test_pci_interfaces_are_alike_in_every_mode(server: ServerProcess) -> None:
    """BAR sizing, COMMAND, MSI-X, power states and FLR give the same results; FLR keeps the mode (A-15)."""
    seen: dict[int, dict[str, Any]] = {}
    for mode in MODES.values():
        with Rig(server) as rig:
            rig.go(mode)
            seen[mode] = pci_interfaces(rig)
            assert rig.mode == mode
            assert parse(rig.context())[4] == (COMMON_CFG, bytes.fromhex("0000000000000000ffff020000000000"))
    assert seen[ACTIVE]["bars"] == [(0, 0x4000, 0), (2, 0x2000, 0)]
    assert seen[ACTIVE]["bar0"] == 0xFE00_000C
    assert (seen[ACTIVE]["command"], seen[ACTIVE]["command off"]) == (0x0146, 0)
    assert seen[ACTIVE]["msix"] == [0xC000, 0x4000, 0, 0x8000]
    assert seen[ACTIVE]["masks"] == [True, False]
    assert seen[ACTIVE]["entry"] == (0x1234_5678_9ABC, 0x55, 0)
    assert seen[ACTIVE]["power"] == [(3, 0xFF, 0x0003), (3, 0xFF, 0x0003), (0, 0x0F, 0x0000)]
    assert seen[ACTIVE]["express"] == 0x002F
    for name, expected in seen[ACTIVE].items():
        assert seen[STOP][name] == expected, f"{name} in Stop"
        assert seen[FREEZE][name] == expected, f"{name} in Freeze"


@EACH
@pytest.mark.spec("DEV-18")
def test_a_function_reset_in_any_mode_leaves_a_usable_function(server: ServerProcess, mode: int) -> None:
    """After FLR in a mode, and Active, the driver starts anew and its I/O works."""
    with Rig(server) as rig:
        rig.read_request(kick=False)
        rig.go(mode)
        rig.device.function.flr()
        rig.go(ACTIVE)
        rig.device.initialize()
        rig.disk.queues[0] = rig.device.setup_queue(0)
        rig.device.driver_ok()
        rig.disk.write(0, b"\x21" * 512)
        assert rig.disk.read(0).tobytes() == b"\x21" * 512


@pytest.mark.spec("DEV-18")
@pytest.mark.parametrize("by", ["flr", "vfio"])
def test_a_function_reset_in_freeze_drops_read_position_and_partial_write(rig: Rig, by: str) -> None:
    """A-15: FLR keeps Freeze, and both positions begin anew; VFIO's reset of the VF is one (A-29)."""
    rig.go(FREEZE)
    stream = rig.context()
    assert rig.write(stream[:40]) == OK
    rig.read(40)
    if by == "flr":
        rig.device.function.flr()
    else:
        rig.device.connection.device_reset()
    assert rig.mode == FREEZE
    fresh = rig.read_rest()
    assert parse(fresh)[0] == (0, b"")
    assert fresh != stream
    rig.go(STOP)


@EACH
@pytest.mark.spec("DEV-19")
def test_no_pme(rig: Rig, mode: int) -> None:
    """PMC announces PME from no state; PME_En and PME_Status read 0, also after writing them and an event."""
    rig.break_device()
    rig.drain()
    rig.go(mode)
    function = rig.device.function
    power = function.find_capability(0x01)
    assert function.config_read(power + 2, 2) & 0xF800 == 0
    for state in (0, 3, 0):
        function.config_write(power + 4, 2, 0x8100 | state)
        assert function.config_read(power + 4, 2) & 0x8100 == 0


@EACH
@pytest.mark.spec("DEV-03")
def test_a_command_of_an_empty_buffer_names_active(rig: Rig, mode: int) -> None:
    """Missing bytes of a command are 0 (virtio 1.4), so MODE_SET without data asks for Active."""
    rig.go(mode)
    assert rig.adm(MODE_SET).code == OK
    assert rig.mode == ACTIVE


def test_field_helper() -> None:
    """The literals of this harness are the layout of docs/wire.md."""
    assert field(0x15, b"\1\2") == bytes.fromhex("15000000 00000000 0200000000000000 0102")
