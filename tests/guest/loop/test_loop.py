"""`vfu-boot` as a process: an out-of-tree driver is built and tried, and what becomes of guests that fail."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.server_process import ServerProcess
from vfu_images.kernel_headers import KBUILD
from vfu_images.workspace import IMAGES, SetupError

BOOT: tuple[str | Path, ...] = (sys.executable, "-m", "vfu_images.boot")
DRIVER = Path(__file__).parents[3] / "examples" / "counter_driver"

SECONDS = 240
"""For a guest, on a machine that is busy with something else; longer than vfu-boot's own --timeout."""

NO_SUCH_SYMBOL = """\
#include <linux/module.h>
extern void nobody_has_this(void);
static int __init begin(void) { nobody_has_this(); return 0; }
module_init(begin);
MODULE_DESCRIPTION("Calls what is not there");
MODULE_LICENSE("GPL");
"""

Boot = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def disk() -> Iterator[ServerProcess]:
    """A server whose VF 1 is a disk of 24 MiB."""
    with ServerProcess("--vfs", "1", "--disk", "vf1=ram:24M", "--disk", "ram:1M") as running:
        yield running


@pytest.fixture
def boot(disk: ServerProcess, tmp_path: Path) -> Boot:
    """Run vfu-boot on VF 1 with a script of this text, and these options."""

    def run(script: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
        (tmp_path / "script").write_text(script)
        command = [*BOOT, disk.folder, "--function", "vf1", "--script", tmp_path / "script", *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)

    return run


def build(source: Path, *settings: str, where: Path | None = None) -> None:
    """Build the modules of a folder with the headers of the guest's kernel."""
    if not (IMAGES / KBUILD).exists():
        raise SetupError(f"{IMAGES / KBUILD} is missing; run `python3 -m images drivers` first")
    command = [str(IMAGES / KBUILD), f"M={source}", *settings, "modules"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=where)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.CompletedProcess[str], set[str]]]]:
    """Build the example's driver, some text of it replaced, and try it: the command, the rules broken."""
    with ServerProcess("--vfs", "1", "--check-driver", device="examples.counter:Counter") as server:

        def run(edits: Mapping[str, str]) -> tuple[subprocess.CompletedProcess[str], set[str]]:
            source = tmp_path / "source"
            shutil.copytree(DRIVER, source)
            text = (source / "counter.c").read_text()
            for before, after in edits.items():
                assert text.count(before) == 1
                text = text.replace(before, after)
            (source / "counter.c").write_text(text)
            build(source, f"MO={tmp_path}/out")
            command = [*BOOT, server.folder, "--function", "vf1", "--script", source / "try.sh"]
            command += ["--module", tmp_path / "out" / "counter.ko"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
            return done, {rule["rule"] for rule in server.ask("query-rules") if rule["breaches"]}

        yield run


def test_from_edit_to_verdict(loop: Callable[..., Any]) -> None:
    """It adds, and its limit is heeded. Linux knows nothing of NOTIF_CONFIG_DATA."""
    done, broken = loop({})
    assert (done.returncode, done.stdout) == (0, "sum 42, alarm 0\nsum 50, alarm 1\n"), done.stderr
    assert broken == {"FEAT-06"}


@pytest.mark.long
def test_an_edit_that_is_wrong(loop: Callable[..., Any]) -> None:
    """The script fails, and the device knows why."""
    done, broken = loop({"	virtqueue_kick(counter->queue);\n": ""})
    assert (done.returncode, done.stdout) == (1, "sh: write error: Connection timed out\n"), done.stderr
    assert broken == {"FEAT-06", "KICK-09"}


def test_it_is_built_beside_its_source(tmp_path: Path) -> None:
    """Where nobody says MO=, and not over what is in the folder where one is."""
    source = tmp_path / "source"
    shutil.copytree(DRIVER, source)
    (tmp_path / "Makefile").write_text("mine")
    build(Path("source"), where=tmp_path)
    assert (source / "counter.ko").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"source", "Makefile"}
    assert (tmp_path / "Makefile").read_text() == "mine"


