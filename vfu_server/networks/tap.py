"""A tap interface of the host as a port. Its frames have a virtio header: the kernel does the offloads."""

from __future__ import annotations

import errno
import fcntl
import getpass
import logging
import os
import select
import struct
from collections.abc import Sequence
from typing import Final

import numpy as np

from pymodel.devices.net.channel import Channel
from pymodel.devices.net.filter import Filter
from pymodel.devices.net.port import FRAME_MAX
from pymodel.memory import Bytes
from pymodel.spec import net
from vfu_server.datapath import COMPILED, TapChannel
from vfu_server.networks.frame_port import HEADER, FramePort, write
from vfu_server.networks.links import IFREQ, LinkWatch

NAME_MAX: Final = 15
"""Bytes in the name of an interface (IFNAMSIZ less the NUL)."""

STALE_MAX: Final = 2000
"""Frames that may be waiting from before: twice what Linux queues for a tap unless it is told otherwise."""

# linux/if_tun.h
_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8
_TUNSETVNETLE: Final = 0x400454DC
_TUN: Final = "/dev/net/tun"
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_TUN_F_CSUM: Final = 0x01
_TUN_F_USO: Final = 0x20 | 0x40

_LEAST: Final = 1 << net.F_CSUM | 1 << net.F_GUEST_CSUM
_TSO: Final = sum(
    1 << bit
    for bit in (
        net.F_HOST_TSO4,
        net.F_HOST_TSO6,
        net.F_HOST_ECN,
        net.F_GUEST_TSO4,
        net.F_GUEST_TSO6,
        net.F_GUEST_ECN,
    )
)
_GUEST_USO: Final = 1 << net.F_GUEST_USO4 | 1 << net.F_GUEST_USO6
_USO: Final = _GUEST_USO | 1 << net.F_HOST_USO

# What the driver takes, and what the kernel may then leave to it. They need the first.
_OFFLOADS: Final = (
    (1 << net.F_GUEST_CSUM, _TUN_F_CSUM),
    (1 << net.F_GUEST_TSO4, 0x02),
    (1 << net.F_GUEST_TSO6, 0x04),
    (1 << net.F_GUEST_ECN, 0x08),
)

_NO_MODULE: Final = ". Load the module (`modprobe tun`), or give the container the device"
_NO_RIGHT: Final = f" (see `ls -l {_TUN}`). An administrator lets everybody open it: `chmod 666 {_TUN}`"
_WITHOUT_TUN: Final = {
    errno.ENOENT: _NO_MODULE,
    errno.ENODEV: _NO_MODULE,
    errno.ENXIO: _NO_MODULE,
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
}
"""What to do where the device can't be opened."""

log: Final = logging.getLogger("virtio.net")


