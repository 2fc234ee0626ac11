"""Messages between `vfu-migrate` and its agent on another host, over any byte stream.

    bytes 0-3  length of the text, big-endian      then the text: one JSON object
    bytes 4-7  number of blobs                     then the blobs, as they are
    8 bytes for each blob: its length

Bytes anywhere in a message travel as blobs, and arrive as numpy arrays of uint8. A side that has heard
nothing for LEASE_SECONDS, not even a part of a message, takes the connection for cut; each therefore sends a
beat now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from vfu_client.vfio.memory import Bytes

VERSION: Final = 1
"""Of the messages and what they ask for: both sides have the same."""

BEAT_SECONDS: Final = 2.0
LEASE_SECONDS: Final = 10.0

TEXT_MAX: Final = 1 << 20
BLOBS_MAX: Final = 1 << 16
PIECE: Final = 1 << 20

_HEAD: Final = struct.Struct(">II")
_BLOB: Final = struct.Struct(">Q")


class CutError(Exception):
    """The connection is cut; the message says how that was noticed."""


class Messages:
    """One end of a connection. `receive` by one task, `send` by any."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._sending = asyncio.Lock()
        self._under_way: set[asyncio.Task[None]] = set()

    async def send(self, message: Mapping[str, Any], progress: Callable[[int], None] | None = None) -> None:
        """Send a message. `progress` hears how many bytes of its blobs are gone. Raises CutError.

        Where this is cancelled the message goes out all the same: half of one would be the end of all.
        """
        task = asyncio.ensure_future(self._send(message, progress))
        self._under_way.add(task)
        task.add_done_callback(self._sent)
        await asyncio.shield(task)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits has it too

    async def _send(self, message: Mapping[str, Any], progress: Callable[[int], None] | None) -> None:
        blobs: list[Bytes] = []

        def put(value: object) -> dict[str, int]:
            blobs.append(np.frombuffer(value, np.uint8))  # type: ignore[call-overload]  # TypeError for others
            return {"blob": len(blobs) - 1}

        text = json.dumps(message, default=put).encode()
        head = [_HEAD.pack(len(text), len(blobs)), *(_BLOB.pack(len(blob)) for blob in blobs), text]
        try:
            async with self._sending:
                self._writer.write(b"".join(head))
                done = 0
                for blob in blobs:
                    for start in range(0, len(blob), PIECE):
                        self._writer.write(blob[start : start + PIECE].data)
                        await self._writer.drain()
                        done += min(PIECE, len(blob) - start)
                        if progress is not None:
                            progress(done)
                await self._writer.drain()
        except (OSError, RuntimeError) as error:
            raise CutError(f"the connection to the other side ended ({error})") from error

    async def receive(self) -> dict[str, Any]:
        """The next message that is no beat. Raises CutError, also for what is no message."""
        while True:
            size, count = _HEAD.unpack(await self._take(_HEAD.size))
            if size > TEXT_MAX or count > BLOBS_MAX:
                raise CutError("what came is no message of this program")
            lengths = [length for (length,) in _BLOB.iter_unpack(await self._take(_BLOB.size * count))]
            text = await self._take(size)
            blobs = [await self._blob(length) for length in lengths]

            def take(found: dict[str, Any], blobs: list[Bytes] = blobs) -> Any:
                return blobs[found["blob"]] if found.keys() == {"blob"} else found

            try:
                message = json.loads(text, object_hook=take)
            except (ValueError, LookupError, TypeError, RecursionError) as error:
                raise CutError(f"what came is no message of this program: {error}") from error
            if not isinstance(message, dict):
                raise CutError("what came is no message of this program")
            if message:
                return message

    async def beat(self) -> None:
        """Show that this side lives, until this is cancelled or the connection is cut."""
        with contextlib.suppress(CutError):
            while True:
                await self.send({})
                await asyncio.sleep(BEAT_SECONDS)

    def close(self) -> None:
        """Hang up."""
        self._writer.close()

    async def _take(self, length: int) -> bytes:
        found = bytearray()
        while len(found) < length:
            found += await self._some(length - len(found))
        return bytes(found)

    async def _blob(self, length: int) -> Bytes:
        try:
            blob = np.empty(length, np.uint8)
        except (MemoryError, ValueError) as error:
            raise CutError(f"there is no memory for {length} bytes that the other side sends") from error
        done = 0
        while done < length:
            piece = await self._some(min(length - done, PIECE))
            blob[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)
        return blob

    async def _some(self, most: int) -> bytes:
        try:
            async with asyncio.timeout(LEASE_SECONDS):
                piece = await self._reader.read(most)
        except TimeoutError:
            raise CutError(f"nothing was heard of the other side for {LEASE_SECONDS:g} s") from None
        except OSError as error:
            raise CutError(f"the connection to the other side ended ({error})") from error
        if not piece:
            raise CutError("the other side hung up")
        return piece
