"""The demo's two hosts: they share a network and nothing else, and a guest moves between them by ssh."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfu_demo import hosts, outcome
from vfu_demo.namespace import Namespace, NamespaceError
from vfu_demo.network import has_taps
from vfu_demo.place import Place
from vfu_demo.stage import StageError
from vfu_images.openssh import FOLDERS
from vfu_images.program import kill
from vfu_images.workspace import IMAGES

ROOT = Path(__file__).resolve().parents[2]

FORBIDDEN = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
"""In a namespace of users, whose users may make no further one then."""


@pytest.fixture(autouse=True)
def namespaces() -> None:
    """Skip where none may be made."""
    try:
        with Namespace("--net", "--mount", first=["true"]) as namespace:
            if not has_taps(namespace.inside):
                pytest.skip("no taps: /dev/net/tun can't be opened")
    except NamespaceError as error:
        pytest.skip(f"no namespaces of networks and mounts: {error}")


@pytest.fixture
def places(tmp_path: Path) -> Iterator[tuple[Place, Place]]:
    """Both hosts, joined."""
    a, b = (tmp_path / name for name in "ab")
    with Place(a, b) as one, Place(b, a, beside=one) as other, one.joined(other):
        yield one, other


def at(here: Place, there: Place, *command: str) -> str:
    """What a command says that `here` runs by ssh."""
    return here.run(*shlex.split(here.login.command(there.name)), shlex.join(command))


def test_they_share_a_network_only(places: tuple[Place, Place], tmp_path: Path) -> None:
    """Each logs in at the other, and sees its files and interfaces, but none of its own."""
    for here, there in (places, reversed(places)):
        secret = here.folder / "secret"
        secret.write_text("of this host")
        assert here.run("cat", str(secret)) == "of this host"
        assert at(here, there, "ls", "-A", str(here.folder)) == ""
        assert "sshd_config" in at(here, there, "ls", str(there.folder / "ssh"))
        assert at(here, there, "id", "-un") == "demo\n"
        assert at(here, there, "sh", "-c", 'echo "$TMPDIR"') == f"{there.folder}\n"
        interfaces = at(here, there, "cat", "/proc/net/dev")
        assert "cable" in interfaces
        assert "eth0" not in interfaces
    assert "/vfu_client" not in at(*places, "vfu-migrate", "--version")


def test_another_host_key_is_refused(places: tuple[Place, Place]) -> None:
    a, b = places
    known = a.folder / "ssh" / "known_hosts"
    known.write_text(f"b {(a.folder / 'ssh' / 'host_key.pub').read_text()}")
    with pytest.raises(StageError, match="Host key verification failed"):
        at(a, b, "true")
    known.write_text("")
    with pytest.raises(StageError, match="Host key verification failed"):
        at(a, b, "true")


def test_an_unknown_user_key_is_refused(places: tuple[Place, Place]) -> None:
    a, b = places
    (b.folder / "ssh" / "authorized_keys").write_text("")
    with pytest.raises(StageError, match="Permission denied"):
        at(a, b, "true")


def test_a_key_that_runs_the_agent_alone(places: tuple[Place, Place]) -> None:
    """As docs/migrate.md has it: whatever is asked for, an agent answers."""
    a, b = places
    keys = b.folder / "ssh" / "authorized_keys"
    keys.write_text(f'restrict,command="{b.folder}/bin/vfu-migrate --agent" {keys.read_text()}')
    done = subprocess.run(
        [*a.inside, *shlex.split(a.login.command("b")), "ls", "/"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert re.fullmatch(r"\nvfu-migrate-agent \{.*\}\n", done.stdout.partition("}")[0] + "}\n")
    assert "usr" not in done.stdout


def test_what_is_logged_in_ends_with_the_host(tmp_path: Path) -> None:
    """Nothing is left that a login has started."""
    a, b = (tmp_path / name for name in "ab")
    with Place(a, b) as one, Place(b, a, beside=one) as other, one.joined(other):
        # The shell's number as this process sees it, whose /proc there is.
        words = "read number rest </proc/self/stat; echo $number; exec sleep 1000"
        client = subprocess.Popen(
            [*one.inside, *shlex.split(one.login.command("b")), words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        try:
            assert client.stdout is not None
            process = os.pidfd_open(int(client.stdout.readline()))
        finally:
            kill(client)
    try:
        assert select.select([process], [], [], 20)[0], "what was logged in still runs"
    finally:
        os.close(process)


def test_where_no_namespaces_may_be_made() -> None:
    """It says so, and what to do."""
    if not all((IMAGES / name).exists() for name in ("vmlinux", *FOLDERS)):
        pytest.skip("`python3 -m images hosts` was not run")
    within = ["unshare", "--user", "--map-root-user", "sh", "-c", FORBIDDEN, "forbidden"]
    done = subprocess.run(
        [*within, sys.executable, "-m", "vfu_demo", "hosts"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "FAILED: this demo needs namespaces of networks and mounts" in done.stderr
    assert "`vfu-demo moves` needs none" in done.stderr


@pytest.mark.guest
@pytest.mark.long
@pytest.mark.timeout(300)
def test_there_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is lost over two moves, both of which were made by `vfu-migrate` and ssh."""
    monkeypatch.setattr(outcome, "BUILD", tmp_path)
    hosts.play()
    said = capsys.readouterr().out
    for here, there, address in (("a", "b", "10.77.0.12"), ("b", "a", "10.77.0.11")):
        (command,) = (line for line in said.splitlines() if f"--ram-address {address}" in line)
        assert f"/{here}/ssh/config {there}' " in command
    figures = json.loads((tmp_path / "demo-hosts.json").read_text())
    assert [(move["from"], move["to"]) for move in figures["moves"]] == [("A", "B"), ("B", "A")]
    for move in figures["moves"]:
        assert 0 < move["downtime_ms"] < 60_000
        assert move["steps"]["move-contexts"] > 0
        assert set(move["longest_gap_ms"]) == {"disk", "TCP to guest", "TCP from guest"}
    assert figures["sectors_written"] >= 20_000
    assert (figures["lost"], figures["corrupt"], figures["errors"]) == (0, 0, 0)
    assert (figures["tcp"]["resets"], figures["tcp"]["corrupt"], figures["tcp"]["ended"]) == (0, 0, "clean")
    assert "gap: disk" in said
    assert "move B → A" in (tmp_path / "demo-hosts.svg").read_text()
