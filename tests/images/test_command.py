"""`python3 -m images`: what it says of options that it does not take there, and where images are."""

from __future__ import annotations

from pathlib import Path

import pytest

import vfu_images.__main__
from vfu_images.__main__ import main


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--suite", "trixie"], "--suite belongs to `libvfio-user` and `all`, and comes after that word"),
        (["--suite", "trixie", "all"], "--suite belongs to `libvfio-user` and `all`, and comes after"),
        (["qemu", "--suite", "trixie"], "--suite belongs to `libvfio-user` and `all`, and comes after"),
        (["guest", "--folder", "x"], "--folder belongs to `libvfio-user` and `all`, and comes after"),
        ([], "COMMAND"),
    ],
)
def test_wrong_options(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2 and what is wrong; nothing was prepared."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert why in capsys.readouterr().err


def test_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder alone on standard output, also before there is anything; then status 1, and what to do."""
    images = tmp_path / "images"
    monkeypatch.setattr(vfu_images.__main__, "IMAGES", images)
    assert main(["where"]) == 1
    out, err = capsys.readouterr()
    assert out == f"{images}\n"
    assert "all` first" in err
    images.mkdir()
    assert main(["where"]) == 0
    assert capsys.readouterr() == (f"{images}\n", "")
