"""A machine that is given no kernel: its firmware, or what the firmware starts, drives the functions."""

from __future__ import annotations

import re

from vfu_images.machine import Machine

FORMATTING = re.compile(rb"\x1b\[[0-9;?=]*[A-Za-z]")
"""What moves a terminal's cursor or colours it."""


class BareMachine(Machine):
    """See the module; `arguments` say what else is to start."""

    def command_line(self, serial: str = "chardev:serial", kernel_log: str = "null") -> list[str]:
        line = super().command_line(serial, kernel_log)
        for option in ("-kernel", "-initrd", "-append"):
            at = line.index(option)
            del line[at : at + 2]
        return line

    def expect(self, pattern: bytes, *, timeout: float = 60.0) -> re.Match[bytes]:
        """Wait for something on the serial console."""
        return self.console.expect(re.compile(pattern), timeout=timeout)


class Prompt:
    """A command line of firmware on the serial console, which has shown its prompt."""

    def __init__(self, machine: BareMachine, prompt: bytes) -> None:
        self._machine = machine
        self._until = b"(?s)^(.*?)" + prompt

    def run(self, command: str, *, timeout: float = 60.0) -> str:
        """Type a command; what was on the console until the next prompt, with the command."""
        self._machine.console.send(f"{command}\r")
        found = self._machine.expect(self._until, timeout=timeout)
        return FORMATTING.sub(b"", found[1]).decode(errors="replace").replace("\r", "")
