"""A server whose drivers are checked, with more VFs than there are mistakes: each test has one of its own."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator

import pytest

from tests.recorder import TOLD
from tests.server_process import ServerProcess
from tests.wire.rules.author import Author, Listener, Mistake
from tests.wire.running import running

VFS = 250


class Checked:
    """A server, and VFs of it that nobody had."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self._numbers = itertools.count(1)
        self._listener = Listener(server)

    def author(self, function: str | None = None) -> Author:
        """At the next VF."""
        return Author(self.server, function or f"vf{next(self._numbers)}", self._listener)

    def close(self) -> None:
        self._listener.close()


def serving(*options: str, vfs: int = VFS) -> Iterator[Checked]:
    """A server with these options while a module's tests run."""
    with running() as start:
        found = Checked(start("--vfs", str(vfs), *options, "--check-driver"))
        yield found
        found.close()


@pytest.fixture(scope="module")
def checked() -> Iterator[Checked]:
    yield from serving("--queues", "2", "--disk", "ram:64k")


@pytest.fixture(scope="module")
def checked_net() -> Iterator[Checked]:
    yield from serving("--device", "net", "--queues", "2")


@pytest.fixture
def author(checked: Checked) -> Iterator[Author]:
    """At a disk."""
    with checked.author() as found:
        yield found


@pytest.fixture
def net_author(checked_net: Checked) -> Iterator[Author]:
    """At a network card."""
    with checked_net.author() as found:
        yield found


@pytest.fixture(scope="module")
def checked_slow() -> Iterator[Checked]:
    yield from serving("--disk", "ram:64k", "--io-delay-ms", "300", vfs=20)


@pytest.fixture
def slow_author(checked_slow: Checked) -> Iterator[Author]:
    """At a disk that holds each request for a while."""
    with checked_slow.author() as found:
        yield found


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Callable[[Author, Mistake], None]:
    """Makes a mistake, and holds what is told against what should be. It goes into docs/rules.md."""

    def make(author: Author, mistake: Mistake) -> None:
        mistake.make(author)
        found = author.told()
        assert found.keys() == {mistake.rule, *mistake.also}, found
        data = found[mistake.rule]
        assert re.search(mistake.seen, data["seen"]), data["seen"]
        assert mistake.where.items() <= data.items(), data
        assert data["section"]
        assert data["does"]
        request.node.user_properties.append((TOLD, (mistake.rule, data["seen"])))

    return make
