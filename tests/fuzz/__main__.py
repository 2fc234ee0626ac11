"""`python -m tests.fuzz TARGET --seconds N [--seed S] [--wire]`: attack the device, and tell what was found.

Targets: `admin` (commands of every shape), `context` (written contexts), `chains` and `file-chains` (a VF's
rings, with the disk in memory or in a file), `net` (a network VF's rings, commands and context), `parts` and
`parts-net` (device parts of a disk in a file, and of a network VF), `frames` (a network VF's rings where
frames pass without the interpreter). Without `--wire` they run against the model in this process, with it
against a server process; `frames` always has a server in this one. A finding is saved below build/fuzz;
`--replay FILE` plays it again.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from tests.fuzz import campaign
from tests.fuzz.admin import AdminTarget
from tests.fuzz.chains import ChainsTarget, FileChainsTarget
from tests.fuzz.context import ContextTarget
from tests.fuzz.frames import FramesTarget
from tests.fuzz.local import LocalWorld
from tests.fuzz.net import NetTarget
from tests.fuzz.pair import PairWorld
from tests.fuzz.parts import NetPartsTarget, PartsTarget
from tests.fuzz.remote import RemoteWorld
from tests.fuzz.world import Finding

TARGETS: Final[Mapping[str, campaign.MakeTarget]] = {
    "admin": AdminTarget,
    "context": ContextTarget,
    "chains": ChainsTarget,
    "file-chains": FileChainsTarget,
    "net": NetTarget,
    "frames": FramesTarget,
    "parts": PartsTarget,
    "parts-net": NetPartsTarget,
}
# What the functions are, where that is not a disk in memory.
DEVICES: Final = {
    "file-chains": FileChainsTarget.device,
    "net": NetTarget.device,
    "parts": PartsTarget.device,
    "parts-net": NetPartsTarget.device,
}
WORLDS: Final = {"model": LocalWorld, "wire": RemoteWorld}


def make_world(target: str, world: str) -> campaign.MakeWorld:
    """What makes the device that a target attacks."""
    if target == "frames":
        return PairWorld
    return partial(WORLDS[world], DEVICES.get(target, "blk"))


def fuzz(target: str, world: str, seconds: float, seed: int | None = None) -> campaign.Report:
    """One campaign. Raises `Finding`."""
    seed = random.randrange(1 << 32) if seed is None else seed
    return campaign.run(f"{target}-{world}", TARGETS[target], make_world(target, world), seconds, seed)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=float, default=60, help="how long (default: 60)")
    parser.add_argument("--seed", type=int, help="repeat a run (default: a new one)")
    parser.add_argument("--wire", action="store_true", help="attack a server process")
    parser.add_argument("--replay", type=Path, help="play a saved finding instead")
    options = parser.parse_args(arguments)
    logging.getLogger("virtio").propagate = False
    world = "wire" if options.wire else "model"
    if options.replay is not None:
        steps = [(name, values) for name, values in json.loads(options.replay.read_text())["steps"]]
        error = campaign.replay(TARGETS[options.target], make_world(options.target, world), steps)
        if error is not None:
            raise error
        print("nothing found")
        return 0
    try:
        print(fuzz(options.target, world, options.seconds, options.seed))
    except Finding as finding:
        print(finding)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
