"""`vfu-boot`: a guest with the functions of a running server, at a shell, or with a script that it runs.

Exit status: the script's; or 2 wrong options, 123 the guest panicked or went off before the script was done,
124 it took too long, 125 something could not be started, and the reason is on standard error. 130 is Ctrl-C.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from vfu_images.boot_options import Options, parse
from vfu_images.luggage import ON_ENTRY, SCRIPT, Luggage
from vfu_images.machine import Machine, MachineError
from vfu_images.preparation import ensure
from vfu_images.program import DIE_WITH_PARENT, end
from vfu_images.workspace import IMAGES, SetupError

OUTPUT = 1

GUEST_ENDED = 123
TOO_LATE = 124
NOT_STARTED = 125

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""End the command, with 128 and their number as its status."""

ASK_SECONDS = 60
"""For a server to say what it serves."""

FOREVER = 1e6
"""Seconds, where nothing else was said."""

QUIT_SECONDS = 5

LOG_LINES = 60
"""How much of the kernel's log is shown for a guest that did not come to its end."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Boot a guest; returns the exit status."""
    ending = _Ending()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, ending.heed)
    options = parse(arguments)
    # What comes before there is a folder to be removed waits until there is. The command that `make` puts
    # into .venv/bin holds SIGINT back already, while Python starts.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        with tempfile.TemporaryDirectory(prefix="vfu-boot-") as folder:
            try:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
                return _boot(options, Path(folder), ending)
            finally:
                ending.over = True
    except SetupError as error:
        _say(str(error))
        return NOT_STARTED
    except BrokenPipeError:
        _say("nobody reads standard output")
        return NOT_STARTED


class _Ending:
    """What signals do: they end this command, or its QEMU, which is noticed where its guest is waited for.

    An exception while the console's lock is taken or given back could leave it in a state that it never has.
    """

    def __init__(self) -> None:
        self.number = 0
        """The first signal that came."""
        self.qemu = 0
        """The process of a QEMU that runs."""
        self.over = False
        """All that is left is to clean up."""

    def heed(self, number: int, frame: FrameType | None) -> None:
        """Take a signal; only the first counts."""
        if self.number or self.over:
            return
        self.number = number
        if not self.qemu:
            raise SystemExit(128 + number)
        os.kill(self.qemu, signal.SIGKILL)


def _boot(options: Options, folder: Path, ending: _Ending) -> int:
    luggage = Luggage(options.modules, options.script, options.share)
    ports, devices = _arrangement(options)
    _collect(options, luggage, folder)
    more = ["-no-reboot"] if options.script else []
    append = [options.append] if options.script else ["guest.shell", f"ENV={ON_ENTRY}", options.append]
    if options.gdb:
        more += ["-gdb", f"unix:{folder / 'gdb.sock'},server=on,wait=off"]
        more += ["-S"] if options.gdb == "wait" else []
        append.append("nokaslr")
    for port in ports:
        more += ["-device", json.dumps(port)]
    machine = Machine(
        devices=devices,
        spare_ports=0,
        memory_mib=options.memory,
        cpus=options.cpus,
        accel=options.accel,
        append=" ".join(append).strip(),
        arguments=more,
        folder=folder,
        images=folder,
    )
    if options.gdb:
        waits = "the guest waits for it: " if options.gdb == "wait" else ""
        _say(f"{waits}gdb -ex 'target remote {folder / 'gdb.sock'}'")
    return _run(machine, luggage, options.timeout, ending) if options.script else _attend(machine)


def _arrangement(options: Options) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """QEMU's root ports and devices for the functions. Raises SetupError with what vfu-qemu says."""
    # A program and not a module: `images` knows nothing of the client.
    command = [sys.executable, "-m", "vfu_client.plug.cli", "--json", str(options.folder.absolute())]
    try:
        done = subprocess.run(
            [*command, *options.functions],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=ASK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SetupError(f"the server in {options.folder} does not answer") from None
    if done.returncode:
        raise SetupError("no guest was started")
    answer = json.loads(done.stdout)
    return answer["ports"], answer["devices"]


def _collect(options: Options, luggage: Luggage, folder: Path) -> None:
    """Fill the folder with what Machine looks for. Raises SetupError where something is missing."""
    if not (options.initrd and options.kernel and (IMAGES / "qemu-system-x86_64").exists()):
        ensure("usual")
    initrd = options.initrd or IMAGES / "initramfs.cpio.gz"
    qemu = "qemu-system-x86_64"
    sources = {qemu: IMAGES / qemu, "vmlinux": options.kernel or IMAGES / "vmlinux"}
    for path in (*sources.values(), initrd):
        if not path.is_file():
            raise SetupError(f"{path} is missing")
    for name, path in sources.items():
        (folder / name).symlink_to(path.absolute())
    try:
        usual = initrd.read_bytes()
        packed = luggage.packed(options.memory << 18)
        # What is not compressed begins at a multiple of 4, and zeros between archives are passed over.
        (folder / "initramfs.cpio.gz").write_bytes(usual + bytes(-len(usual) % 4) + packed)
    except OSError as error:
        raise SetupError(f"{error.filename}: {error.strerror}") from error


def _attend(machine: Machine) -> int:
    """Have a person at a shell of the guest, until QEMU ends."""
    _say("starting; the guest's shell comes in a few seconds (`poweroff -f` or Ctrl-A X ends it)")
    process = subprocess.Popen([*DIE_WITH_PARENT, *machine.command_line(serial="mon:stdio")])
    try:
        return NOT_STARTED if process.wait() else 0
    finally:
        # SIGTERM first: QEMU leaves the terminal as it was.
        end(process, QUIT_SECONDS)


def _run(machine: Machine, luggage: Luggage, seconds: float | None, ending: _Ending) -> int:
    """Run the script in the guest, its output on standard output; the exit status."""
    deadline = time.monotonic() + (seconds or FOREVER)
    try:
        with machine:
            ending.qemu = machine.pid
            try:
                return _verdict(machine, luggage, deadline)
            except MachineError as error:
                if ending.number:
                    return 128 + ending.number
                _say("the guest ended before the script did")
                _say(_log(machine) or str(error))
                return GUEST_ENDED
            except TimeoutError as error:
                _say("\n".join([f"{seconds:g} s are over: {error}", _log(machine)]).strip())
                return TOO_LATE
            finally:
                ending.over = True
    except MachineError as error:
        _say(str(error))
        return NOT_STARTED


def _verdict(machine: Machine, luggage: Luggage, deadline: float) -> int:
    """The script's status. Raises MachineError where QEMU ends, TimeoutError."""
    machine.wait_ready(timeout=deadline - time.monotonic())
    for command in luggage.loads:
        done = machine.run(command, timeout=deadline - time.monotonic())
        if done.status:
            _say(done.output.strip())
            _say("the kernel says:\n" + machine.run("dmesg | tail -n 5", timeout=ASK_SECONDS).output.strip())
            return NOT_STARTED
    return machine.stream(f"/bin/sh {SCRIPT}", _put, timeout=deadline - time.monotonic())


def _log(machine: Machine) -> str:
    """The end of what the kernel said where it is loud, as before a panic."""
    log = (machine.folder / "kernel.log").read_text(errors="replace").splitlines()
    return "\n".join(log[-LOG_LINES:])


def _put(output: bytes) -> None:
    """Write to standard output. Raises OSError; nothing is kept that Python would write at its end."""
    while output:
        output = output[os.write(OUTPUT, output) :]


def _say(line: str) -> None:
    print(f"vfu-boot: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
