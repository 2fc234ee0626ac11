"""A source of entropy, which Linux's virtio_rng drives. virtio 1.4, "Entropy Device"."""

from __future__ import annotations

import os

from pymodel.devices.own import OwnDevice, Request


class Entropy(OwnDevice):
    """Fills each buffer."""

    virtio_id = 4

    def request(self, request: Request) -> bytes:
        """As many random bytes as there is room for."""
        return os.urandom(request.room)
