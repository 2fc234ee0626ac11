"""`vfu-server --config`, `--print-config`, the log's formats, and what a service manager hears."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pymodel import __version__
from tests.server_process import ServerProcess
from vfu_images.qmp import QMP

COMMAND = [sys.executable, "-m", "vfu_server"]
ROOT = Path(__file__).resolve().parents[3]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "device.toml"


def test_a_file_has_all_options(file: Path) -> None:
    """Strings, numbers, true, and lists; the command line counts where both say something."""
    file.write_text(
        'socket-dir = "/tmp/nowhere"\ndevice = "blk"\nvfs = 2\nstrict = true\nlegacy = false\n'
        'disk = ["ram:1M", "vf1=ram:2M"]\ncheck-driver = "fatal"\ncontext-opcodes = 0x50\n'
        'io-delay-ms = 5\nwithout = "packed"\n'
    )
    done = run("--config", str(file), "--vfs=3", "--disk", "ram:4M", "--print-config")
    assert done.returncode == 0, done.stderr
    assert tomllib.loads(done.stdout) == {
        "socket-dir": "/tmp/nowhere",
        "device": "blk",
        "vfs": 3,
        "sriov": "owner",
        "queues": 1,
        "disk": ["ram:4M"],
        "context-opcodes": 0x50,
        "strict": True,
        "check-driver": "fatal",
        "without": "packed",
        "flr-delay-ms": 0,
        "reset-delay-ms": 0,
        "pm-delay-ms": 0,
        "io-delay-ms": 5,
        "log-level": "info",
        "log-format": "text",
    }


@pytest.mark.parametrize(
    "options",
    [
        ["--device", "blk"],
        ["--device", "net", "--vfs", "2", "--mac", "02:00:00:00:00:10", "--net", "vf1=none", "--mtu", "1500"],
        ["--device", "blk", "--sriov", "guest", "--total-vfs", "2", "--ecam", "auto", "--check-driver"],
        ["--device", "blk", "--context-opcodes", "off", "--disk=ram:1M", "--disk", "pf=ram:512"],
    ],
)
def test_what_is_printed_is_the_same_again(file: Path, options: list[str]) -> None:
    printed = run("--socket-dir", "/tmp/nowhere", *options, "--print-config")
    assert printed.returncode == 0, printed.stderr
    file.write_text(printed.stdout)
    again = run("--config", str(file), "--print-config")
    assert again.returncode == 0, again.stderr
    assert again.stdout == printed.stdout


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("vf = 2\n", "there is no option 'vf'; is 'vfs' meant?"),
        ('config = "x"\n', "there is no option 'config'"),
        ("print-config = true\n", "there is no option 'print-config'"),
        ("vfs = [1]\n", "'vfs' takes a string or a number"),
        ("vfs = true\n", "'vfs' takes a string or a number"),
        ('strict = "yes"\n', "'strict' takes true or false"),
        ("strict = 1\n", "'strict' takes true or false"),
        ("disk = [[]]\n", "'disk' takes a string, or a list of strings"),
        ("disk = 1979-05-27\n", "'disk' takes a string, or a list of strings"),
        ("check-driver = 1.5\n", "'check-driver' takes true, false or a string"),
        ("[blk]\nvfs = 1\n", "there is no option 'blk'"),
        ("vfs = \n", "Invalid value (at line 1, column 7)"),
        ("\xff", "it is no text: invalid start byte at byte 0"),
    ],
)
def test_a_wrong_file(file: Path, content: str, said: str) -> None:
    """Its name and what is wrong with it; status 2, as for options."""
    file.write_bytes(content.encode("latin-1"))
    done = run("--config", str(file), "--socket-dir", "/tmp/nowhere", "--device", "blk")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"vfu-server: error: --config {file}: {said}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("vfs = -1\n", "argument --vfs: -1 is not in 0 to 65535"),
        ('device = "net"\ndisk = "ram:1M"\n', "--disk is for --device blk"),
        ('disk = "--strict"\ncheck-driver = "so"\n', "argument --check-driver: invalid choice: 'so'"),
    ],
)
def test_a_wrong_value(file: Path, content: str, said: str) -> None:
    file.write_text(
        'socket-dir = "/tmp/nowhere"\n' + ("" if "device" in content else 'device = "blk"\n') + content
    )
    done = run("--config", str(file))
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]


def test_no_such_file(tmp_path: Path) -> None:
    done = run("--config", str(tmp_path / "none.toml"))
    assert done.returncode == 2
    assert done.stderr.endswith("none.toml: No such file or directory\n")


def test_the_version() -> None:
    """The same everywhere."""
    assert run("--version").stdout == f"vfu-server {__version__}\n"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
    assert f"  version: '{__version__}',\n" in (ROOT / "meson.build").read_text()


def test_log_lines_have_a_date() -> None:
    with ServerProcess("--disk", "ram:1M") as server:
        server.ask("quit")
        assert server.process.wait(20) == 0
        line = server.log.splitlines()[-1]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3} INFO    virtio\.server: quit: stopping", line)


def test_log_lines_in_json() -> None:
    with ServerProcess("--disk", "ram:1M", "--log-format", "json") as server:
        server.stop()
        lines = [json.loads(line) for line in server.log.splitlines() if not line.startswith("ready ")]
    assert lines
    for line in lines:
        assert line.keys() == {"time", "level", "logger", "message"}
        assert abs(dt.datetime.fromisoformat(line["time"]) - dt.datetime.now(dt.UTC)) < dt.timedelta(
            minutes=5
        )
    last = lines[-1]
    assert (last["level"], last["logger"], last["message"]) == ("INFO", "virtio.server", "SIGTERM: stopping")


def test_quit_is_answered_and_ends_the_server() -> None:
    with ServerProcess("--vfs", "1", "--disk", "ram:1M") as server:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(server.folder / "monitor.sock"))
            monitor = QMP(connection)
            monitor.negotiate()
            version = monitor.execute("query-version", {})
            major, minor, micro = (int(part) for part in __version__.split("."))
            assert version["qemu"] == {"major": major, "minor": minor, "micro": micro}
            assert monitor.execute("quit", {}) == {}
            assert connection.recv(1) == b""
        assert server.process.wait(20) == 0
        assert list(server.folder.glob("*.sock")) == []


@pytest.mark.parametrize("abstract", [False, True])
def test_a_service_manager_is_told(tmp_path: Path, abstract: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """READY=1 once clients may come, STOPPING=1 when it ends (sd_notify)."""
    name = f"@vfu-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0", 1) if abstract else name)
        manager.settimeout(20)
        with ServerProcess("--disk", "ram:1M") as server:
            assert manager.recv(4096).decode() == f"READY=1\nSTATUS=serving at {server.folder}"
            assert server.stop() == 0
        assert manager.recv(4096) == b"STOPPING=1"


@pytest.mark.parametrize("name", ["/nowhere/notify", "vsock:2:1234", ""])
def test_a_service_manager_that_is_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with ServerProcess("--disk", "ram:1M") as server:
        assert server.stop() == 0
        assert "Traceback" not in server.log
