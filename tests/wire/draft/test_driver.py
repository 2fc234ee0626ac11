"""The draft's rules for drivers: our owner driver and its command line obey them, the device survives others.

What was sent is read from the server's log, which has every command and every access to a register; that a
rule is broken is what `--check-driver` says. A driver with `obey=False` breaks each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server_process import ServerProcess
from tests.wire.draft_rig import (
    ACTIVE,
    COMMON_CFG,
    FREEZE,
    OK,
    STOP,
    TIMEOUT,
    WRONG_CONTENT,
    WRONG_STATE,
    Rig,
    context,
    field,
    parse,
    queue_select,
    small_server,
    value,
    whole,
)
from vfu_client.drivers.block import BlockDriver
from vfu_client.move.pf import Former, Pf
from vfu_client.owner import cli as owner_cli
from vfu_client.owner.admin import AdminError
from vfu_client.owner.owner import DriverRuleError, OwnerDriver

COMMAND = re.compile(r"virtio\.pf: (DEV_\w+) vf(\d+): (\w+)(?:, (.*))?$")
ACCESS = re.compile(
    r"virtio\.vf1: libvfio-user: region(\d): (read|wrote) \S+ (?:from|to) \((0x[0-9a-f]+|0):(\d+)\)"
)
READ_NOTE = re.compile(r"(\d+) bytes, (\d+) left")
START_BYTES, END_BYTES = field(0), field(1)

pytestmark = pytest.mark.usefixtures("said")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with small_server("--check-driver", "--log-level", "trace") as started:
        yield started


@pytest.fixture
def rig(server: ServerProcess) -> Iterator[Rig]:
    """A driver that obeys no rule."""
    with Rig(server) as made:
        made.disk.write(0, b"\x42" * 512)
        yield made


@pytest.fixture
def obeying(server: ServerProcess) -> Iterator[tuple[OwnerDriver, BlockDriver]]:
    """An owner driver as it is by default, and the driver of VF 1. They break no rule for owners."""

    def of_owners() -> dict[str, int]:
        return {rule: count for rule, count in server.breaches().items() if "DRV-" in rule}

    before = of_owners()
    with OwnerDriver.open(server.socket("pf"), timeout=TIMEOUT) as owner:
        with BlockDriver.open(server.socket("vf1"), timeout=TIMEOUT) as disk:
            disk.write(0, b"\x42" * 512)
            yield owner, disk
        owner.context_discard(1)
        owner.mode_set(1, ACTIVE)
    assert of_owners() == before


def commands(server: ServerProcess, since: int) -> list[tuple[str, str, str]]:
    """The context commands since a mark: (name, answer, what the log says more)."""
    found = (COMMAND.search(line) for line in server.log[since:].splitlines())
    return [(match[1], match[3], match[4] or "") for match in found if match is not None]


def accesses(server: ServerProcess, since: int) -> list[tuple[int, str, int]]:
    """The accesses to VF 1 since a mark: (region, read or wrote, offset)."""
    found = (ACCESS.search(line) for line in server.log[since:].splitlines())
    return [(int(match[1]), match[2], int(match[3], 16)) for match in found if match is not None]


@pytest.fixture
def noticed(server: ServerProcess) -> Callable[[str], bool]:
    """Tells whether the server noticed a breach of a rule since the test began."""
    before = server.breaches()
    return lambda rule: server.breaches()[rule] > before[rule]


class Recorder:
    """Keeps what an owner driver puts on its admin queue: (opcode, data)."""

    def __init__(self, owner: OwnerDriver) -> None:
        self.sent: list[tuple[int, bytes]] = []
        submit = owner.admin.submit

        def record(opcode: int, **arguments: Any) -> Any:
            data = arguments.get("data", b"")
            self.sent.append((opcode, data if isinstance(data, bytes) else data.view.tobytes()))
            return submit(opcode, **arguments)

        owner.admin.submit = record  # type: ignore[method-assign]

    @property
    def writes(self) -> list[bytes]:
        """The data of each CTX_WRITE."""
        return [data for opcode, data in self.sent if opcode == 0x44]


# Reading.


@pytest.mark.spec("DRV-01")
@pytest.mark.parametrize("room", [None, 64, 1000])
@pytest.mark.parametrize("mode", [ACTIVE, STOP, FREEZE], ids=["active", "stop", "freeze"])
def test_the_owner_reads_to_the_end(
    server: ServerProcess, obeying: tuple[OwnerDriver, BlockDriver], mode: int, room: int | None
) -> None:
    """READs go on until nothing is left, whatever the size of the buffer."""
    owner, _ = obeying
    owner.mode_set(1, mode)
    mark = server.mark()
    stream = b"".join(piece.tobytes() for piece in owner.context_read(1, room))
    assert whole(stream)
    reads = [READ_NOTE.fullmatch(note) for name, _, note in commands(server, mark) if name == "DEV_CTX_READ"]
    sizes = [int(match[1]) for match in reads if match is not None]
    assert len(sizes) == len(reads) == (1 if room is None else -(-len(stream) // room))
    assert sum(sizes) == len(stream)
    assert reads[-1] is not None
    assert reads[-1][2] == "0"


@pytest.mark.spec("DRV-01")
def test_the_command_line_reads_to_the_end(server: ServerProcess, tmp_path: Path) -> None:
    """`vfu-owner context read` gives a whole context, also after another owner stopped half way."""
    path = str(server.socket("pf"))
    with OwnerDriver.open(path, timeout=TIMEOUT) as owner:
        next(owner.context_read(1, 40))
    mark = server.mark()
    assert owner_cli.main(["--pf", path, "context", "read", "1", str(tmp_path / "c"), "--buffer", "100"]) == 0
    assert whole((tmp_path / "c").read_bytes())
    trace = commands(server, mark)
    assert [name for name, _, _ in trace if name not in ("DEV_CTX_READ", "DEV_CTX_SIZE_GET")] == [
        "DEV_CTX_DISCARD"
    ]
    assert trace[-1][2].endswith(", 0 left")


@pytest.mark.spec("DRV-01")
def test_a_read_that_stops_half_way_hurts_nobody(rig: Rig, noticed: Callable[[str], bool]) -> None:
    """Device side: the mode changes, the rest is forgotten, the next read is whole; the server says so."""
    rig.go(STOP)
    rig.read(40)
    rig.go(FREEZE)
    assert whole(rig.read_rest())
    assert noticed("DRV-01")


# Writing.


@pytest.mark.spec("DRV-02")
@pytest.mark.parametrize("written", [False, True], ids=["without-write", "with-write"])
@pytest.mark.parametrize("target", [ACTIVE, STOP], ids=["active", "stop"])
def test_the_owner_may_write_before_it_leaves_freeze(
    server: ServerProcess, obeying: tuple[OwnerDriver, BlockDriver], target: int, written: bool
) -> None:
    """Both ways, with and without; the VF then does what it did before."""
    owner, disk = obeying
    owner.mode_set(1, FREEZE)
    mark = server.mark()
    if written:
        owner.context_write(1, list(owner.context_read(1)))
    owner.mode_set(1, target)
    assert [name for name, _, _ in commands(server, mark)].count("DEV_CTX_WRITE") == int(written)
    owner.mode_set(1, ACTIVE)
    assert disk.read(0).tobytes() == b"\x42" * 512


@pytest.mark.spec("DRV-03", "DRV-07", "DRV-08", "DRV-09")
@pytest.mark.parametrize("chunk", [1 << 20, 200, 16, 7])
def test_the_owner_writes_whole_contexts(obeying: tuple[OwnerDriver, BlockDriver], chunk: int) -> None:
    """START_MARKER first, END_MARKER the last field of the last WRITE, all of it before the next MODE_SET."""
    owner, _ = obeying
    owner.mode_set(1, FREEZE)
    stream = b"".join(piece.tobytes() for piece in owner.context_read(1))
    # Without the disk: the smallest chunks would be very many.
    small = context(*(field(kind, content) for kind, content in parse(stream)[1:-1] if kind < 0x100))
    recorder = Recorder(owner)
    owner.context_write(1, small, chunk_size=chunk)
    owner.mode_set(1, ACTIVE)
    assert len(recorder.writes) == -(-len(small) // chunk)
    assert b"".join(recorder.writes) == small
    assert small.startswith(START_BYTES)
    assert small.endswith(END_BYTES)
    opcodes = [opcode for opcode, _ in recorder.sent]
    assert opcodes == [0x44] * len(recorder.writes) + [0x41]


BROKEN: dict[str, bytes] = {
    "no-end": START_BYTES + field(0x17, bytes(8)),
    "no-start": field(0x17, bytes(8)) + END_BYTES,
    "two-starts": START_BYTES + START_BYTES + END_BYTES,
    "cut-header": START_BYTES + END_BYTES[:-1],
    "more-behind": context() + b"\0",
    "end-alone": END_BYTES,
}


@pytest.mark.spec("DRV-03", "DRV-07", "DRV-08", "DRV-09")
@pytest.mark.parametrize("stream", BROKEN.values(), ids=BROKEN)
def test_the_owner_sends_nothing_that_is_no_whole_context(
    server: ServerProcess, obeying: tuple[OwnerDriver, BlockDriver], stream: bytes
) -> None:
    """What would break a rule is refused here; the device sees none of it."""
    owner, _ = obeying
    owner.mode_set(1, FREEZE)
    mark = server.mark()
    for chunk in (1 << 20, 8):
        with pytest.raises(DriverRuleError):
            owner.context_write(1, stream, chunk_size=chunk)
    assert commands(server, mark) == []
    owner.mode_set(1, ACTIVE)


@pytest.mark.spec("DRV-03", "DRV-07", "DRV-08", "DRV-09")
def test_the_command_line_writes_whole_contexts_only(
    server: ServerProcess, rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`vfu-owner context write`: a damaged file is not sent, a good one is, and counts."""
    rig.go(FREEZE)
    stream = rig.context()
    rig.owner.close()
    path, file = str(server.socket("pf")), tmp_path / "context"
    write = ["--pf", path, "context", "write", "1", str(file)]
    mark = server.mark()
    for damaged in (*BROKEN.values(), stream[:-1], stream[16:], b""):
        file.write_bytes(damaged)
        assert owner_cli.main(write) == 1
    assert commands(server, mark) == []
    capsys.readouterr()
    common = value(stream, COMMON_CFG)
    file.write_bytes(context(field(COMMON_CFG, common[:12] + b"\1\0" + common[14:])))
    assert owner_cli.main(write) == 0
    assert [(name, answer) for name, answer, _ in commands(server, mark)] == [("DEV_CTX_WRITE", "OK")]
    assert owner_cli.main(["--pf", path, "mode", "1", "active"]) == 0
    rig.owner = OwnerDriver.open(path, obey=False, timeout=TIMEOUT)
    assert queue_select(rig.context()) == 1


