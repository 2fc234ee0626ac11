"""A VF is reset, given up or closed in the midst of a migration."""

from __future__ import annotations

import pytest

from tests.guest.parts.test_moves import FORMATS
from tests.guest.parts.vfio_guest import STREAM, VfioGuest

STATES = ("running", "pre_copy", "pre_copy_p2p", "running_p2p", "stop", "stop_copy", "resuming")
LOADS = pytest.mark.parametrize("load", ["blk", "net"])


@FORMATS
@LOADS
def test_every_state(vfio: VfioGuest, load: str, packed: bool) -> None:
    """Reset in any state it runs and a driver can begin; a migration that is given up leaves no trace."""
    steps = []
    for state in STATES:
        steps += ["io=40", "fill", f"state={state}", "fill", "reset", "io=40"]
        steps += ["fill", "note", f"state={state}", "fill", "state=running", "drain", "same"]
    # What was loaded and did not take effect is forgotten.
    steps += ["state=stop_copy", f"save={STREAM}", "state=running", "io=40"]
    steps += ["state=resuming", f"load={STREAM}", "reset", "io=40"]
    steps += ["fill", "note", "state=stop", "state=running", "drain", "same", "io=40"]
    # The last one to close it does so here.
    steps += ["drain", "check" if load == "blk" else "probe", "state=stop_copy"]
    report = vfio.run(load, *steps, options="--packed" if packed else "", functions=1)
    assert not report.refusals
    assert [step["state"] for step in report.step("state")][: 2 * len(STATES)] == [
        name for state in STATES for name in (state, state, "running")
    ][: 2 * len(STATES)]
    assert {step["state"] for step in report.step("reset")} == {"running"}
    assert not vfio.run(load, "io=40", "drain", functions=1).refusals


def test_killed(vfio: VfioGuest) -> None:
    """Who moves a VF is killed on the way, and leaves VFs that the next one can use."""
    server = vfio.disks[0].server
    for stops in (1, 4):
        job = vfio.guest.start(vfio.command("blk", "moves=1000", functions=2))
        # Not by the log, which leaves out what it has had too often.
        for mode in ("stop", "active") * stops:
            while server.ask("query-functions", function="vf1")[0]["mode"] != mode:
                pass
        job.stop("KILL")
        job.wait()
        assert not vfio.run("blk", "io=40", "jump=1", "io=40", "check", functions=2).refusals
