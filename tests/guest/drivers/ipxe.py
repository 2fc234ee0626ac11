"""What is asked of iPXE, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable

from tests.guest.bare_machine import BareMachine, Prompt
from tests.guest.drivers.conftest import FILE, SERVER

PROMPT = rb"iPXE> "


def drive(
    guest: BareMachine,
    version: Callable[[str], None],
    *,
    driver: str = "using virtio-net on",
    size: int = len(FILE),
) -> None:
    """Stop it at its command line; have it fetch a file, close its interface, and do it again.

    After its reset iPXE writes FEATURES_OK alone.
    """
    found = guest.expect(rb"iPXE (\d[^\s\x1b]*).*\s.*(?s:.*?)Press Ctrl-B", timeout=120)
    version(found[1].decode())
    guest.console.send("\x02")
    guest.expect(PROMPT)
    prompt = Prompt(guest, PROMPT)
    assert driver in prompt.run("ifstat")
    for _ in range(2):
        assert "ok" in prompt.run("dhcp net0").split()
        assert "ok" in prompt.run(f"imgfetch --name fetched tftp://{SERVER}/file").split()
        assert f"fetched : {size} bytes" in prompt.run("imgstat")
        assert "RXE:0" in prompt.run("ifstat net0")
        prompt.run("imgfree")
        assert "Could not" not in prompt.run("ifclose net0")
        assert "Could not" not in prompt.run("ifopen net0")
