"""Tells a service manager how the server is: the protocol of sd_notify(3), a datagram to NOTIFY_SOCKET."""

from __future__ import annotations

import os
import socket


def tell(state: str) -> None:
    """Send a state, as `READY=1`, to who started the server, if that wants to hear of it.

    A manager that cannot be reached is nobody's trouble: it will notice what it does not hear.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.sendto(state.encode(), address)
    except OSError:
        pass
