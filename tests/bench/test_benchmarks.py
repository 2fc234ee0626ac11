"""All benchmarks together: their names, what docs/benchmarks.md says of them, and the clock they share."""

from __future__ import annotations

import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

from bench.__main__ import GROUPS
from bench.processes import cpu_seconds

DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmarks.md"
NAMES = [benchmark.name for group in GROUPS for benchmark in group.benchmarks]

BUSY = """
import sys, threading, time
def work():
    while time.thread_time() < 0.1:
        pass
thread = threading.Thread(target=work)
thread.start()
thread.join()
print("ready", flush=True)
sys.stdin.read()
"""


def chapters() -> list[str]:
    """Names, perhaps with a * in them, that have a chapter."""
    text = DOCUMENT.read_text().partition("## The benchmarks")[2]
    return [name for heading in re.findall(r"^### (.+)$", text, re.MULTILINE) for name in heading.split(", ")]


def test_names_are_of_one_benchmark_each() -> None:
    assert len(set(NAMES)) == len(NAMES)


def test_each_has_a_chapter() -> None:
    assert [name for name in NAMES if not any(fnmatch(name, chapter) for chapter in chapters())] == []


def test_no_chapter_is_of_one_that_is_gone() -> None:
    assert [chapter for chapter in chapters() if not any(fnmatch(name, chapter) for name in NAMES)] == []


def test_processor_time_is_that_of_all_threads_also_of_those_that_ended() -> None:
    command = [sys.executable, "-c", BUSY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert cpu_seconds(process) >= 0.1
        process.kill()
