"""Rules about commands of a network device's control queue. virtio 1.4, "Control Virtqueue"."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import ClassVar, Final

from pymodel.devices.net.control import COMMANDS, GUEST_OFFLOADS
from pymodel.devices.net.device import NetDevice
from pymodel.devices.net.settings import HASH_TYPES, RSS_TABLE_MAX
from pymodel.memory import Buffer
from pymodel.rules.rule import HINT, MUST, MUST_NOT, Rule
from pymodel.rules.topic import Topic
from pymodel.spec import net
from pymodel.watch.names import command

_CONTROL: Final = "Network Device / Control Virtqueue"
_FILTERING: Final = f"{_CONTROL} / Packet Receive Filtering"
_STEERING: Final = f"{_CONTROL} / Automatic receive steering in multiqueue mode"
_RSS: Final = f"{_CONTROL} / Receive-side scaling (RSS)"
_ADDRESSES: Final = f"{_CONTROL} / Setting MAC Address Filtering"
_COALESCING: Final = f"{_CONTROL} / Notifications Coalescing"
_REFUSES: Final = "answers VIRTIO_NET_ERR and changes nothing"

_DATA_MAX: Final = 1 << 16
_RSS_HEAD: Final = struct.Struct("<IHH")

_NOTF_COAL: Final = 6
_HASH_TUNNEL: Final = 7
_STATS: Final = 8
_RSS_CONTEXT: Final = 9

_WITHOUT: Final[Mapping[tuple[int, int], str]] = {
    **dict.fromkeys([(net.CTRL_RX, net.CTRL_RX_PROMISC), (net.CTRL_RX, net.CTRL_RX_ALLMULTI)], "CTRL-01"),
    **dict.fromkeys([(net.CTRL_RX, number) for number in range(2, 6)], "CTRL-02"),
    (net.CTRL_MAC, net.CTRL_MAC_TABLE_SET): "CTRL-03",
    (net.CTRL_MAC, net.CTRL_MAC_ADDR_SET): "CTRL-04",
    (net.CTRL_VLAN, net.CTRL_VLAN_ADD): "CTRL-05",
    (net.CTRL_VLAN, net.CTRL_VLAN_DEL): "CTRL-05",
    (net.CTRL_ANNOUNCE, net.CTRL_ANNOUNCE_ACK): "CTRL-06",
    (net.CTRL_MQ, net.CTRL_MQ_VQ_PAIRS_SET): "CTRL-07",
    (net.CTRL_MQ, net.CTRL_MQ_RSS_CONFIG): "CTRL-08",
    (net.CTRL_MQ, net.CTRL_MQ_HASH_CONFIG): "CTRL-09",
    (net.CTRL_GUEST_OFFLOADS, net.CTRL_GUEST_OFFLOADS_SET): "CTRL-10",
    **dict.fromkeys([(_NOTF_COAL, 0), (_NOTF_COAL, 1)], "CTRL-11"),
    **dict.fromkeys([(_NOTF_COAL, 2), (_NOTF_COAL, 3)], "CTRL-12"),
    (_HASH_TUNNEL, 0): "CTRL-13",
    **dict.fromkeys([(_RSS_CONTEXT, number) for number in range(3)], "CTRL-14"),
}
"""Commands and the rule that they are not sent without their feature."""


def _without(section: str, what: str, feature: str, level: str = MUST_NOT) -> Rule:
    texts = {
        MUST: f"negotiate {feature} before it sends {what}",
        MUST_NOT: f"send {what} without {feature}",
        HINT: f"sends {what} without {feature}",
    }
    return Rule(level, section, texts[level], "such a command", _REFUSES)


class NetworkCommands(Topic):
    """Holds each control command against the rules."""

    RULES: ClassVar[Mapping[str, Rule]] = {
        "CTRL-01": _without(_FILTERING, "RX_PROMISC or RX_ALLMULTI", "CTRL_RX"),
        "CTRL-02": _without(_FILTERING, "RX_ALLUNI, NOMULTI, NOUNI or NOBCAST", "CTRL_RX_EXTRA"),
        "CTRL-03": _without(_ADDRESSES, "commands of class MAC", "CTRL_RX"),
        "CTRL-04": _without(_ADDRESSES, "MAC_ADDR_SET", "CTRL_MAC_ADDR", HINT),
        "CTRL-05": _without(f"{_CONTROL} / VLAN Filtering", "VLAN_ADD or VLAN_DEL", "CTRL_VLAN", HINT),
        "CTRL-06": _without(
            f"{_CONTROL} / Gratuitous Packet Sending", "ANNOUNCE_ACK", "GUEST_ANNOUNCE", HINT
        ),
        "CTRL-07": _without(_STEERING, "MQ_VQ_PAIRS_SET", "MQ", HINT),
        "CTRL-08": _without(_RSS, "MQ_RSS_CONFIG", "RSS"),
        "CTRL-09": _without(f"{_CONTROL} / Hash reporting", "MQ_HASH_CONFIG", "HASH_REPORT", HINT),
        "CTRL-10": _without(
            f"{_CONTROL} / Offloads State Configuration", "GUEST_OFFLOADS_SET", "CTRL_GUEST_OFFLOADS", HINT
        ),
        "CTRL-11": _without(_COALESCING, "NOTF_COAL_TX_SET or RX_SET", "NOTF_COAL", MUST),
        "CTRL-12": _without(_COALESCING, "NOTF_COAL_VQ_SET or VQ_GET", "VQ_NOTF_COAL", MUST),
        "CTRL-13": _without(f"{_CONTROL} / Inner Header Hash", "HASH_TUNNEL_SET", "HASH_TUNNEL", MUST),
        "CTRL-14": _without(
            f"{_CONTROL} / RSS Context", "commands of class RSS_CTX_CTRL", "RSS_CONTEXT", MUST
        ),
        "CTRL-15": Rule(
            MUST,
            _ADDRESSES,
            "send two whole tables with MAC_TABLE_SET, unicast and then multicast",
            "data of another length, or an address in the other table",
            _REFUSES,
        ),
        "CTRL-16": Rule(
            MUST_NOT,
            _STEERING,
            "ask for 0 pairs of queues, or for more than max_virtqueue_pairs",
            "such a number in MQ_VQ_PAIRS_SET",
            _REFUSES,
        ),
        "CTRL-17": Rule(
            MUST,
            _STEERING,
            "configure queues before it enables them with MQ_VQ_PAIRS_SET",
            "a pair that has a queue which is not enabled",
            "uses those that are",
        ),
        "CTRL-18": Rule(
            MUST,
            _RSS,
            "name only enabled receive queues in indirection_table",
            "one that is not enabled, or not there",
            "answers VIRTIO_NET_ERR for one that is not there, else drops its frames",
        ),
        "CTRL-19": Rule(
            MUST,
            _RSS,
            "have an indirection_table of a power of 2 of entries",
            "an indirection_table_mask that is no such number less one",
            _REFUSES,
        ),
        "CTRL-20": Rule(
            MUST,
            _RSS,
            "have an indirection_table_mask below rss_max_indirection_table_length",
            "a larger one",
            _REFUSES,
        ),
        "CTRL-21": Rule(
            MUST_NOT,
            _RSS,
            "set hash types that the device does not support",
            "such a bit in MQ_RSS_CONFIG or MQ_HASH_CONFIG",
            _REFUSES,
        ),
        "CTRL-22": Rule(
            MUST_NOT,
            f"{_CONTROL} / Offloads State Configuration / Setting Offloads State",
            "switch on an offload whose feature was not negotiated",
            "such a bit in GUEST_OFFLOADS_SET",
            _REFUSES,
        ),
        "CTRL-23": Rule(
            HINT,
            _CONTROL,
            "sends a command that there is not",
            "a class and command that the standard does not have",
            _REFUSES,
        ),
        "CTRL-24": Rule(
            HINT,
            _CONTROL,
            "sends a command without room for its answer, or less than class and command",
            "such a buffer",
            "sets DEVICE_NEEDS_RESET",
        ),
    }

    def taken(self, buffer: Buffer) -> None:
        """A command, ahead of what becomes of it."""
        device = self.transport.device
        if not isinstance(device, NetDevice) or buffer.queue != device.control_queue:
            return
        head = buffer.readable.read(0, 2)
        if len(head) < net.CTRL_HEADER.itemsize or not buffer.writable.length:
            lengths = f"{buffer.readable.length} bytes to read, {buffer.writable.length} to write"
            self.tell_of("CTRL-24", buffer, lengths, expected="2 and 1 at least")
            return
        kind = head[0], head[1]
        rule = _WITHOUT.get(kind)
        if rule is None:
            if head[0] != _STATS:
                self.tell_of("CTRL-23", buffer, command(kind))
            return
        name = command(kind)
        feature = COMMANDS[kind][0] if kind in COMMANDS else None
        if feature is None or not self.transport.negotiated(feature):
            bit = f" without feature bit {feature}" if feature is not None else ""
            self.tell_of(rule, buffer, f"{name}{bit}", subject=name)
            return
        if kind[0] == net.CTRL_MAC and not self.transport.negotiated(net.F_CTRL_RX):
            self.tell_of("CTRL-03", buffer, f"{name} without feature bit {net.F_CTRL_RX}", subject=name)
        check = self._checks.get(kind)
        if check is not None:
            check(self, buffer, buffer.readable.read(2, _DATA_MAX))

    def _mac_table(self, buffer: Buffer, data: bytes) -> None:
        at = 0
        for group in (0, 1):
            count = int.from_bytes(data[at : at + 4], "little")
            end = at + 4 + count * net.MAC_SIZE
            if len(data) < max(at + 4, end):
                seen = f"MAC_TABLE_SET: {count} addresses in {max(len(data) - at - 4, 0)} bytes"
                self.tell_of("CTRL-15", buffer, seen)
                return
            for start in range(at + 4, end, net.MAC_SIZE):
                if data[start] & 1 != group:
                    mac = data[start : start + net.MAC_SIZE].hex(":")
                    table = "multicast" if group else "unicast"
                    self.tell_of("CTRL-15", buffer, f"MAC_TABLE_SET: {mac} in the {table} table")
                    return
            at = end
        if at != len(data):
            self.tell_of("CTRL-15", buffer, f"MAC_TABLE_SET: {len(data) - at} bytes behind the tables")

    def _pairs(self, buffer: Buffer, data: bytes) -> None:
        pairs = int.from_bytes(data[:2], "little")
        most = (self.transport.num_queues - 1) // 2
        if not 1 <= pairs <= most:
            self.tell_of("CTRL-16", buffer, f"MQ_VQ_PAIRS_SET to {pairs}", expected=f"1 to {most}")
            return
        for index in range(2 * pairs):
            if not self.transport.queues[index].enabled:
                seen = f"MQ_VQ_PAIRS_SET to {pairs}, and queue {index} is not enabled"
                self.tell_of("CTRL-17", buffer, seen)
                return

    def _rss_config(self, buffer: Buffer, data: bytes) -> None:
        if len(data) < _RSS_HEAD.size:
            return
        types, mask, _ = _RSS_HEAD.unpack_from(data)
        self._hash_types(buffer, types, "MQ_RSS_CONFIG")
        size = mask + 1
        if size & mask:
            self.tell_of("CTRL-19", buffer, f"MQ_RSS_CONFIG with an indirection_table_mask of {mask}")
            return
        if size > RSS_TABLE_MAX:
            seen = f"MQ_RSS_CONFIG with an indirection_table_mask of {mask}"
            self.tell_of("CTRL-20", buffer, seen, expected=f"{RSS_TABLE_MAX - 1} at most")
            return
        entries = struct.unpack_from(
            f"<{size}H", data.ljust(_RSS_HEAD.size + 2 * size, b"\0"), _RSS_HEAD.size
        )
        for number, entry in enumerate(entries):
            queue = self.transport.queues.get(2 * entry)
            if queue is None or queue.index >= self.transport.num_queues - 1 or not queue.enabled:
                seen = f"MQ_RSS_CONFIG: entry {number} is receive queue {entry + 1} (index {2 * entry})"
                self.tell_of("CTRL-18", buffer, seen)
                return

    def _hash_config(self, buffer: Buffer, data: bytes) -> None:
        self._hash_types(buffer, int.from_bytes(data[:4], "little"), "MQ_HASH_CONFIG")

    def _hash_types(self, buffer: Buffer, types: int, name: str) -> None:
        if types & ~HASH_TYPES:
            seen = f"{name} with hash types {types:#x}"
            self.tell_of("CTRL-21", buffer, seen, expected=f"some of {HASH_TYPES:#x}")

    def _offloads(self, buffer: Buffer, data: bytes) -> None:
        offloads = int.from_bytes(data[:8], "little")
        extra = offloads & ~(self.transport.accepted & GUEST_OFFLOADS)
        if extra:
            self.tell_of("CTRL-22", buffer, f"GUEST_OFFLOADS_SET to {offloads:#x}: {extra:#x} too many")

    _checks: ClassVar[Mapping[tuple[int, int], Callable[[NetworkCommands, Buffer, bytes], None]]] = {
        (net.CTRL_MAC, net.CTRL_MAC_TABLE_SET): _mac_table,
        (net.CTRL_MQ, net.CTRL_MQ_VQ_PAIRS_SET): _pairs,
        (net.CTRL_MQ, net.CTRL_MQ_RSS_CONFIG): _rss_config,
        (net.CTRL_MQ, net.CTRL_MQ_HASH_CONFIG): _hash_config,
        (net.CTRL_GUEST_OFFLOADS, net.CTRL_GUEST_OFFLOADS_SET): _offloads,
    }