@pytest.mark.spec("DRV-07", "DRV-08", "DRV-09", "DRV-03")
@pytest.mark.parametrize(
    ("rule", "parts", "code"),
    [
        ("DRV-07", [field(0x17, bytes(8)) + END_BYTES], WRONG_CONTENT),
        ("DRV-08", [START_BYTES + START_BYTES], WRONG_CONTENT),
        ("DRV-09", [START_BYTES, END_BYTES + START_BYTES], OK),
        ("DRV-03", [START_BYTES], OK),
    ],
)
def test_streams_of_a_bad_driver(
    rig: Rig, noticed: Callable[[str], bool], rule: str, parts: list[bytes], code: tuple[int, int]
) -> None:
    """Device side: refused, or taken as far as it goes; the context stays, DISCARD helps; noticed."""
    rig.go(FREEZE)
    base = rig.context()
    assert [rig.write(part) for part in parts][-1] == code
    left = rig.set_mode(STOP)
    assert left == (OK if code == WRONG_CONTENT else WRONG_STATE)
    assert noticed(rule)
    rig.go(FREEZE)
    assert rig.context() == base
    rig.go(ACTIVE)
    assert rig.disk.read(0).tobytes() == b"\x42" * 512


# Modes.


@pytest.mark.spec("DRV-04")
@pytest.mark.parametrize("target", [ACTIVE, STOP], ids=["active", "stop"])
def test_the_owner_does_not_leave_freeze_with_a_partial_context(
    server: ServerProcess, obeying: tuple[OwnerDriver, BlockDriver], target: int
) -> None:
    """MODE_SET is not sent; Freeze again may be, and after the rest, or DISCARD, the others too."""
    owner, disk = obeying
    ends: list[Callable[[], None]] = [
        lambda: owner.context_write(1, END_BYTES),
        lambda: owner.context_discard(1),
    ]
    for end in ends:
        owner.mode_set(1, FREEZE)
        owner.context_write_part(1, START_BYTES)
        mark = server.mark()
        with pytest.raises(DriverRuleError):
            owner.mode_set(1, target)
        assert commands(server, mark) == []
        owner.mode_set(1, FREEZE)
        end()
        owner.mode_set(1, target)
        assert owner.mode_get(1) == target
    owner.mode_set(1, ACTIVE)
    assert disk.read(0).tobytes() == b"\x42" * 512


