"""The way of a request without the interpreter.

All of it is compiled against the compiled model. Without that (`make ext COMPILED=no`) there is none of it,
and functions work as well, and slower. `frame_stream` is there for both.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING or importlib.util.find_spec("vfu_server.datapath.loop") is not None:
    from vfu_server.datapath.datagram_channel import DatagramChannel as DatagramChannel
    from vfu_server.datapath.direct_memory import DirectMemory as DirectMemory
    from vfu_server.datapath.file_store import FileStore as FileStore
    from vfu_server.datapath.loop import Loop as Loop
    from vfu_server.datapath.stream_channel import StreamChannel as StreamChannel
    from vfu_server.datapath.tap_channel import TapChannel as TapChannel

    COMPILED = True
else:
    DatagramChannel = DirectMemory = FileStore = Loop = StreamChannel = TapChannel = None
    COMPILED = False
