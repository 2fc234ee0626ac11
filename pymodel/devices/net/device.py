"""The network device. virtio 1.4, "Network Device"."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from pymodel.devices.device import Notifier
from pymodel.devices.net import context as net_context
from pymodel.devices.net import offer as net_offer
from pymodel.devices.net import parts as net_parts
from pymodel.devices.net.announce import Announcer
from pymodel.devices.net.control import DATA_MAX, Command, Refused, carry_out
from pymodel.devices.net.counters import NetCounters
from pymodel.devices.net.filter import ReceiveFilter
from pymodel.devices.net.port import NetBackend
from pymodel.devices.net.receive import Receiver
from pymodel.devices.net.settings import Settings, default_mac, is_unicast
from pymodel.devices.net.transmit import Transmitter
from pymodel.errors import BrokenQueue
from pymodel.memory import Buffer, GuestMemory
from pymodel.migration.parts import Part
from pymodel.migration.state import DeviceField, FunctionState, Mark
from pymodel.queue.engine import PATIENCE, Engine
from pymodel.queue.virtqueue import Virtqueue
from pymodel.spec import net, parts, virtio

QUEUE_SIZE: Final = 256
CONTROL_QUEUE_SIZE: Final = 64

# Frames that one `service` takes from the port.
RECEIVE_BATCH: Final = 128

# Refused commands that are logged between two resets. A driver could fill a disk with them.
REFUSALS_MAX: Final = 10


class NetDevice:
    """A virtio network device on a port: pairs of a receive and a transmit queue, then the control queue.

    Frames come in while the driver runs it and its gate is open. What waits for the driver's buffers does not
    travel in a context; a restored device tells the network where it is now.
    """

    virtio_id = virtio.ID_NET
    class_code = 0x020000  # network controller, Ethernet
    config_layout = net.CONFIG
    config_length = net.CONFIG.itemsize
    content_size = 0
    in_order = True
    part_types = (parts.NET_CVQ_CFG,)

    def __init__(self, backend: NetBackend, *, name: str, queues: int) -> None:
        self._port = backend.port
        self._mac = backend.mac or default_mac(name)
        self._mtu = backend.mtu
        self._pairs = queues
        self._log = logging.getLogger(f"virtio.{name}")
        self._notifier: Notifier | None = None
        self.queue_sizes = (QUEUE_SIZE,) * (2 * queues) + (CONTROL_QUEUE_SIZE,)
        self.features = net_offer.features(backend, queues)
        self._counters = NetCounters(len(self.queue_sizes))
        self._receiver = Receiver(queues, self._counters, self._enabled, self._patience)
        self._transmitter = Transmitter(self._port, self._receiver, self._counters)
        self._announcer = Announcer(self._port, self._counters)
        self._cable = True
        self._clear(Settings(mac=self._mac))

    @property
    def settings(self) -> Settings:
        """What the driver has set."""
        return self._settings

    @property
    def header_size(self) -> int:
        """Bytes of header in front of each frame in a driver's buffers."""
        return self._receiver.header_size

    @property
    def control_queue(self) -> int:
        """The index of the control queue; -1 without one."""
        return self._control

    @property
    def frame_queues(self) -> int:
        """How many queues have frames, from 0 on: the control queue would come behind them."""
        return self._frame_queues

    # -- life ------------------------------------------------------------------------------------------

    def _clear(self, settings: Settings) -> None:
        self._settings = settings
        self._features = 0
        self._control = self._frame_queues = 2 * self._pairs
        self._status = net.S_LINK_UP if self._link_is_up else 0
        self._running = False
        self._moved = False
        self._refusals = 0
        self._written_mac = bytearray(settings.mac)
        self._announcer.reset()
        self._transmitter.reset()
        for pair in range(self._pairs):
            self._receiver.drop(pair)

    def connect(self, notifier: Notifier) -> None:
        """See `Device`."""
        self._notifier = notifier
        self._port.connect(notifier.wake)

    def reset(self) -> None:
        """Settings as the constructor made them, the port silent. The cable stays as it is."""
        self._port.configure(0, None)
        self._clear(Settings(mac=self._mac))

    def acceptable(self, features: int) -> str | None:
        """See `Device`."""
        return net_offer.missing(features)

    def negotiated(self, features: int) -> None:
        """See `Device`. Without MQ and RSS the control queue comes third; without CTRL_VQ there is none."""
        self._features = features
        self._transmitter.negotiated(features)
        many = features & (1 << net.F_MQ | 1 << net.F_RSS)
        self._frame_queues = 2 * self._pairs if many else 2
        self._control = self._frame_queues if features >> net.F_CTRL_VQ & 1 else -1
        self._steer()

    @property
    def _offered_now(self) -> int:
        """The driver's features without the offloads that it has switched off."""
        return self._features & ~self._settings.offloads_off

    def _steer(self) -> None:
        mtu = self._mtu if self._features >> net.F_MTU & 1 else None
        settings = self._settings
        if not self._features & (1 << net.F_MQ | 1 << net.F_RSS):
            # Without them there is one pair, whatever a context says.
            settings = replace(settings, pairs=1, rss=None)
        self._receiver.configure(self._offered_now, mtu)
        self._receiver.steer(settings)

    def _tell_port(self) -> None:
        """What the port has to know, once the device runs."""
        if self._running:
            by_vlan = bool(self._features >> net.F_CTRL_VLAN & 1)
            wanted = ReceiveFilter(self._settings, by_vlan) if self._cable else None
            self._port.configure(self._offered_now, wanted)

    def _apply(self, settings: Settings) -> None:
        before, self._settings = self._settings, settings
        if settings == before:
            return
        if _steering_of(settings) != _steering_of(before):
            self._steer()
            # For what waits by another queue now.
            for pair in range(self._pairs):
                self._resume(2 * pair)
            self._wake()
        self._tell_port()

    def _enabled(self, queue: int) -> bool:
        return self._notifier is not None and self._notifier.enabled(queue)

    def started(self) -> None:
        """See `Device`: from now on frames come in, and wait for the function's own thread."""
        if not self._running:
            self._running = True
            self._tell_port()

    @property
    def waits(self) -> Sequence[tuple[int, int]]:
        """See `Device`."""
        return self._port.waits

    # -- configuration ---------------------------------------------------------------------------------

    def _config(self) -> bytes:
        return net_offer.configuration(self._settings.mac, self._status, self._pairs, self._mtu)

    def read_config(self, offset: int, length: int) -> bytes:
        """Read configuration; bytes past its end are 0."""
        return self._config()[offset : offset + length].ljust(length, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver may write none of it."""

    def write_legacy_config(self, offset: int, data: bytes) -> None:
        """See `Transitional`: the address, which counts once its last byte is written ("Legacy Interface:
        Setting MAC Address Filtering"). One that no function can have is dropped.
        """
        end = offset + len(data)
        if end > net.MAC_SIZE:
            return
        self._written_mac[offset:end] = data
        mac = bytes(self._written_mac)
        if end == net.MAC_SIZE and is_unicast(mac):
            self._apply(replace(self._settings, mac=mac))
            assert self._notifier is not None
            self._notifier.config_set()

    @property
    def _link_is_up(self) -> bool:
        return self._cable and self._port.link_up

    def set_link(self, up: bool) -> None:
        """Plug the cable in, or pull it: see `Linked`. A device without it neither sends nor receives."""
        self._cable = up
        self._show(net.S_LINK_UP, self._link_is_up)
        self._tell_port()

    def _show(self, bit: int, on: bool) -> None:
        self._status = self._status | bit if on else self._status & ~bit

    def _follow_link(self) -> None:
        """Have the driver see the port's carrier."""
        up = self._link_is_up
        if up != bool(self._status & net.S_LINK_UP):
            self._log.info("link %s", "up" if up else "down")
            assert self._notifier is not None
            self._notifier.config_changed("link", partial(self._show, net.S_LINK_UP, up))

    # -- announcing ------------------------------------------------------------------------------------

    def announce(self) -> None:
        """Tell the network where this function is, and ask the driver to do so too, if one runs it.

        Without a link that waits until there is one.
        """
        if self._running:
            self._announcer.begin(self._settings)
            if self._features >> net.F_GUEST_ANNOUNCE & 1:
                assert self._notifier is not None
                self._notifier.config_changed("announce", partial(self._show, net.S_ANNOUNCE, True))

    def _send_announcements(self) -> None:
        if not self._link_is_up:
            return  # they wait for it
        if self._announcer.send():
            self._wake()

    def _wake(self) -> None:
        assert self._notifier is not None
        self._notifier.wake()

    def _resume(self, queue: int) -> None:
        assert self._notifier is not None
        self._notifier.resume(queue)

    def _patience(self, pair: int, over: Callable[[], None]) -> None:
        """Call `over` when a frame has waited long enough for more buffers; its queue then has a turn."""

        def end() -> None:
            over()
            self._resume(2 * pair)

        assert self._notifier is not None
        self._notifier.after(PATIENCE, end)

    # -- queues ----------------------------------------------------------------------------------------

    def service(self) -> None:
        """Go on with what a context set, follow the port, take frames from it."""
        if self._moved:
            self._moved = False
            self.announce()
        self._follow_link()
        self._receiver.take_over()
        self._receive()
        # After that, for asking the port for frames ends its wait for room.
        self._send_announcements()
        for queue in self._transmitter.unblock():
            self._resume(queue)

    def _receive(self) -> None:
        for _ in range(RECEIVE_BATCH):
            frame = self._port.receive()
            if frame is None:
                return
            self._receiver.hold(frame)
        self._wake()

    def accepts(self, queue: int) -> bool:
        """A transmit queue while the port takes frames, a receive queue while a frame waits for it."""
        if queue == self._control:
            return True
        if queue >= 2 * self._pairs:
            return False
        return self._transmitter.accepts(queue) if queue & 1 else self._receiver.waiting(queue // 2)

    def engine(self, queue: Virtqueue, memory: GuestMemory) -> Engine | None:
        """See `Device`."""
        if queue.index == self._control or not self._running or not self._cable:
            return None
        channel = self._port.at_once()
        if channel is None:
            return None
        side = self._transmitter if queue.index & 1 else self._receiver
        return side.engine(queue, memory, channel)

    def delayable(self, queue: int) -> bool:
        """Only what the driver sends: a receive buffer is taken when there is a frame for it."""
        return queue != self._control and bool(queue & 1)

    def take(self, buffer: Buffer) -> None:
        """Send, receive, or carry out a command. Raises `BrokenQueue` for one without room for an answer."""
        if buffer.queue == self._control:
            self._command(buffer)
        elif buffer.queue & 1:
            self._transmitter.send(buffer, cable=self._cable)
        else:
            self._receiver.deliver(buffer.queue // 2, buffer)

    def fail(self, buffer: Buffer) -> int:
        """See `Device`: a command is refused, a frame is lost."""
        if buffer.queue != self._control or not buffer.writable.length:
            return 0
        return buffer.writable.put(0, bytes((net.ERR,)))

    def work_unlocked(self) -> bool:
        """See `Device`. Nothing here waits."""
        return False

    def expect_quiesce(self, *, soon: bool) -> None:
        """See `Device`. Nothing here takes time."""

    def quiesce(self) -> bool:
        """See `Device`. A port is this server's own."""
        return True

    def drop(self, queue: int) -> None:
        """See `Consumer`."""
        self._transmitter.drop(queue)
        if queue < 2 * self._pairs and not queue & 1:
            self._receiver.drop(queue // 2)

    def _command(self, buffer: Buffer) -> None:
        head = buffer.readable.read(0, net.CTRL_HEADER.itemsize)
        if len(head) < net.CTRL_HEADER.itemsize or not buffer.writable.length:
            raise BrokenQueue(f"a control command of {len(head)} bytes with no room for an answer")
        data = buffer.readable.read(len(head), DATA_MAX + 1)
        self._counters.count("commands")
        try:
            settings = carry_out(
                (head[0], head[1]), Command(data, self._settings, self._features, self._pairs)
            )
        except Refused as refused:
            self._counters.count("commands-refused")
            if self._refusals < REFUSALS_MAX:
                self._log.warning("control command %d/%d refused: %s", head[0], head[1], refused)
            self._refusals += 1
            answer = net.ERR
        else:
            answer = net.OK
            before = self._config()
            self._apply(settings)
            if head[0] == net.CTRL_ANNOUNCE:
                self._show(net.S_ANNOUNCE, False)
            if self._config() != before:
                assert self._notifier is not None
                self._notifier.config_set()
        buffer.writable.put(0, bytes((answer,)))
        buffer.complete(1)

    # -- what the monitor asks -------------------------------------------------------------------------

    def counters(self, queue: int | None = None) -> dict[str, int]:
        """See `Device`."""
        return self._counters.device() if queue is None else self._counters.queue(queue)

    # -- state -----------------------------------------------------------------------------------------

    def mark(self) -> Mark:
        """See `Device`: there is no content."""
        return Mark()

    def field_lengths(self) -> dict[int, int]:
        """See `Device`."""
        return {kind: field.length for kind, field in net_context.FIELDS.items()}

    def capture_fields(self, since: Mark | None) -> list[DeviceField]:
        """What the driver set; its address and the status are in the configuration."""
        return net_context.encode(self._settings)

    def check(self, config: bytes, fields: list[DeviceField]) -> None:
        """See `Device`: address and status may be others, the limits may not."""
        net_offer.check_configuration(config, self._config())
        net_context.decode(fields, self._settings, self._pairs)

    def encode_parts(self, state: FunctionState) -> list[Part]:
        """See `PartsOfType`."""
        return net_parts.encode(state, self._pairs)

    def decode_parts(self, found: list[Part], state: FunctionState) -> None:
        """See `PartsOfType`."""
        net_parts.decode(found, state, self._pairs)

    def reserve(self, fields: list[DeviceField]) -> None:
        """Nothing large."""

    def restore(self, config: bytes, fields: list[DeviceField]) -> None:
        """See `Device`. The port is told, and the network, when the driver goes on."""
        mac, status = net_offer.variable(config)
        settings = net_context.decode(fields, self._settings, self._pairs)
        features = self._features
        self._port.configure(0, None)
        self._clear(replace(settings, mac=mac))
        self.negotiated(features)
        self._status = status
        self._moved = True


def _steering_of(settings: Settings) -> tuple[object, ...]:
    """What of the settings the receive side goes by."""
    return settings.pairs, settings.hash_types, settings.hash_key, settings.rss, settings.offloads_off
