"""Rules about frames: what drivers send, and the buffers that they receive into.

virtio 1.4, "Network Device".
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import ClassVar, Final

from pymodel.devices.net import header as net_header
from pymodel.devices.net.device import NetDevice
from pymodel.memory import Buffer
from pymodel.pci.function import Function
from pymodel.rules.breaches import Breaches
from pymodel.rules.rule import HINT, MUST, MUST_NOT, SHOULD, SHOULD_NOT, Rule
from pymodel.rules.topic import Topic
from pymodel.spec import net, virtio
from pymodel.watch.access import Access, Piece

_TRANSMISSION: Final = "Network Device / Device Operation / Packet Transmission"
_LAYOUT: Final = "Network Device / Device configuration layout"
_BUFFERS: Final = "Network Device / Device Operation / Setting Up Receive Buffers"
_STEERING: Final = "Network Device / Control Virtqueue / Automatic receive steering in multiqueue mode"
_DROPS: Final = "drops the frame"

# spec.net.HEADER: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers.
_HEADER: Final = struct.Struct("<BBHHHHH")
_RSC_INFO: Final = 4
_UDP_TUNNEL_CSUM: Final = 8
_KNOWN_FLAGS: Final = net.HDR_F_NEEDS_CSUM | net.HDR_F_DATA_VALID | _RSC_INFO | _UDP_TUNNEL_CSUM
_TUNNEL_IPV4, _TUNNEL_IPV6 = 0x20, 0x40
_TUNNELS: Final = _TUNNEL_IPV4 | _TUNNEL_IPV6
_TUNNEL_GSO, _TUNNEL_GSO_CSUM = 46, 47

_GSO: Final[Mapping[int, tuple[str, str, int]]] = {
    net.GSO_TCPV4: ("NET-05", "TCPV4", net.F_HOST_TSO4),
    net.GSO_TCPV6: ("NET-06", "TCPV6", net.F_HOST_TSO6),
    net.GSO_UDP: ("NET-07", "UDP", net.F_HOST_UFO),
    net.GSO_UDP_L4: ("NET-08", "UDP_L4", net.F_HOST_USO),
}
"""By gso_type: the rule, its name, and the feature that it needs."""

_ANY_GSO: Final = (
    1 << net.F_GUEST_TSO4
    | 1 << net.F_GUEST_TSO6
    | 1 << net.F_GUEST_UFO
    | 1 << net.F_GUEST_USO4
    | 1 << net.F_GUEST_USO6
)
_SHORT, _LONG = 1526, 65601
"""Bytes of a receive buffer without MRG_RXBUF, without and with segments; a hash report takes 8 more."""


class Networks(Topic):
    """Holds each buffer of a transmit or receive queue against the rules."""

    RULES: ClassVar[Mapping[str, Rule]] = {
        "NET-01": Rule(
            MUST,
            _TRANSMISSION,
            "put the whole header in front of a frame, of the same size as in receive buffers",
            "a buffer that is shorter than a header",
            _DROPS,
        ),
        "NET-02": Rule(
            MUST,
            _TRANSMISSION,
            "set num_buffers to 0 in what it sends",
            "another number",
            "ignores it",
        ),
        "NET-03": Rule(
            MUST,
            _TRANSMISSION,
            "set flags to 0 without CSUM",
            "other flags",
            _DROPS,
        ),
        "NET-04": Rule(
            MUST,
            _TRANSMISSION,
            "set gso_type to NONE without one of HOST_TSO4, TSO6, USO and UFO",
            "another type, and none of those negotiated",
            _DROPS,
        ),
        "NET-05": Rule(
            MUST_NOT,
            _TRANSMISSION,
            "set gso_type to TCPV4 without HOST_TSO4",
            "such a header",
            _DROPS,
        ),
        "NET-06": Rule(
            MUST_NOT,
            _TRANSMISSION,
            "set gso_type to TCPV6 without HOST_TSO6",
            "such a header",
            _DROPS,
        ),
        "NET-07": Rule(
            MUST_NOT,
            _TRANSMISSION,
            "set gso_type to UDP without HOST_UFO",
            "such a header",
            _DROPS,
        ),
        "NET-08": Rule(
            MUST_NOT,
            _TRANSMISSION,
            "set gso_type to UDP_L4 without HOST_USO",
            "such a header",
            _DROPS,
        ),
        "NET-09": Rule(
            SHOULD_NOT,
            _TRANSMISSION,
            "send segments with ECN without HOST_ECN",
            "the ECN bit in gso_type",
            _DROPS,
        ),
        "NET-10": Rule(
            MUST_NOT,
            _TRANSMISSION,
            "set a UDP_TUNNEL bit in gso_type without HOST_UDP_TUNNEL_GSO",
            "such a bit",
            _DROPS,
        ),
        "NET-11": Rule(
            MUST_NOT,
            _TRANSMISSION,
            "set both UDP_TUNNEL bits in gso_type, or one with UDP",
            "both bits, or one with type UDP",
            _DROPS,
        ),
        "NET-12": Rule(
            MUST_NOT,
            _TRANSMISSION,
            "set UDP_TUNNEL_CSUM in flags without HOST_UDP_TUNNEL_GSO_CSUM",
            "the flag",
            _DROPS,
        ),
        "NET-13": Rule(
            MUST_NOT,
            _TRANSMISSION,
            "set DATA_VALID or RSC_INFO in what it sends",
            "one of the flags",
            _DROPS,
        ),
        "NET-14": Rule(
            MUST,
            _TRANSMISSION,
            "set csum_start and csum_offset to a checksum in the frame with NEEDS_CSUM",
            "a checksum that ends behind the frame",
            _DROPS,
        ),
        "NET-15": Rule(
            MUST,
            _TRANSMISSION,
            "set NEEDS_CSUM with a gso_type",
            "a type other than NONE, and the flag is clear",
            _DROPS,
        ),
        "NET-16": Rule(
            MUST,
            _TRANSMISSION,
            "set gso_size with a gso_type",
            "a type other than NONE, and 0",
            _DROPS,
        ),
        "NET-17": Rule(
            SHOULD,
            _TRANSMISSION,
            "set hdr_len to the length of the headers at least with a gso_type",
            "less than up to the transport header, which csum_start tells",
            "finds out the length itself",
        ),
        "NET-18": Rule(
            HINT,
            _TRANSMISSION,
            "sets flags or a gso_type that there are not",
            "such bits",
            "drops the frame, or ignores the flags",
        ),
        "NET-19": Rule(
            HINT,
            _TRANSMISSION,
            "sends a buffer with a part to write",
            "device-writable descriptors in a transmit queue",
            "ignores that part",
        ),
        "NET-20": Rule(
            MUST_NOT,
            _LAYOUT,
            "send frames longer than mtu with MTU",
            "a frame that is not to be segmented, and longer with its Ethernet header",
            "sends it all the same",
        ),
        "NET-21": Rule(
            SHOULD,
            _LAYOUT,
            "accept VIRTIO_NET_F_MAC if it is offered",
            "FEATURES_OK without it",
            "does without it",
        ),
        "NET-22": Rule(
            SHOULD,
            _LAYOUT,
            "accept VIRTIO_NET_F_MTU if it is offered",
            "FEATURES_OK without it",
            "does without it",
        ),
        "NET-23": Rule(
            SHOULD_NOT,
            _LAYOUT,
            "accept HASH_REPORT or CTRL_RX_EXTRA without CTRL_VQ",
            "such features",
            "does without it",
        ),
        "NET-24": Rule(
            MUST,
            _STEERING,
            "send on the first transmit queue only, before VQ_PAIRS_SET",
            "a notification of another one",
            "sends it",
        ),
        "NET-25": Rule(
            MUST_NOT,
            _STEERING,
            "send on transmit queues that VQ_PAIRS_SET left out",
            "a notification of such a queue",
            "sends it",
        ),
        "NET-26": Rule(
            SHOULD,
            _BUFFERS,
            "receive into buffers of 1526 bytes without MRG_RXBUF, of 65601 where frames may be larger",
            "a shorter buffer",
            "drops frames that it has no room for",
        ),
        "NET-27": Rule(
            MUST,
            _BUFFERS,
            "receive into buffers of a header's size at least with MRG_RXBUF",
            "a shorter buffer",
            "drops the frame",
        ),
        "NET-28": Rule(
            HINT,
            _BUFFERS,
            "receives into a buffer with a part to read",
            "device-readable descriptors in a receive queue",
            "ignores that part",
        ),
        "NET-29": Rule(
            SHOULD,
            _BUFFERS,
            "have buffers in each receive queue that it uses",
            "VQ_PAIRS_SET while one of them is empty",
            "drops frames for that queue",
        ),
        "NET-30": Rule(
            HINT,
            _TRANSMISSION,
            "sends a frame that is shorter than an Ethernet header",
            "less than 14 bytes behind the virtio header",
            _DROPS,
        ),
        "NET-35": Rule(
            MUST,
            _LAYOUT,
            "have room to receive a frame of mtu with MTU",
            "a buffer that is shorter, without MRG_RXBUF",
            "drops frames that it has no room for",
        ),
    }

    def __init__(self, function: Function, breaches: Breaches) -> None:
        super().__init__(function, breaches)
        self._is_net = isinstance(self.transport.device, NetDevice)

    # -- features ----------------------------------------------------------------------------------------

    def writing_device_status(self, piece: Piece) -> None:
        """Features that a driver should take, or not."""
        transport = self.transport
        if not self._is_net or not piece.value & ~transport.status & virtio.STATUS_FEATURES_OK:
            return
        offered, accepted = transport.offered, transport.accepted
        for rule, bit, name in (("NET-21", net.F_MAC, "MAC"), ("NET-22", net.F_MTU, "MTU")):
            if offered >> bit & 1 and not accepted >> bit & 1:
                self.tell(rule, f"features {accepted:#x} without {name} (bit {bit})")
        if not accepted >> net.F_CTRL_VQ & 1:
            for bit, name in ((net.F_HASH_REPORT, "HASH_REPORT"), (net.F_CTRL_RX_EXTRA, "CTRL_RX_EXTRA")):
                if accepted >> bit & 1:
                    self.tell("NET-23", f"features {accepted:#x} with {name} (bit {bit})", expected="bit 17")

    # -- buffers ---------------------------------------------------------------------------------------------

    def taken(self, buffer: Buffer) -> None:
        """A frame to be sent, or a buffer to receive into."""
        if not self._is_net or self.transport.legacy or buffer.queue >= self._device.frame_queues:
            return
        if buffer.queue & 1:
            self._check_transmit(buffer)
        else:
            self._check_receive(buffer)

    def _check_receive(self, buffer: Buffer) -> None:
        transport, length = self.transport, buffer.writable.length
        if buffer.readable.length:
            self.tell_of("NET-28", buffer, f"{buffer.readable.length} bytes to read")
        if transport.negotiated(net.F_MRG_RXBUF):
            if length < self._device.header_size:
                self.tell_of(
                    "NET-27", buffer, f"{length} bytes", expected=f"{self._device.header_size} at least"
                )
            return
        needed = _LONG if transport.accepted & _ANY_GSO else _SHORT
        needed += self._device.header_size - net_header.SIZE
        if length < needed:
            self.tell_of("NET-26", buffer, f"{length} bytes", expected=f"{needed} at least")
        needed = self._device.header_size + net.ETHERNET_HEADER + self._mtu
        if transport.negotiated(net.F_MTU) and length < needed:
            self.tell_of("NET-35", buffer, f"{length} bytes", expected=f"{needed} at least")

    def _check_transmit(self, buffer: Buffer) -> None:
        if buffer.writable.length:
            self.tell_of("NET-19", buffer, f"{buffer.writable.length} bytes to write")
        length = buffer.readable.length - self._device.header_size
        if length < net.ETHERNET_HEADER:
            rule, least = ("NET-01", 0) if length < 0 else ("NET-30", net.ETHERNET_HEADER)
            least += self._device.header_size
            self.tell_of(rule, buffer, f"{buffer.readable.length} bytes", expected=f"{least} at least")
            return
        flags, gso, hdr_len, gso_size, start, offset, buffers = _HEADER.unpack(
            buffer.readable.read(0, _HEADER.size)
        )
        if buffers:
            self.tell_of("NET-02", buffer, f"num_buffers {buffers}", expected="0")
        self._check_flags(buffer, flags, gso)
        if flags & net.HDR_F_NEEDS_CSUM and start + offset + 2 > length:
            seen = f"csum_start {start}, csum_offset {offset} in a frame of {length} bytes"
            self.tell_of("NET-14", buffer, seen)
        if gso & ~net.GSO_ECN != net.GSO_NONE:
            self._check_segments(buffer, flags, gso, hdr_len, gso_size, start)
        elif self.transport.negotiated(net.F_MTU):
            self._check_mtu(buffer, length)

    def _check_flags(self, buffer: Buffer, flags: int, gso: int) -> None:
        negotiated = self.transport.negotiated
        if not negotiated(net.F_CSUM) and flags:
            self.tell_of("NET-03", buffer, f"flags {flags:#x}", expected="0")
        if flags & (net.HDR_F_DATA_VALID | _RSC_INFO):
            self.tell_of("NET-13", buffer, f"flags {flags:#x}", expected="neither 2 nor 4")
        if flags & _UDP_TUNNEL_CSUM and not negotiated(_TUNNEL_GSO_CSUM):
            self.tell_of("NET-12", buffer, f"flags {flags:#x} without feature bit {_TUNNEL_GSO_CSUM}")
        if flags & ~_KNOWN_FLAGS:
            self.tell_of("NET-18", buffer, f"flags {flags & ~_KNOWN_FLAGS:#x}")
        if gso & _TUNNELS and not negotiated(_TUNNEL_GSO):
            self.tell_of("NET-10", buffer, f"gso_type {gso:#x} without feature bit {_TUNNEL_GSO}")
        kind = gso & ~(_TUNNELS | net.GSO_ECN)
        if gso & _TUNNELS == _TUNNELS or (gso & _TUNNELS and kind == net.GSO_UDP):
            self.tell_of("NET-11", buffer, f"gso_type {gso:#x}")

    def _check_segments(
        self, buffer: Buffer, flags: int, gso: int, hdr_len: int, gso_size: int, start: int
    ) -> None:
        negotiated = self.transport.negotiated
        rule, name, feature = _GSO.get(gso & ~(_TUNNELS | net.GSO_ECN), ("NET-18", "", 0))
        if not any(negotiated(bit) for _, _, bit in _GSO.values()):
            self.tell_of("NET-04", buffer, f"gso_type {gso:#x}", expected="0")
        elif not name:
            self.tell_of(rule, buffer, f"gso_type {gso:#x}")
        elif not negotiated(feature):
            self.tell_of(rule, buffer, f"gso_type {name} without feature bit {feature}")
        if gso & net.GSO_ECN and not negotiated(net.F_HOST_ECN):
            self.tell_of("NET-09", buffer, f"gso_type {gso:#x} without feature bit {net.F_HOST_ECN}")
        if not flags & net.HDR_F_NEEDS_CSUM:
            self.tell_of("NET-15", buffer, f"gso_type {gso:#x}, flags {flags:#x}", expected="flag 1")
        if not gso_size:
            self.tell_of("NET-16", buffer, f"gso_type {gso:#x}, gso_size 0")
        if flags & net.HDR_F_NEEDS_CSUM and hdr_len <= start:
            seen = f"hdr_len {hdr_len}, csum_start {start}"
            self.tell_of("NET-17", buffer, seen, expected="the transport header too")

    @property
    def _mtu(self) -> int:
        fields = net.CONFIG.fields
        assert fields is not None
        return int.from_bytes(self.transport.device.read_config(fields["mtu"][1], 2), "little")

    def _check_mtu(self, buffer: Buffer, length: int) -> None:
        ethertype = buffer.readable.read(self._device.header_size + net.ETHERNET_HEADER - 2, 2)
        tag = (
            net.VLAN_TAG
            if int.from_bytes(ethertype) in {net.ETHERTYPE_VLAN, net.ETHERTYPE_SERVICE_VLAN}
            else 0
        )
        most = self._mtu + net.ETHERNET_HEADER + tag
        if length > most:
            self.tell_of("NET-20", buffer, f"a frame of {length} bytes", expected=f"{most} at most")

    @property
    def _device(self) -> NetDevice:
        device = self.transport.device
        assert isinstance(device, NetDevice)
        return device

    # -- pairs -------------------------------------------------------------------------------------------

    def writing_notification(self, access: Access) -> None:
        """A transmit queue is used: one of a pair in use."""
        queue = access.offset // 4
        if not self._is_net or not queue & 1 or queue >= self._device.frame_queues:
            return
        settings = self._device.settings
        if queue // 2 < settings.pairs or not self.transport.running:
            return
        rule = "NET-25" if self._pairs_were_set else "NET-24"
        seen = f"transmit queue {queue} notified, and {settings.pairs} pairs are in use"
        self.tell(rule, seen, expected=f"queue {2 * settings.pairs - 1} at most", queue=queue)

    _pairs_were_set = False

    def was_reset(self) -> None:
        """One pair is in use."""
        self._pairs_were_set = False

    def used(self, buffer: Buffer, written: int) -> None:
        """A command may have set the pairs."""
        if not self._is_net or buffer.queue != self._device.frame_queues or written != 1:
            return
        answer = buffer.writable.read(0, 1)
        if answer and answer[0] != net.OK:
            return
        if buffer.readable.read(0, 2) == bytes((net.CTRL_MQ, net.CTRL_MQ_VQ_PAIRS_SET)):
            self._pairs_were_set = True
            settings = self._device.settings
            for pair in range(settings.pairs):
                queue = self.transport.queues[2 * pair]
                if queue.enabled and queue.ring.pending(self.function.memory) == 0:
                    seen = f"VQ_PAIRS_SET to {settings.pairs}, and queue {queue.index} has no buffer"
                    self.tell("NET-29", seen, queue=queue.index)