class TapPort(FramePort):
    """A tap interface of the host: one that exists and is the user's, or a new one that goes with this port.

    One queue: a function's queues share it. Raises OSError, its text says what to do.
    """

    def __init__(self, name: str, links: LinkWatch) -> None:
        super().__init__()
        self.name = name
        self._lost = False
        self._wanted = 0
        self._fd = _open(name)
        try:
            self.offloads = _LEAST | _TSO | (_USO if self._offload(_TUN_F_CSUM | _TUN_F_USO) else 0)
            self._offload(0)
            self._links = links
            self.link_up = links.watch(name, self._link_changed)
        except OSError:
            os.close(self._fd)
            raise
        if COMPILED:
            self._channel = TapChannel(self._fd)
        # What one read fills; the frame is then copied at its length.
        self._buffer = np.empty(FRAME_MAX, np.uint8)

    def configure(self, features: int, receive: Filter | None) -> None:
        """See `Port`. From now on the kernel does for the driver what that did not agree to do."""
        wanted = 0
        if features & 1 << net.F_GUEST_CSUM:
            wanted = sum(flag for bit, flag in _OFFLOADS if features & bit)
            if features & self.offloads & _GUEST_USO == _GUEST_USO:
                wanted |= _TUN_F_USO
        if wanted != self._wanted and not self._lost:
            if not self._offload(wanted):
                log.error("tap %s does not take the offloads %#x", self.name, wanted)
            self._wanted = wanted
            self._drain()  # of frames for another driver, which this one may not take as they are
        super().configure(features, receive)

    def at_once(self) -> Channel | None:
        """See `Port`. Not while room is waited for: that is an event of the one descriptor there is."""
        return None if self._refused else super().at_once()

    def close(self) -> None:
        """Close the interface; it goes if this port made it."""
        self._links.forget(self.name)
        self._lost = True
        self._channel.fd = -1
        os.close(self._fd)

    def _offload(self, flags: int) -> bool:
        try:
            fcntl.ioctl(self._fd, _TUNSETOFFLOAD, flags)
        except OSError:
            return False
        return True

    def _link_changed(self, up: bool) -> None:
        self.link_up = up and not self._lost  # another one may have the name now
        self._wake()

    def _poll(self, events: int, refused: bool) -> Sequence[tuple[int, int]]:
        events |= select.POLLOUT if refused else 0
        return ((self._fd, events),) if events and not self._lost else ()

    def _write(self, frame: Sequence[Bytes]) -> bool | None:
        try:
            write(self._fd, frame)
        except BlockingIOError:
            return None
        except OSError as error:
            # EIO is an interface that is down, EINVAL a header that the kernel does not believe.
            self._failed(error)
            return False
        return True

    def _read(self) -> Bytes | None:
        if self._lost:
            return None
        try:
            count = os.readv(self._fd, [self._buffer.data])
        except BlockingIOError:
            return None
        except OSError as error:
            self._failed(error)
            return None
        return self._buffer[:count].copy()

    def _drain(self) -> None:
        for _ in range(STALE_MAX):
            if self._read() is None:
                return
            self._channel.dropped_receiving += 1

    def _failed(self, error: OSError) -> None:
        """Let go of an interface that was deleted under us: its descriptor would be an event for ever."""
        if error.errno == errno.EBADFD and not self._lost:
            log.error("tap %s is gone; restart vfu-server when it is there again", self.name)
            self._lost = True
            self._channel.fd = -1
            self.link_up = False


def check_name(name: str) -> None:
    """Raise ValueError for what no interface is called."""
    odd = any(c in "%/:" or c.isspace() for c in name) or name in {".", ".."}
    if odd or not 0 < len(os.fsencode(name)) <= NAME_MAX:
        raise ValueError(f"{name!r} is no name of an interface: up to {NAME_MAX} bytes, no /, :, % or space")


def _open(name: str) -> int:
    try:
        check_name(name)
    except ValueError as error:
        raise OSError(str(error)) from None
    try:
        fd = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        what = _WITHOUT_TUN.get(error.errno or 0, "")
        raise OSError(f"tap {name}: {_TUN}: {error.strerror}{what}") from error
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(fd, _TUNSETIFF, IFREQ.pack(name.encode(), flags))
        fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", HEADER))
        fcntl.ioctl(fd, _TUNSETVNETLE, struct.pack("i", 1))
    except OSError as error:
        os.close(fd)
        raise OSError(f"tap {name}: {_reason(error, name)}") from error
    return fd


def _reason(error: OSError, name: str) -> str:
    """What to do about an interface that can't be had."""
    if error.errno == errno.EPERM:
        return (
            f"it is not {getpass.getuser()}'s. An administrator makes it so:\n"
            f"  ip tuntap add dev {name} mode tap user {getpass.getuser()} && ip link set {name} up"
        )
    if error.errno == errno.EBUSY:
        return "another program has it"
    if error.errno == errno.EINVAL:
        return "it is no tap interface with one queue (`ip -d tuntap` shows what there is)"
    return str(error.strerror)
