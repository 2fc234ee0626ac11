"""A device that exists nowhere: it adds up what its driver sends, and tells when that is a lot."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np

from pymodel.devices.own import OwnDevice, Request


class Counter(OwnDevice):
    """A request brings a number of 64 bits, and gets the sum of all so far.

    The driver sets `limit`; `alarm` is 1, and the driver is told, once the sum is beyond that. With SATURATE
    the sum goes no further.
    """

    virtio_id = 63
    feature_bits = MappingProxyType({"SATURATE": 0})
    config_layout = np.dtype([("limit", "<u8"), ("alarm", "u1")])
    writable = frozenset({"limit"})
    state_layout = np.dtype([("sum", "<u8")])

    def begin(self) -> None:
        """A limit that is never reached."""
        self.config["limit"] = (1 << 64) - 1

    def request(self, request: Request) -> bytes:
        """Add a number."""
        limit = int(self.config["limit"])
        total = int(self.state["sum"]) + int.from_bytes(request.data[:8], "little")
        if total > limit and not self.config["alarm"]:
            self.config["alarm"] = 1
            self.config_changed()
        self.state["sum"] = min(total, limit if self.has("SATURATE") else (1 << 64) - 1)
        return int(self.state["sum"]).to_bytes(8, "little")

    def check_state(self, config: np.void, state: np.void) -> None:
        """An alarm is on or off."""
        if config["alarm"] > 1:
            raise ValueError(f"alarm is {config['alarm']}")