def test_commands_that_are_sent_together(
    server: ServerProcess, obeying: tuple[OwnerDriver, BlockDriver]
) -> None:
    """Stop, Freeze, READ with one notification and WRITE, Active with another break no rule."""
    owner, disk = obeying
    buffer = owner.device.memory.allocate(1 << 20)
    mark = server.mark()
    size, left = owner.freeze_and_read_into(1, buffer)
    assert left == 0
    owner.write_and_activate(1, buffer.part(0, size))
    names = [name for name, _, _ in commands(server, mark)]
    assert names == ["DEV_MODE_SET", "DEV_MODE_SET", "DEV_CTX_READ", "DEV_CTX_WRITE", "DEV_MODE_SET"]
    assert disk.read(0).tobytes() == b"\x42" * 512

    owner.mode_set(1, FREEZE)
    mark = server.mark()
    with pytest.raises(DriverRuleError):
        owner.write_and_activate(1, buffer.part(0, size - len(END_BYTES)))
    owner.context_write_part(1, START_BYTES)
    with pytest.raises(DriverRuleError):
        owner.write_and_activate(1, buffer.part(size - len(END_BYTES), len(END_BYTES)))
    assert [name for name, _, _ in commands(server, mark)] == ["DEV_CTX_WRITE"]


def test_a_look_at_a_context(obeying: tuple[OwnerDriver, BlockDriver]) -> None:
    """Whatever was read or written in part; the next read is a whole one."""
    owner, _ = obeying
    owner.mode_set(1, FREEZE)
    size = owner.context_size(1)
    with owner.room(1 << 16) as room:
        owner.context_read_into(1, room.part(0, 100))
        owner.context_write_part(1, START_BYTES)
        assert owner.context_peek_into(1, room) == size
        first = room.view[:size].tobytes()
        assert owner.context_peek_into(1, room.part(0, 100)) == 100
        assert room.view[:100].tobytes() == first[:100]
    assert not owner.partly_written(1)
    assert owner.context_size(1) == size
    owner.mode_set(1, ACTIVE)


