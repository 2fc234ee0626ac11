"""Which drivers the device was tried with: `make compat` writes docs/compatibility.md.

    python -m tests.compatibility [PYTEST ARGUMENTS...]

It runs each test that names a driver (`@pytest.mark.driver("iPXE", "DHCP, TFTP")`), those of files
`slow_*.py` too, which `make test` leaves out. A driver's version is what it said itself (the fixture
`version`). The table is written only after a run without arguments; it says what fails as well.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from images.workspace import IMAGES

ROOT: Final = Path(__file__).resolve().parent.parent
TABLE: Final = ROOT / "docs" / "compatibility.md"

DRIVER: Final = "driver"
"""The marker's name, and that of the property of a test's reports that has its arguments."""

VERSION: Final = "driver-version"
"""The property with the version."""

HEAD: Final = """\
# Drivers that the device was tried with

Made by `make compat`; do not edit. All drivers are those of Debian's packages; each version is what the
driver says of itself. A driver *works* if it did what is named, no byte was wrong, and the server had no
fault to report. {client} was between them and the server.

| Driver | Version | What it did | Verdict |
| --- | --- | --- | --- |
"""


@dataclass
class Row:
    """One test: a driver, what it was to do, and what became of it."""

    driver: str
    does: str
    version: str = "?"
    outcome: str = "passed"

    @property
    def verdict(self) -> str:
        return {"passed": "works", "skipped": "not tried"}.get(self.outcome, "fails")

    def __str__(self) -> str:
        return f"| {self.driver} | {self.version} | {self.does} | {self.verdict} |"


@dataclass
class Recorder:
    """The pytest plugin: a row for each test that names a driver, by the test's ID."""

    rows: dict[str, Row] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The worst of setup, call and teardown is what counts."""
        properties: dict[str, Any] = dict(report.user_properties)
        if DRIVER not in properties:
            return
        driver, does = properties[DRIVER]
        row = self.rows.setdefault(report.nodeid, Row(str(driver), str(does)))
        row.version = str(properties.get(VERSION, row.version))
        if row.outcome == "passed":
            row.outcome = report.outcome


def render(rows: Sequence[Row], client: str) -> str:
    """The page. `client` is what had the functions in its guests."""
    return HEAD.format(client=client) + "".join(
        f"{row}\n" for row in sorted(rows, key=lambda row: (row.driver, row.does))
    )


def _qemu() -> str:
    """QEMU and its version."""
    command = [str(IMAGES / "qemu-system-x86_64"), "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.match(r"QEMU emulator version (\S+)", said)
    return f"QEMU {found[1]}" if found else "QEMU"


def main(arguments: Sequence[str]) -> int:
    """Run the tests and write the table. Returns pytest's exit status."""
    recorder = Recorder()
    status = pytest.main(
        [
            "-m", DRIVER, "-o", "python_files=test_*.py slow_*.py", "-n", "auto", "--dist", "worksteal",
            *arguments, str(ROOT / "tests" / "guest"),
        ],
        plugins=[recorder],
    )  # fmt: skip
    if not arguments and recorder.rows:
        TABLE.write_text(render(list(recorder.rows.values()), _qemu()))
        print(f"compat: {TABLE.relative_to(ROOT)} written")
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
