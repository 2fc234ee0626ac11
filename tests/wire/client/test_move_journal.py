"""The journals of moves that were killed, as `vfu-migrate --recover` finds them; no QEMU is there."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from vfu_client.move import cli
from vfu_client.move.journal import Journal, abandoned


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands for TMPDIR."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def notes(folder: Path, **changes: Any) -> dict[str, Any]:
    """What a move noted that was killed while its guest stood still."""
    side = {"qmp": f"{folder}/qmp", "qtest": f"{folder}/qtest", "servers": {"": f"{folder}/server"}}
    noted = {
        "source": side,
        "destination": side,
        "context_opcodes": 0x40,
        "dialect": "parts",
        "vfs": [[[1, ""], [1, ""]]],
        "settings": {},
        "parameters": {},
        "parameters_there": {},
        "contexts": [],
        "recorded": [[1, ""]],
        "places": [[1, "", 1, 0, 0]],
        "incoming": True,
        "asked": False,
        "continued": False,
    }
    return noted | changes


def left(folder: Path, noted: dict[str, Any] | None) -> Path:
    """The folder of a move that ended without a word."""
    journal = Journal.begin()
    if noted is not None:
        journal.write(noted)
    journal.close()
    assert journal.folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in journal.folder.iterdir())
    return journal.folder


def test_nothing_was_touched(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A folder alone, without notes, is removed."""
    left(folder, None)
    assert cli.main(["--recover", "--json"]) == 0
    (found,) = json.loads(capfd.readouterr().out)
    assert (found["recovered"], found["runs_at"]) == (True, None)
    assert list(folder.iterdir()) == []


def test_the_guest_is_gone(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """There is nothing to go on: it says so, once."""
    left(folder, notes(folder))
    assert cli.main(["--recover"]) == 1
    said = capfd.readouterr().err
    assert "the guest is gone" in said
    assert f"no server listens on {folder}/server/pf.sock" in said
    assert list(folder.iterdir()) == []


def test_it_may_have_gone_on(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The destination was told to, and does not answer: nothing is touched, and the journal stays."""
    place = left(folder, notes(folder, continued=True))
    assert cli.main(["--recover"]) == 1
    said = capfd.readouterr().err
    assert "may have gone on at the destination" in said
    assert str(place) in said
    assert (place / "journal.json").exists()


@pytest.mark.parametrize(
    "changes", [{"vfs": 5}, {"dialect": "draft"}, {"settings": {"nobody": {}}}, {"places": [[1]]}]
)
def test_a_damaged_journal(folder: Path, capfd: pytest.CaptureFixture[str], changes: dict[str, Any]) -> None:
    """It is not believed, and stays for people to look at."""
    place = left(folder, notes(folder, **changes))
    assert cli.main(["--recover"]) == 1
    assert "the journal is damaged" in capfd.readouterr().err
    assert place.exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1}', "\0"])
def test_no_journal_at_all(folder: Path, capfd: pytest.CaptureFixture[str], text: str) -> None:
    """The same for what is none."""
    place = left(folder, None)
    (place / "journal.json").write_text(text)
    assert cli.main(["--recover"]) == 1
    assert "journal.json" in capfd.readouterr().err
    assert place.exists()


def test_whose_journals(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Not that of a move that runs, of another guest, or one that anybody may have written."""
    running = Journal.begin()
    running.write(notes(folder))
    public = folder / "vfu-migrate-public"
    public.mkdir()
    public.chmod(0o750)
    (public / "journal.json").write_text("{}")
    (folder / "vfu-migrate-link").symlink_to(running.folder)
    other = left(folder, notes(folder))
    assert cli.main(["--recover", "--from-qmp", "/elsewhere/qmp"]) == 0
    assert "no move was left unfinished" in capfd.readouterr().err
    assert running.folder.exists()
    assert public.exists()
    assert other.exists()
    running.close()


@pytest.mark.parametrize("removed", [False, True])
def test_a_recovery_beside_a_move_that_begins(
    folder: Path, monkeypatch: pytest.MonkeyPatch, removed: bool
) -> None:
    """It finds the folder before the move has locked it: the move has another one."""
    make, found = tempfile.mkdtemp, list[Journal]()

    def made(**options: Any) -> str:
        name: str = make(**options)
        if not found:
            found.extend(abandoned())
            if removed:
                found[0].remove()
        return name

    monkeypatch.setattr(tempfile, "mkdtemp", made)
    journal = Journal.begin()
    assert journal.folder != found[0].folder
    journal.write({})
    assert list(abandoned()) == []
    journal.remove()
    found[0].remove()
    assert list(folder.iterdir()) == []
