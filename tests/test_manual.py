"""Man pages and completion, made from the commands' parsers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "vfu-server": "--print-config",
    "vfu-owner": "--pf",
    "vfu-migrate": "--dialect",
    "vfu-qemu": "--libvirt",
    "vfu-boot": "--script",
    "vfu-demo": "--version",
}
"""Each with an option that it has."""


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make man` leaves in build/share."""
    folder = tmp_path_factory.mktemp("share")
    command = [sys.executable, "docs/manual.py", str(folder)]
    subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, timeout=60, check=True)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_has_what_help_has(share: Path, command: str) -> None:
    page = (share / "man" / "man1" / f"{command}.1").read_text()
    name = command.replace("-", r"\-")
    first = re.escape(rf'.TH {name.upper()} "1" ') + ".*" + re.escape(r' "vfu\-virtio 0.1.0" "vfu\-virtio"')
    assert re.match(first, page)
    assert f".SH NAME\n{name} \\- " in page
    for option in ("--version", COMMANDS[command]):
        assert r"\fB" + option.replace("-", r"\-") + r"\fR" in page


@pytest.mark.parametrize("command", COMMANDS)
def test_completion_is_a_script(share: Path, command: str) -> None:
    script = share / "bash-completion" / "completions" / command
    subprocess.run(["bash", "-n", str(script)], timeout=20, check=True)
    assert (share / "zsh" / "site-functions" / f"_{command}").read_text().startswith(f"#compdef {command}\n")


def test_completion_completes(share: Path) -> None:
    """Options, their choices, and files."""
    script = share / "bash-completion" / "completions" / "vfu-server"

    def completed(*words: str) -> set[str]:
        line = " ".join(f"'{word}'" for word in words)
        ask = f"""
            . '{script}'
            COMP_WORDS=({line}) COMP_CWORD={len(words) - 1}
            $(complete -p vfu-server | sed 's/.*-F \\([^ ]*\\).*/\\1/') vfu-server '{words[-1]}' '{words[-2]}'
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, timeout=20, check=True)
        return set(done.stdout.split())

    assert completed("vfu-server", "--log-f") == {"--log-format"}
    assert completed("vfu-server", "--log-level", "") == {"trace", "debug", "info", "warning", "error"}
    assert f"{share}/man" in completed("vfu-server", "--config", f"{share}/")
