"""The two sides of a move that carries VFs by device parts, without a guest: there, back, and refused."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

import pytest

from tests.server_process import ServerProcess
from tests.wire.running import running
from vfu_client import BlockDriver, NetDriver
from vfu_client.move.pf import Former, Pf, SideError
from vfu_client.owner.owner import OwnerDriver

ACTIVE, FREEZE = 0, 2
NET = ("--device", "net", "--vfs", "1")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options for a server with a VF on a file; all of them share it."""
    path = tmp_path_factory.mktemp("disk") / "disk"
    path.write_bytes(bytes(1 << 20))
    return ("--vfs", "1", "--queues", "2", "--disk", "pf=ram:4k", "--disk", f"vf1={path}", "--check-driver")


@pytest.fixture(scope="module")
def pair(disk: tuple[str, ...]) -> Iterator[list[ServerProcess]]:
    """Source and destination. A test leaves their VFs running; no rule is broken in any."""
    with running() as start:
        servers = [start(*disk), start(*disk)]
        yield servers
        for server in servers:
            assert [entry for entry in server.ask("query-rules") if entry["breaches"]] == []


@contextlib.contextmanager
def attached(*servers: ServerProcess) -> Iterator[list[Pf]]:
    """The PFs of source and destination."""
    names = ("source", "destination")
    pfs = [Pf(name, server.folder, 0x40, "parts") for name, server in zip(names, servers, strict=True)]
    try:
        for pf in pfs:
            pf.open()
        yield pfs
    finally:
        for pf in pfs:
            pf.close()


def state(server: ServerProcess) -> dict[str, object]:
    """What the monitor says of VF 1."""
    (found,) = server.ask("query-functions", function="vf1")
    return {name: found[name] for name in ("mode", "status")}


def test_there(pair: list[ServerProcess]) -> None:
    """The commands of a move: the VF works on there, and the one that it left is new; no rule is broken."""
    here, there = pair
    with attached(here, there) as (source, destination), BlockDriver.open(here.socket("vf1")) as driver:
        driver.write(5, b"\x66" * 512)
        destination.check_destination(1, source.check_source(1))
        former = Former(destination.mode(1))
        destination.prepare(1, former, source.read_first(1))
        source.start_record(1)
        driver.read(5)
        source.stop(1)
        assert source.written_pages(1)
        last = source.read_last(1)
        assert source.status_in(1, last) == 15
        destination.write_last(1, last)
        destination.activate(1)
        destination.check_runs(1, 15)
        source.release(1)
        assert state(here) == {"mode": "active", "status": 0}
        assert state(there) == {"mode": "active", "status": 15}
        destination.stop(1)
        destination.release(1)


@pytest.mark.parametrize("forgotten", [False, True])
def test_back_again(pair: list[ServerProcess], forgotten: bool) -> None:
    """A move that fails at its end, or is killed there: the source works on, the destination is as it was."""
    here, there = pair
    with BlockDriver.open(here.socket("vf1")) as driver:
        driver.write(5, b"\x66" * 512)
        former = Former(ACTIVE)
        with attached(here, there) as (source, destination):
            destination.prepare(1, former, source.read_first(1))
            source.start_record(1)
            source.stop(1)
            destination.write_last(1, source.read_last(1))
            destination.activate(1)
            assert state(there) == {"mode": "active", "status": 15}
            if not forgotten:
                destination.restore(1, former)
                source.resume(1)
        if forgotten:
            with attached(here, there) as (source, destination):
                destination.restore(1, Former(ACTIVE, forgotten=True))
                source.resume(1)
        assert state(there) == {"mode": "active", "status": 0}
        assert driver.read(5).tobytes() == b"\x66" * 512
    # What is not there any more takes nothing up again.
    with BlockDriver.open(there.socket("vf1")) as driver:
        assert driver.read(5).tobytes() == b"\x66" * 512


def test_to_and_fro_with_a_network_card(serve: Callable[..., ServerProcess]) -> None:
    """A second move of the same card; the one that was left has nothing of its guest's settings."""
    here, there = serve(*NET), serve(*NET)
    with attached(here, there) as (first, second), NetDriver.open(here.socket("vf1")):
        for source, destination in ((first, second), (second, first)):
            destination.check_destination(1, source.check_source(1))
            destination.prepare(1, Former(ACTIVE), source.read_first(1))
            source.stop(1)
            destination.write_last(1, source.read_last(1))
            destination.activate(1)
            source.release(1)
        assert state(here) == {"mode": "active", "status": 15}
        assert state(there) == {"mode": "active", "status": 0}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--vfs", "1", "--queues", "2", "--disk", "ram:1M"), "its disk is in memory.*--dialect context"),
        (("--without", "packed"), "does not offer feature 34, which the guest uses"),
        (NET, "it is a network card, and the source's is a disk$"),
        (
            ("--context-opcodes", "off"),
            "destination lacks the commands 0x40, 0x45: see its --context-opcodes",
        ),
    ],
)
def test_refused(
    serve: Callable[..., ServerProcess],
    pair: list[ServerProcess],
    disk: tuple[str, ...],
    options: tuple[str, ...],
    why: str,
) -> None:
    """Found before anything is touched."""
    here = pair[0]
    there = serve(*options) if "--vfs" in options else serve(*disk, *options)
    with attached(here, there) as (source, destination), BlockDriver.open(here.socket("vf1")):
        fields = source.check_source(1)
        with pytest.raises(SideError) as caught:
            destination.check_destination(1, fields)
        assert re.search(why, str(caught.value)), caught.value
        assert state(there)["mode"] == "active"


def test_what_the_source_must_be(shared: ServerProcess, pair: list[ServerProcess]) -> None:
    """Its disk must not be in memory, and it must run; so must the destination."""
    with attached(shared, pair[1]) as (source, destination):
        with pytest.raises(SideError, match=r"VF 1 of the source .*moved so: its disk is in memory"):
            source.check_source(1)
        destination.stop(1)
        with pytest.raises(SideError, match=r"not active.*mode vf1 active"):
            destination.check_source(1)
        with pytest.raises(SideError, match=r"cannot be moved so: it stands still.*parts resume"):
            destination.check_destination(1, [])
        destination.activate(1)


def test_features_that_nobody_uses(
    serve: Callable[..., ServerProcess], pair: list[ServerProcess], disk: tuple[str, ...]
) -> None:
    """Device parts want both to offer the same, used or not: `check` finds what the device refuses."""
    with attached(pair[0], serve(*disk, "--without", "packed")) as (source, destination):
        with pytest.raises(SideError, match="one of both alone offers feature 34, and device parts want"):
            destination.check_destination(1, source.check_source(1))
        with pytest.raises(SideError, match="one of both alone offers feature 34"):
            destination.prepare(1, Former(ACTIVE), source.read_first(1))


def test_contexts_have_the_destination(pair: list[ServerProcess]) -> None:
    """A VF that somebody froze is refused, and stays so."""
    with OwnerDriver.open(pair[1].socket("pf")) as owner:
        owner.mode_set(1, FREEZE)
    with attached(*pair) as (source, destination):
        with pytest.raises(SideError, match="it stands still"):
            destination.check_destination(1, source.check_source(1))
        assert destination.mode(1) == FREEZE
        destination.owner.mode_set(1, ACTIVE)
