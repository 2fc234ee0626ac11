"""The command `vfu-server` as a process: what it prints, how it ends, what it refuses."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.wire.raw_client import HEADER, REGION_READ, RawClient
from vfu_server.__main__ import main

COMMAND = [sys.executable, "-m", "vfu_server"]


class Running:
    """A server, ready, in `folder`."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [*COMMAND, "--socket-dir", str(folder), "--device", "blk", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline()

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Its status, and what it logged."""
        self.process.send_signal(number)
        _, logged = self.process.communicate(timeout=10)
        return self.process.returncode, logged


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sockets"


@pytest.fixture
def server(folder: Path) -> Iterator[Running]:
    running = Running(folder, "--vfs", "2", "--disk", "ram:1M")
    yield running
    if running.process.poll() is None:
        running.process.kill()
    running.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ready_and_stopped(server: Running, folder: Path, number: int) -> None:
    assert server.ready == f"ready {folder}\n"
    assert sorted(path.name for path in folder.glob("*.sock")) == [
        "monitor.sock",
        "pf.sock",
        "vf1.sock",
        "vf2.sock",
    ]
    status, logged = server.stop(number)
    assert status == 0
    assert not list(folder.glob("*.sock"))
    assert "Traceback" not in logged


def test_stopped_while_clients_stall(server: Running, folder: Path) -> None:
    silent = RawClient(folder / "pf.sock", negotiate=False)
    half = RawClient(folder / "vf1.sock")
    half.socket.sendall(HEADER.pack(1, REGION_READ, 32, 0, 0) + b"half")
    with RawClient(folder / "vf2.sock") as idle:
        assert idle.read(7, 0, 2) == b"\xf4\x1a"
        status, logged = server.stop()
    assert status == 0
    assert "Traceback" not in logged
    silent.socket.close()
    half.socket.close()


def test_a_second_server_is_refused(server: Running, folder: Path) -> None:
    second = subprocess.run(
        [*COMMAND, "--socket-dir", str(folder), "--device", "blk"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert second.returncode == 2
    assert "another server runs in" in second.stderr
    with RawClient(folder / "pf.sock") as client:
        assert client.read(7, 0, 2) == b"\xf4\x1a"


def test_sockets_of_a_killed_server_are_taken_over(folder: Path) -> None:
    first = Running(folder)
    first.stop(signal.SIGKILL)
    assert (folder / "pf.sock").exists()
    again = Running(folder)
    assert again.ready == f"ready {folder}\n"
    assert again.stop()[0] == 0


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--device", "gpu"], "invalid choice"),
        (["--device", "blk", "--vfs", "3", "--total-vfs", "2"], "more than --total-vfs 2"),
        (["--device", "blk", "--vfs", "-1"], "not in 0 to 255"),
        (["--device", "blk", "--queues", "0"], "not in 1 to"),
        (["--device", "blk", "--queues", "many"], "invalid number value"),
        (["--device", "blk", "--disk", "none.img"], "none.img does not exist: `,size="),
        (["--device", "blk", "--disk", "ram:12"], "no multiple of 512"),
        (["--device", "blk", "--disk", "ram:big"], "such as ram:64M"),
        (["--device", "blk", "--disk", "vf1=ram:1M"], "no function vf1"),
        (["--device", "blk", "--context-opcodes", "on"], "neither a number nor"),
        (["--device", "blk", "--context-opcodes", "0x10000"], "no opcode"),
        (["--device", "blk", "--flr-delay-ms", "-5"], "not in 0 to"),
        (["--device", "blk", "--without", "paked"], "'paked' is none of packed, in-order, notification-data"),
        (["--device", "blk", "--without", "packed,"], "'' is none of packed"),
    ],
)
def test_bad_options(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--socket-dir", str(folder), *options])
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err
    assert not folder.exists()


def test_a_folder_name_too_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--socket-dir", str(tmp_path / ("x" * 100)), "--device", "blk"])
    assert caught.value.code == 2
    assert "too long" in capsys.readouterr().err
