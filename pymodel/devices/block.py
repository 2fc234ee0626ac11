"""The block device. virtio 1.4, "Block Device"."""

from __future__ import annotations

import logging
import struct

import numpy as np

from pymodel.devices.device import Notifier
from pymodel.devices.disk import Disk, RamDisk
from pymodel.errors import BrokenQueue, InvalidField
from pymodel.memory import Buffer, Bytes
from pymodel.migration.state import DeviceField
from pymodel.spec import block, context, virtio

# block.REQUEST: type, reserved, sector.
_REQUEST = struct.Struct("<IIQ")
_OFFSET = struct.Struct("<Q")

QUEUE_SIZE = 256


class BlockDevice:
    """A virtio block device on a disk. Requests complete in the order in which they are taken."""

    virtio_id = virtio.ID_BLOCK
    class_code = 0x018000  # mass storage controller, other
    config_length = block.CONFIG.itemsize
    waits = ()

    def __init__(self, disk: Disk, *, name: str, queues: int) -> None:
        self._disk = disk
        self._serial = f"pymodel-{name}".encode()[: block.ID_BYTES].ljust(block.ID_BYTES, b"\0")
        self._log = logging.getLogger(f"virtio.{name}")
        self.queue_sizes = (QUEUE_SIZE,) * queues
        offered = [block.F_SEG_MAX, block.F_BLK_SIZE, block.F_FLUSH]
        offered += [block.F_MQ] if queues > 1 else []
        offered += [block.F_RO] if disk.read_only else []
        self.features = sum(1 << bit for bit in offered)
        config = np.zeros((), block.CONFIG)
        config["capacity"] = disk.size // block.SECTOR
        # Header and status take a descriptor each.
        config["seg_max"] = QUEUE_SIZE - 2
        config["blk_size"] = block.SECTOR
        config["num_queues"] = queues
        self._config = config.tobytes()
        self._requests = {
            block.T_IN: self._read,
            block.T_OUT: self._write,
            block.T_FLUSH: self._flush,
            block.T_GET_ID: self._get_id,
        }

    def connect(self, notifier: Notifier) -> None:
        """Nothing happens by itself."""

    def acceptable(self, features: int) -> str | None:
        """No feature needs another one."""
        return None

    def delayable(self, queue: int) -> bool:
        """Each request."""
        return True

    def counters(self, queue: int | None = None) -> dict[str, int]:
        """The queues count requests and bytes."""
        return {}

    def negotiated(self, features: int) -> None:
        """No feature changes what a request does."""

    def reset(self) -> None:
        """Nothing of the device outlives a request."""

    def service(self) -> None:
        """Nothing is held."""

    def drop(self, queue: int) -> None:
        """Nothing is held."""

    def read_config(self, offset: int, length: int) -> bytes:
        """Read configuration; bytes past its end are 0."""
        return self._config[offset : offset + length].ljust(length, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver may write none of it (CONFIG_WCE is not offered)."""

    def accepts(self, queue: int) -> bool:
        """A request is done when `take` returns, so there is always room for one."""
        return True

    def take(self, buffer: Buffer) -> None:
        """Carry out one request. Raises `BrokenQueue` if it has no header or no room for a status.

        A failed request reports 0 bytes written, as the data before the status byte was not.
        """
        header = buffer.readable.read(0, _REQUEST.size)
        room = buffer.writable.length - 1
        if len(header) < _REQUEST.size or room < 0:
            raise BrokenQueue(f"a block request with {len(header)} bytes of header and no room for a status")
        kind, _, sector = _REQUEST.unpack(header)
        request = self._requests.get(kind)
        written = 0
        if request is None:
            status = block.S_UNSUPP
        else:
            try:
                status, written = request(buffer, sector * block.SECTOR, room)
            except OSError as error:
                self._log.error("request type %d at sector %d: %s", kind, sector, error)
                status = block.S_IOERR
        buffer.writable.put(room, bytes((status,)))
        buffer.complete(written + 1 if written == room else 0)

    def _fits(self, offset: int, length: int) -> bool:
        return length % block.SECTOR == 0 and offset + length <= self._disk.size

    def _read(self, buffer: Buffer, offset: int, room: int) -> tuple[int, int]:
        if not self._fits(offset, room):
            return block.S_IOERR, 0
        self._disk.read(offset, buffer.writable.views(0, room, write=True))
        return block.S_OK, room

    def _write(self, buffer: Buffer, offset: int, room: int) -> tuple[int, int]:
        length = buffer.readable.length - _REQUEST.size
        if self._disk.read_only or not self._fits(offset, length):
            return block.S_IOERR, 0
        self._disk.write(offset, buffer.readable.views(_REQUEST.size, length, write=False))
        return block.S_OK, 0

    def _flush(self, buffer: Buffer, offset: int, room: int) -> tuple[int, int]:
        self._disk.flush()
        return block.S_OK, 0

    def _get_id(self, buffer: Buffer, offset: int, room: int) -> tuple[int, int]:
        serial = np.frombuffer(self._serial, np.uint8)[:room]
        return block.S_OK, buffer.writable.write(0, [serial])

    def field_lengths(self) -> dict[int, int]:
        """Content travels for a disk in memory; a file is taken to be shared between hosts."""
        if isinstance(self._disk, RamDisk):
            return {context.BLK_EXTENT: context.LENGTH_VARIES, context.BLK_CHANGE: context.LENGTH_VARIES}
        return {}

    @property
    def content_size(self) -> int:
        """The size of a disk in memory."""
        return self._disk.size if isinstance(self._disk, RamDisk) else 0

    def mark(self) -> int:
        """See `Device`."""
        return self._disk.mark() if isinstance(self._disk, RamDisk) else 0

    def capture_fields(self, since: int | None) -> list[DeviceField]:
        """A disk in memory: all of it as extents, or what changed since a mark where that is smaller."""
        if not isinstance(self._disk, RamDisk):
            return []
        whole = _fields(context.BLK_EXTENT, self._disk.snapshot() or [(0, np.empty(0, np.uint8))])
        if since is None:
            return whole
        changes = _fields(context.BLK_CHANGE, self._disk.changes(since))
        return min(changes, whole, key=_stream_length)

    def check(self, config: bytes, fields: list[DeviceField]) -> None:
        """Raise `InvalidField` for another configuration, or for an extent that is not on the disk."""
        if config != self._config:
            capacity = int.from_bytes(config[:8], "little")
            raise InvalidField(
                f"the configuration differs: capacity {capacity}, here {self._disk.size // block.SECTOR}"
            )
        for field in fields:
            if not isinstance(self._disk, RamDisk):
                raise InvalidField("disk content, but the disk here is a file")
            if field.length < _OFFSET.size:
                raise InvalidField(f"an extent of {field.length} bytes has no offset")
            self._disk.check(*self._extent(field))

    def restore(self, config: bytes, fields: list[DeviceField]) -> None:
        """Apply extents and changes in order; any extent stands for a whole disk."""
        if not isinstance(self._disk, RamDisk):
            return
        if any(field.type == context.BLK_EXTENT for field in fields):
            self._disk.clear()
        for field in fields:
            offset, _ = self._extent(field)
            skip = _OFFSET.size
            for part in field.value:
                data = part[skip:]
                skip = max(0, skip - len(part))
                if len(data):
                    self._disk.adopt(offset, data)
                offset += len(data)

    @staticmethod
    def _extent(field: DeviceField) -> tuple[int, int]:
        """Offset and length of a BLK_EXTENT or BLK_CHANGE."""
        head = b""
        for part in field.value:
            head += part[: _OFFSET.size - len(head)].tobytes()
            if len(head) == _OFFSET.size:
                break
        return _OFFSET.unpack(head)[0], field.length - _OFFSET.size


def _fields(kind: int, ranges: list[tuple[int, Bytes]]) -> list[DeviceField]:
    return [
        DeviceField(kind, [np.frombuffer(_OFFSET.pack(offset), np.uint8), data]) for offset, data in ranges
    ]


def _stream_length(fields: list[DeviceField]) -> int:
    """Bytes of a context that `fields` take."""
    return sum(context.FIELD.itemsize + field.length for field in fields)
