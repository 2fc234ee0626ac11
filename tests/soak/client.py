"""`python -m tests.soak.client FOLDER [--once]`: a client of VF 3 and the PF, beside a guest on another VF.

Writes to the disk and reads it back, stops the VF, reads its context, writes it back, and sets it going: for
ever, or once. Whatever state one that was killed left the VF in, the next one begins with.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from pymodel.spec import context
from vfu_client.drivers.block import BlockDriver
from vfu_client.owner.owner import OwnerDriver

VF = 3
SECTORS = 64


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--once", action="store_true")
    options = parser.parse_args()
    turn(options.folder)
    while not options.once:
        turn(options.folder)


def turn(folder: Path) -> None:
    """Both functions, from attaching to them until they are let go."""
    with OwnerDriver.open(folder / "pf.sock", timeout=30) as owner:
        if owner.mode_get(VF) == context.MODE_FREEZE:
            owner.context_discard(VF)
            owner.mode_set(VF, context.MODE_STOP)
        owner.mode_set(VF, context.MODE_ACTIVE)
        with BlockDriver.open(folder / f"vf{VF}.sock", timeout=30) as disk:
            data = os.urandom(SECTORS * 512)
            disk.write(0, data)
            owner.mode_set(VF, context.MODE_STOP)
            owner.mode_set(VF, context.MODE_FREEZE)
            owner.context_write(VF, list(owner.context_read(VF)))
            owner.mode_set(VF, context.MODE_STOP)
            owner.mode_set(VF, context.MODE_ACTIVE)
            if bytes(disk.read(0, SECTORS)) != data:
                raise SystemExit("what was read back is not what was written")


if __name__ == "__main__":
    main()
