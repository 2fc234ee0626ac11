"""What the documents say of this tree: every file that they name is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
# But the change log, which tells of what was.
DOCUMENTS = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").glob("*.md"))]
# From where they are named, beside the project's own folder.
FOLDERS = ("", "pymodel", "docs", "vfu_client/move")


def named(document: Path) -> Iterator[str]:
    """Files with a folder in front of them, between backticks, but for those that a build makes."""
    for name in re.findall(
        r"`([\w./-]+/[\w.-]+\.(?:py|pyx|pyi|pxd|c|h|sh|md|toml|build))`", document.read_text()
    ):
        if not name.startswith(("build/", "/")):
            yield name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_files_that_are_named_exist(document: Path) -> None:
    missing = [
        name for name in named(document) if not any((PROJECT / folder / name).exists() for folder in FOLDERS)
    ]
    assert missing == []


def test_there_is_something_to_look_for() -> None:
    assert sum(len(list(named(document))) for document in DOCUMENTS) >= 30
