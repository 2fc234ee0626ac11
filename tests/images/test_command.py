"""`python3 -m images`: what it says of options that it does not take there."""

from __future__ import annotations

import pytest

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
