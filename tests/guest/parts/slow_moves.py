"""A hundred moves on end of each kind, which takes a minute; run by hand."""

from __future__ import annotations

import pytest

from tests.guest.parts.test_moves import FORMATS
from tests.guest.parts.test_resets import LOADS
from tests.guest.parts.vfio_guest import VfioGuest


@FORMATS
@LOADS
@pytest.mark.timeout(900)
def test_hundred_moves(vfio: VfioGuest, load: str, packed: bool) -> None:
    """All arrives, whichever it is."""
    options = f"{'--packed ' if packed else ''}{'--renew' if load == 'net' else ''}"
    check = "check" if load == "blk" else "probe"
    report = vfio.run(load, "moves=100", "drain", check, options=options)
    assert not report.refusals
    assert report.done["moves"] == 100
