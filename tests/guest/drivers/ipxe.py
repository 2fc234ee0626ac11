"""What is asked of iPXE, wherever it runs."""

from __future__ import annotations

from tests.guest.bare_machine import BareMachine
from tests.guest.drivers.conftest import FILE, SERVER

# Not typed: a BIOS has room for 15 keys. SMBIOS, "BIOS Information (Type 0)": the string at offset 5.
SCRIPT = f"""\
#!ipxe
echo firmware ${{smbios/0.5.0:string}}
ifstat
set round:int32 0
:again
dhcp net0 || goto failed
imgfetch --name fetched tftp://{SERVER}/file || goto failed
imgstat
ifstat net0
imgfree
ifclose net0
ifopen net0 || goto failed
inc round
iseq ${{round}} 2 || goto again
echo script: done
exit
:failed
echo script: failed
"""
"""It fetches a file, closes its interface, and does it again; after the reset it writes FEATURES_OK alone."""


def watch(guest: BareMachine, *, driver: str, size: int = len(FILE)) -> dict[str, str]:
    """Wait for the end of the script; it went well. The versions of iPXE and of the firmware below it.

    `driver` is what it is to say of its interface, `size` that of the file.
    """
    version = guest.expect(rb"iPXE (\d[^\s\x1b]*)[\s\x1b]", timeout=120)[1].decode()
    said = guest.expect(rb"(?s)(.*)script: (done|failed)", timeout=120)
    text = said[1].decode(errors="replace")
    assert said[2] == b"done", text
    assert f"using {driver} on" in text
    assert text.count(f"fetched : {size} bytes") == 2
    # No frame that came was in error.
    assert text.count("RXE:0") == 3
    return {"iPXE": version, "firmware": text.partition("firmware ")[2].split()[0]}
