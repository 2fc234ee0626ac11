"""The fast side of a stream socket."""

from typing import Self, final

from pymodel.devices.net.channel import Channel
from vfu_server.datapath.frame_stream import FrameStream
from vfu_server.vfio.turn_lock import TurnLock

@final
class StreamChannel(Channel):
    """Reads and writes `fd`, the peer's, while the port has it there: with `lock`, which the port holds to
    change that, and whatever it does with `stream`.

    The rest of a frame that went out in part is kept in the stream; `news`, an eventfd, tells of that, and
    of a peer that takes nothing. Where that is over the port writes to `room`, an eventfd of its own.
    """

    def __new__(cls, lock: TurnLock, stream: FrameStream, news: int, room: int) -> Self: ...
    def __init__(self, lock: TurnLock, stream: FrameStream, news: int, room: int) -> None: ...