def test_memory_of_a_command_without_an_answer_is_not_used_again(
    obeying: tuple[OwnerDriver, BlockDriver],
) -> None:
    owner, _ = obeying
    with pytest.raises(TimeoutError), owner.room(4096) as lost:
        raise TimeoutError
    with pytest.raises(AdminError), owner.room(4096) as refused:
        raise AdminError(0x43, 22, 1)
    with owner.room(4096) as room:
        assert room.address == refused.address
        assert room.address >= lost.address + 4096


@pytest.mark.spec("DRV-04")
def test_a_driver_that_asks_all_the_same_is_refused(rig: Rig, noticed: Callable[[str], bool]) -> None:
    """Device side (DEV-05), and the server says so."""
    rig.go(FREEZE)
    assert rig.write(START_BYTES) == OK
    for target in (ACTIVE, STOP):
        assert rig.set_mode(target) == WRONG_STATE
    assert rig.mode == FREEZE
    assert noticed("DRV-04")


# Registers of the VF.


def is_device_config(access: tuple[int, str, int]) -> bool:
    """The device configuration structure: BAR 0 from 0x2000 on."""
    region, _, offset = access
    return region == 0 and 0x2000 <= offset < 0x3000


def is_pci_cfg_write(access: tuple[int, str, int], capability: int) -> bool:
    region, kind, offset = access
    return region == 7 and kind == "wrote" and capability <= offset < capability + 20


