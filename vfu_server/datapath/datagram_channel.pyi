"""The fast side of a datagram socket."""

from typing import Self, final

from pymodel.devices.net.channel import Channel

@final
class DatagramChannel(Channel):
    """Receives at `fd`, which is its port's to close, and sends from there to the socket that is called
    `remote`. Raises ValueError for a name that no socket has.
    """

    def __new__(cls, fd: int, remote: bytes) -> Self: ...
    def __init__(self, fd: int, remote: bytes) -> None: ...
