"""Network devices: the control queue, and what comes through the admin queue."""

from __future__ import annotations

from typing import Final

from tests.driver_statements.statement import (
    ITSELF,
    MUST,
    MUST_NOT,
    NOT_OFFERED,
    SHOULD,
    SHOULD_NOT,
    Sections,
    seen,
    unseen,
)

_CONTROL: Final = "Network Device / Device Operation / Control Virtqueue"

NET_COMMANDS: Final[Sections] = {
    f"{_CONTROL} / Inner Header Hash": (
        seen(MUST, "have HASH_TUNNEL for HASH_TUNNEL_SET", "CTRL-13"),
        unseen(MUST_NOT, "set tunnel types that are not supported", NOT_OFFERED),
        unseen(MUST, "ignore types that it does not know", NOT_OFFERED),
    ),
    f"{_CONTROL} / Packet Receive Filtering": (
        seen(MUST_NOT, "send RX_PROMISC or RX_ALLMULTI without CTRL_RX", "CTRL-01"),
        seen(MUST_NOT, "send the other commands without CTRL_RX_EXTRA", "CTRL-02"),
    ),
    f"{_CONTROL} / Setting MAC Address Filtering": (
        seen(MUST_NOT, "send commands of class MAC without CTRL_RX", "CTRL-03"),
        unseen(SHOULD, "send MAC_ADDR_SET where its address is another", ITSELF),
        seen(MUST, "send two whole tables with MAC_TABLE_SET", "CTRL-15"),
    ),
    f"{_CONTROL} / Gratuitous Packet Sending": (
        seen(SHOULD, "tell its peers where it is when asked to", "CHANGE-04"),
        seen(MUST, "answer that with ANNOUNCE_ACK", "CHANGE-05"),
    ),
    f"{_CONTROL} / Automatic receive steering in multiqueue mode": (
        seen(MUST, "configure queues before VQ_PAIRS_SET", "CTRL-17"),
        seen(MUST_NOT, "ask for no pairs, or for more than there are", "CTRL-16"),
        seen(MUST, "send on the first transmit queue before VQ_PAIRS_SET", "NET-24"),
        seen(MUST_NOT, "send on queues that VQ_PAIRS_SET left out", "NET-25"),
    ),
    f"{_CONTROL} / Receive-side scaling (RSS)": (
        seen(MUST_NOT, "send MQ_RSS_CONFIG without RSS", "CTRL-08"),
        seen(MUST, "name enabled receive queues only", "CTRL-18"),
        seen(MUST, "have a table of a power of 2 of entries", "CTRL-19"),
        seen(MUST, "have a mask below the longest table's length", "CTRL-20"),
        seen(MUST_NOT, "set hash types that are not supported", "CTRL-21"),
    ),
    f"{_CONTROL} / RSS Context": (
        seen(MUST, "have RSS_CONTEXT for commands of class RSS_CTX_CTRL", "CTRL-14"),
        unseen(MUST, "name a context that there is", NOT_OFFERED),
        unseen(MUST_NOT, "send VQ_PAIRS_SET while there is a context", NOT_OFFERED),
    ),
    f"{_CONTROL} / Offloads State Configuration / Setting Offloads State": (
        seen(MUST_NOT, "switch on what was not negotiated", "CTRL-22"),
    ),
    f"{_CONTROL} / Notifications Coalescing": (
        unseen(MUST, "name an enabled queue", NOT_OFFERED),
        seen(MUST, "have NOTF_COAL for TX_SET and RX_SET", "CTRL-11"),
        seen(MUST, "have VQ_NOTF_COAL for VQ_SET and VQ_GET", "CTRL-12"),
        unseen(MUST, "ignore values that come with an error", NOT_OFFERED),
    ),
    f"{_CONTROL} / Device Statistics": (
        unseen(MUST, "ask for types that there are", NOT_OFFERED),
        unseen(MUST, "ask for types that the queue has", NOT_OFFERED),
        unseen(MUST, "have room for all answers", NOT_OFFERED),
    ),
    "Network Device / Device Operation / Flow filter": (
        unseen(MUST, "set the capabilities first", NOT_OFFERED),
        unseen(SHOULD_NOT, "destroy a group that has rules", NOT_OFFERED),
        unseen(SHOULD, "destroy its rules first", NOT_OFFERED),
        unseen(SHOULD_NOT, "destroy a classifier that has rules", NOT_OFFERED),
        unseen(SHOULD, "destroy those rules first", NOT_OFFERED),
        unseen(SHOULD_NOT, "give two rules of a group one priority", NOT_OFFERED),
        unseen(SHOULD, "tell apart rules that match one frame", NOT_OFFERED),
        unseen(MUST, "select by Ethernet, then IP, then ports", NOT_OFFERED),
        unseen(MUST, "mask the type of the next header", NOT_OFFERED),
        unseen(MUST, "have a key that fits the type of IP", NOT_OFFERED),
        unseen(MUST, "have a key that fits the protocol", NOT_OFFERED),
        unseen(SHOULD, "mask whole fields", NOT_OFFERED),
    ),
    "Network Device / Device Operation / IPsec Operation": (
        unseen(MUST, "ask which capabilities there are", NOT_OFFERED),
        unseen(MUST, "get them", NOT_OFFERED),
        unseen(MUST, "set them", NOT_OFFERED),
        unseen(MUST, "give an outbound object all parameters", NOT_OFFERED),
        unseen(MUST, "give an inbound object all but the tunnel's", NOT_OFFERED),
        unseen(SHOULD_NOT, "have two inbound objects of one spi", NOT_OFFERED),
        unseen(MUST, "send no more than the path's MTU", NOT_OFFERED),
    ),
}
