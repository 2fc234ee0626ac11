"""What the guest does all the time: writes to its disk, and talks TCP. Both programs check what they get."""

from __future__ import annotations

import json
import time
from typing import Any

from vfu_demo.gaps import GAP_MS, Clock, Gap, gaps_in
from vfu_demo.network import (
    GUEST_ADDRESS,
    PEER_ADDRESS,
    PORT,
    REPORT_MS,
    Figures,
    Network,
    done_figures,
    last_figures,
)
from vfu_demo.show import LostError
from vfu_images.job import Job
from vfu_images.machine import Machine

SECTORS_STEP = 7_000
BYTES_STEP = 512 << 10
"""What is to be written, and to arrive each way, before and after each move."""

# So little that an emulated guest and its servers have time to spare on two processors: what pauses then
# pauses for the move.
RATE_KIB = 256
IOVERIFY = (
    "ioverify --device /dev/vda --length 32M --depth 2 --rest-us 5000"
    f" --report-ms {REPORT_MS} --gap-ms {GAP_MS}"
)
NETVERIFY = (
    f"netverify send --address {PEER_ADDRESS} --port {PORT} --rate {RATE_KIB}"
    f" --report-ms {REPORT_MS} --gap-ms {GAP_MS}"
)
PATIENCE_SECONDS = 60.0


class Traffic:
    """The disk and the TCP of a guest, from when this is made until `finish_tcp` and `finish_disk`."""

    def __init__(self, guest: Machine, lan: Network) -> None:
        self._guest = guest
        self._lan = lan
        lan.listen(RATE_KIB)
        guest.check(
            f"/bin/ip address flush dev eth0; /bin/ip address add {GUEST_ADDRESS}/24 dev eth0;"
            " /bin/ip link set eth0 up"
        )
        self._disk = guest.start(IOVERIFY)
        self._tcp = guest.start(NETVERIFY)

    def moved(self, guest: Machine) -> None:
        """The guest is in that machine now."""
        self._guest = guest
        self._disk, self._tcp = (job.moved(guest.check) for job in (self._disk, self._tcp))

    def await_more(self) -> None:
        """Wait until some more went over disk and network. Raises LostError when it does not."""
        before = self._passed()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while any(
            now < then + step
            for now, then, step in zip(
                self._passed(), before, (SECTORS_STEP, BYTES_STEP, BYTES_STEP), strict=True
            )
        ):
            if time.monotonic() > deadline:
                said = "\n".join(map(self._figures, (self._disk, self._tcp)))
                raise LostError(f"the guest's traffic stands still:\n{said}")
            time.sleep(0.1)

    def _passed(self) -> tuple[int, int, int]:
        """Sectors written, bytes that the guest received, bytes that the peer received."""
        disk = self._figures(self._disk)
        written = int(json.loads(disk).get("sectors_written", 0)) if disk.endswith("}") else 0
        guest = last_figures(self._figures(self._tcp) + "\n")
        return written, int(guest.get("bytes", 0)), int(self._lan.figures().get("bytes", 0))

    def _figures(self, job: Job) -> str:
        """The last line of figures."""
        return self._guest.check(f"grep -v from {job.folder}/output | tail -n 1").strip()

    def clock(self) -> Clock:
        """The guest's clock."""
        return Clock.of(self._guest.check)

    def gaps(self, clock: Clock, stop: Gap) -> dict[str, list[Gap]]:
        """Who waited when. The guest stood still for `stop` since `clock` was taken, and at no other time."""
        return {
            "disk": clock.around(self._gaps(self._disk), stop),
            "TCP to guest": clock.around(self._gaps(self._tcp), stop),
            "TCP from guest": self._lan.gaps(),
        }

    def _gaps(self, job: Job) -> list[Gap]:
        return gaps_in(self._guest.check(f"grep from {job.folder}/output || true"))

    # -- the end

    def finish_tcp(self) -> tuple[Figures, Figures]:
        """End the stream; the guest's figures, and the peer's. Raises NetworkError, TimeoutError."""
        there = self._lan.finish()
        return done_figures(self._tcp.wait().output), there

    def finish_disk(self) -> dict[str, Any]:
        """End the writing, and have all read back; what was found. Raises LostError."""
        self._disk.stop()
        _, output = self._disk.wait()
        last = output.strip().splitlines()[-1]
        if '"event":"done"' not in last:
            raise LostError(f"the guest's check did not end as it should:\n{output[-2000:]}")
        found: dict[str, Any] = json.loads(last)
        return found
