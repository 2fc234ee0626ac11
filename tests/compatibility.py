"""Which drivers the device was tried with: `make compat` writes docs/compatibility.md.

    python -m tests.compatibility [PYTEST ARGUMENTS...]

It runs each test that names a driver (`@pytest.mark.driver("iPXE", "DHCP, TFTP")`), those of files
`slow_*.py` too, which `make test` leaves out. A driver's version is what it said itself (the fixture
`version`). Those in the folders CHECKED run once more, with servers that hold them to the rules
(--check-driver), and what is told of each is listed. The page is written only after a run without
arguments; it says what fails as well.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from vfu_images.workspace import IMAGES

ROOT: Final = Path(__file__).resolve().parent.parent
TABLE: Final = ROOT / "docs" / "compatibility.md"

DRIVER: Final = "driver"
"""The marker's name, and that of the property of a test's reports that has its arguments."""

VERSION: Final = "driver-version"
"""The property with the version."""

RULES: Final = "rules-broken"
"""The property with the rules that the server told of: names."""

FINDING: Final = "finding"
"""The property with a fault on purpose, and what its driver made of it."""

CHECKED: Final = ("boot", "drivers")
"""The folders of tests/guest whose drivers are held to the rules."""

HEAD: Final = """\
# Drivers that the device was tried with

Made by `make compat`; do not edit. All drivers are those of Debian's packages; each version is what the
driver says of itself. A driver *works* if it did what is named, no byte was wrong, and the server had no
fault to report. {client} was between them and the server.

| Driver | Version | What it did | Verdict |
| --- | --- | --- | --- |
"""

TOLD: Final = """
## What `--check-driver` tells of them

The same once more, with servers that were started with `--check-driver`; [rules.md](rules.md) has the
rules. A guest's firmware looks for disks before its Linux does: what is told of a Linux may be SeaBIOS's.

| Driver | Version | Rule | Is that right? |
| --- | --- | --- | --- |
"""

FAULTS: Final = """
## What they make of faults on purpose

One fault of a running device ([monitor.md](monitor.md#faults-on-purpose)): what became of the work that
met it (a hundred writes that are read back, a file fetched by TFTP, binding the driver), and what after the
driver was unbound and bound again, without faults. What takes longer than 10 s hangs. The eight sectors of a
write that failed hold what was there before, which counts as corrupt.

| Driver | Version | Fault | What came of it |
| --- | --- | --- | --- |
"""

UNKNOWN: Final = "**nobody looked yet**"
"""What is said of a rule that is not in RIGHT."""

RIGHT: Final[Mapping[str, str]] = {
    "none": "yes",
    "CONF-01": "yes: SeaBIOS, OVMF and iPXE read a capacity or a MAC and never look at config_generation",
    "CONF-02": "yes: SeaBIOS reads a disk's geometry whether it is offered or not",
    "FEAT-05": "yes: SeaBIOS, OVMF, U-Boot and iPXE have split rings only",
    "FEAT-06": "yes: nobody knows NOTIF_CONFIG_DATA",
    "INIT-01": "yes: U-Boot writes ACKNOWLEDGE first, and resets then",
    "INIT-02": "yes: U-Boot's reset took ACKNOWLEDGE away, and it writes DRIVER alone",
    "INIT-03": "yes: iPXE closes a card with a reset, and opens it again with FEATURES_OK at once",
    "KICK-10": "yes, and it does no harm: testpmd notifies now and then of what the device has already",
    "NET-02": "yes: testpmd sends on what it received with the header's num_buffers of 1",
    "P-DRV-01": "yes: Linux lists the commands of SR-IOV's group, and takes those of its own (self) as given",
    "P-DRV-07": "yes: Linux's capability commands have parts that are no multiple of 8 bytes",
    "PCI-01": "yes: DPDK reads fields of the configuration byte by byte",
    "RESET-01": "yes: SeaBIOS and OVMF write 0, and ACKNOWLEDGE without a look at whether the reset is over",
}
"""By rule: whether what is told of the drivers is right, and what they do."""


@dataclass
class Row:
    """One test: a driver, what it was to do, and what became of it."""

    driver: str
    does: str
    version: str = "?"
    outcome: str = "passed"
    broken: frozenset[str] | None = None
    """Rules that its driver was told of; None if it was not held to them."""
    finding: tuple[str, str] | None = None
    """A fault on purpose, and what came of it."""

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
        if RULES in properties:
            row.broken = frozenset(properties[RULES])
        if FINDING in properties:
            fault, text = properties[FINDING]
            row.finding = str(fault), str(text)
        if row.outcome == "passed":
            row.outcome = report.outcome


def render(rows: Sequence[Row], checked: Sequence[Row], client: str) -> str:
    """The page. `client` had the functions in its guests; `checked` are those that were held to the rules."""
    page = HEAD.format(client=client)
    # Of the many faults one row says whether all were borne without harm to the server.
    rows = sorted(rows, key=lambda row: (row.driver, row.does, row.verdict))
    page += "".join(f"{line}\n" for line in dict.fromkeys(map(str, rows)))
    page += FAULTS
    for row in sorted((row for row in rows if row.finding), key=lambda row: (row.driver, row.finding)):
        fault, text = row.finding or ("", "")
        page += f"| {row.driver} | {row.version} | {fault} | {text} |\n"
    page += TOLD
    drivers: dict[tuple[str, str], set[str]] = {}
    for row in checked:
        if row.broken is not None:
            drivers.setdefault((row.driver, row.version), set()).update(row.broken)
    for (driver, version), broken in sorted(drivers.items()):
        for rule in sorted(broken) or ["none"]:
            page += f"| {driver} | {version} | {rule} | {RIGHT.get(rule, UNKNOWN)} |\n"
    return page


def _qemu() -> str:
    """QEMU and its version."""
    command = [str(IMAGES / "qemu-system-x86_64"), "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.match(r"QEMU emulator version (\S+)", said)
    return f"QEMU {found[1]}" if found else "QEMU"


def _run(folders: Sequence[Path], arguments: Sequence[str]) -> tuple[int, list[Row]]:
    """Run the tests of drivers in these folders: pytest's exit status, and what became of them."""
    recorder = Recorder()
    status = pytest.main(
        [
            "-m", DRIVER, "-o", "python_files=test_*.py slow_*.py", "-n", "auto", "--dist", "worksteal",
            "--length", "any",
            *arguments, *map(str, folders),
        ],
        plugins=[recorder],
    )  # fmt: skip
    return int(status), list(recorder.rows.values())


def main(arguments: Sequence[str]) -> int:
    """Run the tests and write the page. Returns pytest's exit status, the worse of two."""
    guests = ROOT / "tests" / "guest"
    worked, rows = _run([guests], arguments)
    print("compat: once more, with --check-driver", flush=True)
    # What is wrong with faults on purpose is not the drivers' doing.
    without = f"--ignore={guests / 'drivers' / 'slow_faults.py'}"
    right, checked = _run([guests / folder for folder in CHECKED], ["--checked", without, *arguments])
    if not arguments and rows:
        TABLE.write_text(render(rows, checked, _qemu()))
        print(f"compat: {TABLE.relative_to(ROOT)} written")
    return max(worked, right)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
