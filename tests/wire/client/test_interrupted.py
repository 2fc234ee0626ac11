"""Ctrl-C at the commands of the client, as a user types them."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SILENT = "silent"
"""A socket whose listener never says anything."""
OWNER = ["vfu-owner", "--pf", SILENT, "mode", "vf1"]
MIGRATE = [
    "vfu-migrate",
    *("--from-qmp", SILENT, "--from-qtest", SILENT, "--from-server", "here"),
    *("--to-qmp", SILENT, "--to-qtest", SILENT, "--to-server", "there", "--vf", "vf1"),
]


@pytest.fixture(autouse=True)
def silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The listener, in the folder where the commands run."""
    monkeypatch.chdir(tmp_path)
    # They inherit no ignored signal, as tests in the background do.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(SILENT)
        listener.listen()
        Path("device").mkdir()
        Path("device/monitor.sock").symlink_to(tmp_path / SILENT)
        yield
    signal.signal(signal.SIGINT, before)


QEMU = ["vfu-qemu", "plug", "device", "--qmp", SILENT]


@pytest.mark.parametrize("words", [OWNER, MIGRATE, QEMU], ids=["owner", "migrate", "qemu"])
def test_ctrl_c_while_python_starts(words: list[str]) -> None:
    """It is held until the command can heed it, and not for longer."""
    command = Path(sys.executable).with_name(words[0])
    if not command.is_file() or "--block-signal" not in command.read_text():
        pytest.skip(f"there is no {words[0]} beside this Python that can hold a signal")
    for step in range(8):
        process = subprocess.Popen([command, *words[1:]], stderr=subprocess.PIPE, text=True)
        time.sleep(step * 0.015)  # what is varied, not what is waited for
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        if process.returncode == -signal.SIGINT:  # it was not Python yet
            assert not said
        else:
            assert re.search("interrupted|cancelled", said), said
            assert "Traceback" not in said
