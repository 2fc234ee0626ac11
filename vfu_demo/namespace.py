"""Namespaces of Linux: what runs in them has a network, or mounts, of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Self

from vfu_images.program import kill


class NamespaceError(Exception):
    """There may be no such namespace here; the message has what was said."""


class Namespace:
    """New namespaces of these kinds, as `unshare` calls them, until the context is left or this process ends.

    This user is root in them. They belong to the namespace of users of `of`, or to a new one; only what
    belongs to the same one can be joined. `first` is run in them at the beginning.
    """

    def __init__(self, *kinds: str, first: Sequence[str], of: Namespace | None = None) -> None:
        self._kinds = kinds
        self._first = first
        self._of = of
        self._holder: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Make them. Raises NamespaceError."""
        # Its standard input ends when this process does, and then it does too, and with it the namespaces.
        holding = ["sh", "-c", '"$@" && echo ready && exec cat', "hold", *self._first]
        whose = ["--user", "--map-root-user"] if self._of is None else []
        within = [] if self._of is None else self._of.entering("--user")
        command = [*within, "unshare", *whose, *self._kinds, *holding]
        pipe = subprocess.PIPE
        try:
            self._holder = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
        except OSError as error:
            raise NamespaceError(f"{command[0]}: {error.strerror}") from error
        assert self._holder.stdout is not None
        assert self._holder.stderr is not None
        if self._holder.stdout.readline() != b"ready\n":
            said = self._holder.stderr.read().decode(errors="replace").strip()
            self.close()
            raise NamespaceError(said)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of them. May be called twice."""
        if self._holder is not None:
            kill(self._holder)
        self._holder = None

    @property
    def pid(self) -> int:
        """A process that is in them."""
        assert self._holder is not None, "there are no namespaces"
        return self._holder.pid

    @property
    def inside(self) -> list[str]:
        """What a command begins with that runs in them."""
        return self.entering("--user", *self._kinds)

    def entering(self, *kinds: str) -> list[str]:
        """The same, for some of them."""
        return ["nsenter", "--target", str(self.pid), *kinds, "--preserve-credentials", "--"]
