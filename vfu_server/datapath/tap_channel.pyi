"""The fast side of a tap interface."""

from typing import final

from pymodel.devices.net.channel import Channel

@final
class TapChannel(Channel):
    """Reads and writes `fd`, an interface with headers of 12 bytes. It is its port's to close."""
