"""A way to another host that a test can cut: `relay.py COMMAND...` joins its streams with those of a command.

It starts the command, with its standard error, and passes on what either side says. Killed, it lets go of
both, and the command reads the end of its input, as where a network breaks. SIGUSR1 has it pass on nothing
any more, and keep everything open, as a network does that swallows all.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def pump(source: int, target: int, silent: threading.Event) -> None:
    while data := os.read(source, 1 << 16):
        if silent.is_set():
            continue
        while data:
            data = data[os.write(target, data) :]
    if not silent.is_set():
        os.close(target)


def main() -> int:
    silent = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: silent.set())
    with subprocess.Popen(
        sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as command:
        assert command.stdin is not None
        assert command.stdout is not None
        to_command = os.dup(command.stdin.fileno())
        command.stdin.close()
        threading.Thread(target=pump, args=(0, to_command, silent), daemon=True).start()
        pump(command.stdout.fileno(), 1, silent)
        # The end of the command: what still waits for input ends with this process.
        os._exit(command.wait())


if __name__ == "__main__":
    sys.exit(main())
