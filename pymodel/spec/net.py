"""Network device: features, configuration, headers, control commands. virtio 1.4, "Network Device"."""

from __future__ import annotations

import numpy as np

F_CSUM = 0
F_GUEST_CSUM = 1
F_CTRL_GUEST_OFFLOADS = 2
F_MTU = 3
F_MAC = 5
F_GUEST_TSO4 = 7
F_GUEST_TSO6 = 8
F_GUEST_ECN = 9
F_GUEST_UFO = 10
F_HOST_TSO4 = 11
F_HOST_TSO6 = 12
F_HOST_ECN = 13
F_HOST_UFO = 14
F_MRG_RXBUF = 15
F_STATUS = 16
F_CTRL_VQ = 17
F_CTRL_RX = 18
F_CTRL_VLAN = 19
F_CTRL_RX_EXTRA = 20
F_GUEST_ANNOUNCE = 21
F_MQ = 22
F_CTRL_MAC_ADDR = 23
F_GUEST_USO4 = 54
F_GUEST_USO6 = 55
F_HOST_USO = 56
F_HASH_REPORT = 57
F_RSS = 60
F_SPEED_DUPLEX = 63

# "Feature bit requirements": each feature with those of which it needs at least one.
REQUIRES: tuple[tuple[int, tuple[int, ...]], ...] = (
    (F_GUEST_TSO4, (F_GUEST_CSUM,)),
    (F_GUEST_TSO6, (F_GUEST_CSUM,)),
    (F_GUEST_ECN, (F_GUEST_TSO4, F_GUEST_TSO6)),
    (F_GUEST_UFO, (F_GUEST_CSUM,)),
    (F_GUEST_USO4, (F_GUEST_CSUM,)),
    (F_GUEST_USO6, (F_GUEST_CSUM,)),
    (F_HOST_TSO4, (F_CSUM,)),
    (F_HOST_TSO6, (F_CSUM,)),
    (F_HOST_ECN, (F_HOST_TSO4, F_HOST_TSO6)),
    (F_HOST_UFO, (F_CSUM,)),
    (F_HOST_USO, (F_CSUM,)),
    (F_CTRL_RX, (F_CTRL_VQ,)),
    (F_CTRL_VLAN, (F_CTRL_VQ,)),
    (F_GUEST_ANNOUNCE, (F_CTRL_VQ,)),
    (F_MQ, (F_CTRL_VQ,)),
    (F_CTRL_MAC_ADDR, (F_CTRL_VQ,)),
    (F_RSS, (F_CTRL_VQ,)),
)

# The configuration as far as the features above reach: `supported_tunnel_types` belongs to HASH_TUNNEL.
CONFIG = np.dtype(
    [
        ("mac", "u1", (6,)),
        ("status", "<u2"),
        ("max_virtqueue_pairs", "<u2"),
        ("mtu", "<u2"),
        ("speed", "<u4"),
        ("duplex", "u1"),
        ("rss_max_key_size", "u1"),
        ("rss_max_indirection_table_length", "<u2"),
        ("supported_hash_types", "<u4"),
    ]
)
S_LINK_UP = 1
S_ANNOUNCE = 2
DUPLEX_FULL = 1
MTU_MIN = 68
MTU_MAX = 65535

# The header in front of each frame; with HASH_REPORT the second one stands behind the first.
HEADER = np.dtype(
    [
        ("flags", "u1"),
        ("gso_type", "u1"),
        ("hdr_len", "<u2"),
        ("gso_size", "<u2"),
        ("csum_start", "<u2"),
        ("csum_offset", "<u2"),
        ("num_buffers", "<u2"),
    ]
)
HEADER_HASH = np.dtype([("hash_value", "<u4"), ("hash_report", "<u2"), ("padding_reserved", "<u2")])
# A legacy driver has the first one without num_buffers, but with MRG_RXBUF.
LEGACY_HEADER_SIZE = 10
HDR_F_NEEDS_CSUM = 1
HDR_F_DATA_VALID = 2
GSO_NONE = 0
GSO_TCPV4 = 1
GSO_UDP = 3
GSO_TCPV6 = 4
GSO_UDP_L4 = 5
GSO_ECN = 0x80

HASH_TYPE_IPV4 = 1 << 0
HASH_TYPE_TCPV4 = 1 << 1
HASH_TYPE_UDPV4 = 1 << 2
HASH_TYPE_IPV6 = 1 << 3
HASH_TYPE_TCPV6 = 1 << 4
HASH_TYPE_UDPV6 = 1 << 5
HASH_REPORT_NONE = 0
RSS_KEY_MIN = 40
RSS_TABLE_MIN = 128

CTRL_HEADER = np.dtype([("class", "u1"), ("command", "u1")])
OK = 0
ERR = 1

CTRL_RX = 0
CTRL_RX_PROMISC = 0
CTRL_RX_ALLMULTI = 1
CTRL_RX_ALLUNI = 2
CTRL_RX_NOMULTI = 3
CTRL_RX_NOUNI = 4
CTRL_RX_NOBCAST = 5
CTRL_MAC = 1
CTRL_MAC_TABLE_SET = 0
CTRL_MAC_ADDR_SET = 1
CTRL_VLAN = 2
CTRL_VLAN_ADD = 0
CTRL_VLAN_DEL = 1
CTRL_ANNOUNCE = 3
CTRL_ANNOUNCE_ACK = 0
CTRL_MQ = 4
CTRL_MQ_VQ_PAIRS_SET = 0
CTRL_MQ_RSS_CONFIG = 1
CTRL_MQ_HASH_CONFIG = 2
CTRL_GUEST_OFFLOADS = 5
CTRL_GUEST_OFFLOADS_SET = 0

# IEEE 802.3 and 802.1Q, and what is carried.
MAC_SIZE = 6
ETHERNET_HEADER = 14
VLAN_TAG = 4
VLANS = 4096
ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_RARP = 0x8035
ETHERTYPE_VLAN = 0x8100
ETHERTYPE_IPV6 = 0x86DD
ETHERTYPE_SERVICE_VLAN = 0x88A8
