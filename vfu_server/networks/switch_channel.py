"""The fast side of a function's port of the switch."""

from __future__ import annotations

from pymodel.devices.net import channel as channels
from pymodel.devices.net import frame_head
from pymodel.devices.net.channel import Channel
from pymodel.memory import GuestMemory, Vectors
from vfu_server.networks.switch import Member, Switch

# Compiled code has numbers of its own for these.
_LOST = channels.LOST
_HEAD = frame_head.HEAD


class SwitchChannel(Channel):
    """Sends as `member`, and receives what is in its inbox, whose event is the channel's descriptor."""

    def __init__(self, switch: Switch, member: Member) -> None:
        super().__init__(member.inbox.event.fd)
        self._switch = switch
        self._member = member

    def send(self, memory: GuestMemory, frame: Vectors) -> int:
        """See `Channel`. The pieces are changed."""
        length = frame.size
        count = min(frame.size, _HEAD)
        memory.collect(self._member.head.place, count, frame, 0)
        if not self._member.head.check(frame.size):
            return _LOST
        # What was checked is sent, and not what may stand there now.
        piece = 0
        while count >= frame.pieces[2 * piece + 1]:
            count -= frame.pieces[2 * piece + 1]
            piece += 1
            if piece == frame.count:
                break
        if count:
            frame.pieces[2 * piece] += count
            frame.pieces[2 * piece + 1] -= count
        piece -= 1
        frame.pieces[2 * piece] = self._member.head.place
        frame.pieces[2 * piece + 1] = min(frame.size, _HEAD)
        return self._switch.pass_on(self._member, memory, frame, piece, length)

    def receive(self, memory: GuestMemory, room: Vectors, first: int) -> int:
        """See `Channel`."""
        length = self._member.inbox.look()
        if length:
            memory.spread(self._member.inbox.place(), length, room, first)
            self._member.inbox.drop()
        return length