def test_the_status_is_that_of_the_script(boot: Boot) -> None:
    """And its output is that of both streams; its last line gets an end."""
    done = boot("echo out; echo err >&2; printf 'guest: exit 0'; printf '\\nguest: exit 0'; exit 7")
    assert (done.returncode, done.stdout) == (7, "out\nerr\nguest: exit 0\nguest: exit 0\n"), done.stderr


@pytest.mark.long
def test_a_folder_is_shared(boot: Boot, tmp_path: Path) -> None:
    """A copy of it: files, what may be run, links."""
    folder = tmp_path / "shared"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "data").write_bytes(bytes(range(256)) * 300)
    (folder / "link").symlink_to("below/data")
    (folder / "tool").write_text("#!/bin/sh\necho tool: $1\n")
    (folder / "tool").chmod(0o755)
    done = boot(
        '/share/tool "$(wc -c < /share/link)"; cat /proc/cmdline', "--share", folder, "--append", "word=1"
    )
    assert done.stdout.startswith("tool: 76800\n"), done.stderr
    assert done.stdout.endswith(" word=1\n")
    assert done.returncode == 0


@pytest.mark.long
def test_a_module_that_does_not_load(boot: Boot, tmp_path: Path) -> None:
    """The script is not run, and the kernel says why."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "stray.c").write_text(NO_SUCH_SYMBOL)
    (source / "Kbuild").write_text("obj-m := stray.o\n")
    build(source, f"MO={tmp_path}/out", "KBUILD_MODPOST_WARN=1")
    done = boot("echo ran", "--module", tmp_path / "out" / "stray.ko")
    assert (done.returncode, done.stdout) == (125, "")
    assert "insmod: can't insert '/boot/stray.ko': unknown symbol in module" in done.stderr
    assert "stray: Unknown symbol nobody_has_this" in done.stderr


@pytest.mark.long
def test_a_guest_that_panics(boot: Boot) -> None:
    """What the script said is there, and what the kernel said."""
    done = boot("echo before; echo c > /proc/sysrq-trigger; echo after")
    assert (done.returncode, done.stdout) == (123, "before\n")
    assert "Kernel panic - not syncing: sysrq triggered crash" in done.stderr


def test_a_guest_that_takes_too_long(boot: Boot) -> None:
    """Its time is over before it has booted."""
    done = boot("echo ran", "--timeout", "1")
    assert (done.returncode, done.stdout) == (124, "")
    assert "vfu-boot: 1 s are over" in done.stderr


def test_ctrl_c_ends_qemu(disk: ServerProcess, tmp_path: Path) -> None:
    """The function has no client afterwards, and nothing is left; more signals change nothing of it."""
    (tmp_path / "script").write_text("echo begun; sleep 1000")
    (tmp_path / "tmp").mkdir()
    command = [*BOOT, disk.folder, "--function", "vf1", "--script", tmp_path / "script"]
    mark = disk.mark()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "begun\n"
        running.send_signal(signal.SIGINT)
        running.send_signal(signal.SIGTERM)
        assert running.wait(SECONDS) in {130, 143}  # whichever was noticed first
    assert disk.wait_log(r"virtio\.vf1: .*the client left", since=mark)
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.long
def test_a_guest_that_enables_its_vfs(tmp_path: Path) -> None:
    """PF and VFs are placed as SR-IOV has them."""
    script = tmp_path / "script"
    script.write_text(
        "cd /sys/bus/pci/devices/0000:01:00.0 && echo 2 > sriov_numvfs && ls -1d virtfn*/driver"
    )
    options = ["--sriov", "guest", "--total-vfs", "2", "--disk", "ram:1M"]
    with ServerProcess(*options) as server:
        command = [*BOOT, server.folder, "--script", script]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stdout) == (0, "virtfn0/driver\nvirtfn1/driver\n"), done.stderr


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["vf2"], "has no function vf2: it has pf, vf1"),
        ([], "no monitor on"),
    ],
)
@pytest.mark.long
def test_functions_that_are_not_there(
    options: list[str], why: str, disk: ServerProcess, tmp_path: Path
) -> None:
    """125, before anything is booted."""
    folder = disk.folder if options else tmp_path
    named = [word for name in options for word in ("--function", name)]
    done = subprocess.run([*BOOT, folder, *named], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 125
    assert why in done.stderr
