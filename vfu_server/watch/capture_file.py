"""Frames in a file for Wireshark and its like: pcapng, of which three kinds of blocks are enough.

The format is "PCAP Next Generation (pcapng) Capture File Format" of the IETF's opsawg.
"""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Final

from vfu_server.watch.bounded_file import BoundedFile

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_BYTE_ORDER: Final = 0x1A2B3C4D
_ETHERNET: Final = 1
"""LINKTYPE_ETHERNET."""

# Options.
_END, _NAME, _RESOLUTION, _FLAGS = 0, 2, 9, 2
_NANOSECONDS: Final = bytes([9])
_INBOUND, _OUTBOUND = 1, 2


class CaptureFile:
    """Takes frames of any number of functions, each an interface by its name.

    Raises OSError where the file cannot be made.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.file = BoundedFile(path, limit)
        self.frames = 0
        self._interfaces: dict[str, int] = {}
        with self.file.lock:
            self.file.put(_block(_SECTION, struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1)))

    def keep(self, function: str, frame: bytes, sent: bool) -> None:
        """Write a frame that the driver of a function sent or received."""
        stamp = time.time_ns()
        with self.file.lock:
            number = self._interfaces.get(function)
            if number is None:
                number = self._interfaces[function] = len(self._interfaces)
                options = _option(_NAME, function.encode()) + _option(_RESOLUTION, _NANOSECONDS)
                body = struct.pack("<HHI", _ETHERNET, 0, 0) + options + _option(_END, b"")
                self.file.put(_block(_INTERFACE, body))
            flags = struct.pack("<I", _OUTBOUND if sent else _INBOUND)
            head = struct.pack("<IIIII", number, stamp >> 32, stamp & 0xFFFFFFFF, len(frame), len(frame))
            body = head + _padded(frame) + _option(_FLAGS, flags) + _option(_END, b"")
            if self.file.put(_block(_PACKET, body)):
                self.frames += 1

    def close(self) -> None:
        """Have all of it in the file."""
        self.file.close()


def _block(kind: int, body: bytes) -> bytes:
    size = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + size + body + size


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
