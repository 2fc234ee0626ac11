"""What `vfu-migrate` takes for servers and VFs, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vfu_client.move.moved_vf import MovedVf, Vf
from vfu_client.move.options import parse
from vfu_client.move.qemu import Qemu
from vfu_client.qemu.running import socket_in

SOCKETS = ["--from-qmp", "q", "--from-qtest", "t", "--to-qmp", "q", "--to-qtest", "t"]
ONE = ["--from-server", "/run/a", "--to-server", "/run/b"]
NAMED = ["--from-server", "here=/run/a", "--to-server", "there=/run/b"]
REMOTE = ["--to-command", "ssh b", "--ram-address", "b"]
DISK_AND_NET = [
    *("--from-server", "disk=/run/a-disk", "--from-server", "net=/run/a-net"),
    *("--to-server", "disk=/run/b-disk", "--to-server", "net=/run/b-net"),
]


@pytest.mark.parametrize(
    ("options", "moved"),
    [
        ([*ONE, "--vf", "vf1"], [MovedVf(Vf(1), Vf(1))]),
        ([*ONE, "--vf", "2"], [MovedVf(Vf(2), Vf(2))]),
        (
            [*ONE, "--vf", "vf1:vf3", "--vf", "vf2:1", "--device", "x", "--device", "y:z"],
            [MovedVf(Vf(1), Vf(3), "x", "x"), MovedVf(Vf(2), Vf(1), "y", "z")],
        ),
        ([*NAMED, "--vf", "vf1"], [MovedVf(Vf(1, "here"), Vf(1, "there"))]),
        ([*NAMED, "--vf", "here/vf1:there/vf2"], [MovedVf(Vf(1, "here"), Vf(2, "there"))]),
        ([*NAMED, "--vf", "here/vf1:vf2"], [MovedVf(Vf(1, "here"), Vf(2, "there"))]),
        (
            [*DISK_AND_NET, "--vf", "disk/vf1", "--vf", "net/vf1"],
            [MovedVf(Vf(1, "disk"), Vf(1, "disk")), MovedVf(Vf(1, "net"), Vf(1, "net"))],
        ),
        (
            [*DISK_AND_NET, "--vf", "net/vf1:vf3", "--vf", "net/vf2:disk/vf3"],
            [MovedVf(Vf(1, "net"), Vf(3, "net")), MovedVf(Vf(2, "net"), Vf(3, "disk"))],
        ),
    ],
)
def test_vfs(options: list[str], moved: list[MovedVf]) -> None:
    """Without names where a side has one server; the server of the same name where it has several."""
    assert parse([*SOCKETS, *options]).moved == moved


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("/run/a", {"": Path("/run/a")}),
        ("net=/run/a", {"net": Path("/run/a")}),
        ("net=run/a", {"net": Path("run/a")}),
        ("/run/a=b", {"": Path("/run/a=b")}),
        ("./a=b", {"": Path("a=b")}),
        ("n-1=/run/a=b", {"n-1": Path("/run/a=b")}),
    ],
)
def test_folders(text: str, servers: dict[str, Path]) -> None:
    """A name ends at the first =, unless a folder began before it."""
    assert parse([*SOCKETS, "--from-server", text, "--to-server", "b", "--vf", "vf1"]).from_server == servers


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ([*ONE], "--vf"),
        ([*ONE, "--vf", "vf0"], "'vf0' is no VF"),
        ([*ONE, "--vf", "vf1:"], "'vf1:' is no VF"),
        ([*ONE, "--vf", "/vf1"], "'/vf1' is no VF"),
        ([*ONE, "--vf", "vf1", "--vf", "vf1:vf2"], "a VF is given twice"),
        ([*ONE, "--vf", "vf1:vf2", "--vf", "vf2"], "a VF is given twice"),
        ([*ONE, "--vf", "vf1", "--device", "a", "--device", "b"], "--device as often as --vf"),
        ([*ONE, "--vf", "net/vf1"], "no server at the source is called net: there is one without a name"),
        ([*NAMED, "--vf", "there/vf1"], "no server at the source is called there: there is here"),
        ([*NAMED, "--vf", "here/vf1:here/vf1"], "no server at the destination is called here"),
        ([*DISK_AND_NET, "--vf", "vf1"], "whose vf1 at the source.*disk, net"),
        ([*ONE[:2], *DISK_AND_NET[4:], "--vf", "vf1"], "whose vf1 at the destination.*disk, net"),
        ([*DISK_AND_NET, "--vf", "net/vf1", "--vf", "disk/vf1:net/vf1"], "a VF is given twice"),
        ([*DISK_AND_NET, "--from-server", "net=/run/c", "--vf", "net/vf1"], "same name"),
        ([*DISK_AND_NET, "--to-server", "/run/c", "--vf", "net/vf1"], "need names"),
        ([*ONE, "--from-server", "/run/c", "--vf", "vf1"], "need names"),
        ([*ONE[:2], "--to-server", "", "--vf", "vf1"], "folder"),
        ([*ONE, "--vf", "vf1", "--timeout", "0"], "'0': give a whole number from 1 to 1000000"),
        ([*ONE, "--vf", "vf1", "--timeout", "x"], "'x': give a whole number"),
        ([*ONE, "--vf", "vf1", "--downtime-limit", "2000001"], "give a whole number from 1 to 2000000"),
        ([*ONE, "--vf", "vf1", "--downtime-limit", "-1"], "give a whole number|expected one argument"),
        ([*ONE, "--vf", "vf1", "--context-opcodes", "0x12"], "'0x12': give an opcode from 0x13 to 0xfff6"),
        ([*ONE, "--vf", "vf1", "--context-opcodes", "forty"], "'forty': give an opcode"),
        ([*ONE, "--vf", "vf1", "--to-command", "ssh b"], "--to-command and --ram-address go together"),
        ([*ONE, "--vf", "vf1", "--ram-address", "b"], "--to-command and --ram-address go together"),
        ([*ONE, "--vf", "vf1", "--ram-tls", "x"], "--ram-tls is for --ram-address"),
        ([*ONE, "--vf", "vf1", *REMOTE, "--ram-socket", "x"], "--ram-socket is for a move on one host"),
        ([*ONE, "--vf", "vf1", "--to-command", "ssh b", "--ram-address", "b c"], "'b c' is no address"),
        ([*ONE, "--vf", "vf1", "--to-command", "", "--ram-address", "b"], "give a command"),
        ([*ONE, "--vf", "vf1", "--to-command", "ssh 'b", "--ram-address", "b"], "No closing quotation"),
    ],
)
def test_refused(options: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2, and what is wrong."""
    with pytest.raises(SystemExit) as ended:
        parse([*SOCKETS, *options])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert re.search(why, said), said


def test_another_host() -> None:
    options = parse([*SOCKETS, *ONE, "--vf", "vf1", *REMOTE, "--ram-tls", "tls"])
    assert options.to_command == "ssh b"
    assert options.ram.parameters() == {"tls-creds": "tls", "tls-hostname": "b"}
    assert parse([*SOCKETS, *ONE, "--vf", "vf1"]).ram is None
    assert parse(["--agent"]).agent


def test_folders_of_sockets(tmp_path: Path) -> None:
    """A folder stands for the socket in it, as servers and people name it."""
    assert socket_in(tmp_path / "monitor", "qmp") == tmp_path / "monitor"
    assert socket_in(tmp_path, "qmp") == tmp_path / "qmp.sock"
    (tmp_path / "qmp").touch()
    assert socket_in(tmp_path, "qmp") == tmp_path / "qmp"
    assert Qemu.at("source", tmp_path, tmp_path).qtest_path == tmp_path / "qtest.sock"
