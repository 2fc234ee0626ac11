"""The example of docs/driver-author.md breaks the rules that the page shows, and the verdict says so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from tests.server_process import ServerProcess


def run(example: str, path: object) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, f"examples/{example}.py", str(path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout


BROKEN = """\
CONF-01 SHOULD vf1 capacity 2
INIT-05 MUST vf1 - 1
FEAT-05 SHOULD vf1 - 1
FEAT-06 SHOULD vf1 - 1
BLK-01 MUST NOT vf1 queue 0 1
"""


def test_it_is_told_what_is_wrong(serve: Callable[..., ServerProcess]) -> None:
    server = serve("--vfs", "1", "--disk", "ram:24M", "--check-driver")
    found = run("first_sector", server.socket("vf1"))
    assert found == (1, "49152 sectors; 0 bytes used, status 1\n")
    assert run("verdict", server.socket("monitor")) == (1, BROKEN)


def test_who_comes_again_is_told_again(serve: Callable[..., ServerProcess]) -> None:
    """And counted further."""
    server = serve("--vfs", "1", "--disk", "ram:24M", "--check-driver")
    for _ in range(2):
        run("first_sector", server.socket("vf1"))
    assert server.log.count("INIT-05 (MUST:") == 2
    rules = server.ask("query-rules")
    (rule,) = (rule for rule in rules if rule["rule"] == "INIT-05")
    assert [breach["count"] for breach in rule["breaches"]] == [2]


def test_no_verdict(serve: Callable[..., ServerProcess]) -> None:
    """From who does not check drivers, or is not there: that is no broken rule."""
    server = serve("--vfs", "1", "--disk", "ram:24M")
    assert run("verdict", server.socket("monitor")) == (2, "")
    assert run("verdict", server.socket("nobody")) == (2, "")