@pytest.mark.spec("DRV-05", "DRV-06")
def test_no_access_to_configuration_unless_active(
    server: ServerProcess, obeying: tuple[OwnerDriver, BlockDriver]
) -> None:
    """From Stop to Active, with a request under way: no device configuration access, no write to PCI_CFG.

    Before and after it there are such accesses, and the log shows them.
    """
    owner, disk = obeying
    capability = disk.device.structures[5].capability

    def seen(since: int) -> tuple[bool, bool]:
        trace = accesses(server, since)
        return (
            any(map(is_device_config, trace)),
            any(is_pci_cfg_write(access, capability) for access in trace),
        )

    mark = server.mark()
    assert disk.capacity == 8
    assert disk.device.window_read(0, 0x2000, 4) == 8
    assert seen(mark) == (True, True)
    mark = server.mark()
    owner.mode_set(1, STOP)
    request = disk.submit(0, 0, disk.device.memory.allocate(512))
    owner.mode_set(1, FREEZE)
    owner.context_write(1, list(owner.context_read(1)))
    owner.mode_set(1, ACTIVE)
    disk.finish(request)
    assert accesses(server, mark)
    assert seen(mark) == (False, False)


@pytest.mark.spec("DRV-05")
@pytest.mark.parametrize("mode", [STOP, FREEZE], ids=["stop", "freeze"])
def test_a_driver_that_accesses_device_configuration(
    rig: Rig, noticed: Callable[[str], bool], mode: int
) -> None:
    """Device side: reads are true, writes change nothing, and the server says so."""
    rig.go(mode)
    before = rig.context()
    assert not noticed("DRV-05")
    assert rig.device.config_read(0, 4) == 8
    assert noticed("DRV-05")
    rig.device.config_write(0, 4, 99)
    assert rig.device.config_read(0, 4) == 8
    assert rig.context() == before


@pytest.mark.spec("DRV-06")
def test_a_driver_that_writes_pci_cfg_in_freeze(rig: Rig, noticed: Callable[[str], bool]) -> None:
    """Device side (DEV-27): ignored, and the server says so; in Stop it is no breach."""
    function, window = rig.device.function, rig.device.structures[5].capability
    rig.go(STOP)
    function.config_write(window + 4, 1, 2)
    assert not noticed("DRV-06")
    rig.go(FREEZE)
    function.config_write(window + 4, 1, 0)
    assert function.config_read(window + 4, 1) == 2
    assert noticed("DRV-06")


# The move of a VF, as vfu-migrate makes it, without a guest.


@pytest.mark.spec("DRV-01", "DRV-03", "DRV-04", "DRV-07", "DRV-08", "DRV-09")
def test_a_move_breaks_no_rule(server: ServerProcess, serve: Callable[..., ServerProcess]) -> None:
    """vfu-migrate's two sides, on two servers: the commands of a move; neither server noticed a breach."""
    other = serve("--vfs", "2", "--queues", "2", "--disk", "ram:4k", "--check-driver")
    before = server.breaches()
    source, destination = Pf("source", server.folder, 0x40), Pf("there", other.folder, 0x40)
    with BlockDriver.open(server.socket("vf1"), timeout=TIMEOUT) as disk:
        disk.write(5, b"\x66" * 512)
        for pf in (source, destination):
            pf.open()
        try:
            destination.check_destination(2, source.check_source(1))
            destination.prepare(2, Former(), source.read_first(1))
            source.start_record(1)
            source.stop(1)
            assert source.written_pages(1) is not None
            destination.write_last(2, source.read_last(1))
            destination.activate(2)
            destination.check_runs(2, 15)
            source.release(1)
            assert source.owner.mode_get(1) == destination.owner.mode_get(2) == ACTIVE
        finally:
            for pf in (source, destination):
                pf.close()
    with BlockDriver.open(other.socket("vf2"), timeout=TIMEOUT) as disk:
        assert disk.read(5).tobytes() == b"\x66" * 512
    assert server.breaches() == before
    assert not any(other.breaches().values())
