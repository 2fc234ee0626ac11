"""Rules about accesses to registers: their width, their place, their time, and device configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from pymodel.pci.function import Function
from pymodel.pci.power import D0
from pymodel.rules.breaches import Breaches
from pymodel.rules.rule import HINT, MUST, MUST_NOT, SHOULD, Rule
from pymodel.rules.topic import Topic
from pymodel.spec import block, net, pci, virtio
from pymodel.watch.access import COMMON, CONFIG, DEVICE, ISR, NOTHING, NOTIFY, Access, Field, Piece

_LAYOUT: Final = "PCI Device Layout"
_CONFIGURATION: Final = "Device Configuration Space"
_WINDOW: Final = "PCI configuration access capability"

_ATOMIC: Final = 4
"""Bytes that are read at once."""

_OF_FEATURES: Final[Mapping[int, Mapping[str, tuple[int, ...]]]] = {
    virtio.ID_BLOCK: {
        "size_max": (block.F_SIZE_MAX,),
        "seg_max": (block.F_SEG_MAX,),
        "geometry": (4,),
        "blk_size": (block.F_BLK_SIZE,),
        "topology": (block.F_TOPOLOGY,),
        "writeback": (block.F_CONFIG_WCE,),
        "num_queues": (block.F_MQ,),
        "max_discard_sectors": (block.F_DISCARD,),
        "max_discard_seg": (block.F_DISCARD,),
        "discard_sector_alignment": (block.F_DISCARD,),
        "max_write_zeroes_sectors": (block.F_WRITE_ZEROES,),
        "max_write_zeroes_seg": (block.F_WRITE_ZEROES,),
        "write_zeroes_may_unmap": (block.F_WRITE_ZEROES,),
    },
    virtio.ID_NET: {
        "mac": (net.F_MAC,),
        "status": (net.F_STATUS,),
        "max_virtqueue_pairs": (net.F_MQ, net.F_RSS),
        "mtu": (net.F_MTU,),
        "speed": (net.F_SPEED_DUPLEX,),
        "duplex": (net.F_SPEED_DUPLEX,),
        "rss_max_key_size": (net.F_RSS, net.F_HASH_REPORT),
        "rss_max_indirection_table_length": (net.F_RSS,),
        "supported_hash_types": (net.F_RSS, net.F_HASH_REPORT),
    },
}
"""By device type: fields of the configuration that are there with one of these features."""

_STRUCTURES: Final = ("common.", "notify.", "isr.", "device.")
"""Capabilities that tell where a structure is."""


class Registers(Topic):
    """How a driver reads and writes, whatever it is."""

    RULES: ClassVar[Mapping[str, Rule]] = {
        "PCI-01": Rule(
            MUST,
            _LAYOUT,
            "access each field in its own width, and one of 64 bits in two halves",
            "an access of another width, not aligned, or to several fields",
            "does it all the same",
        ),
        "PCI-02": Rule(
            MUST_NOT,
            "Virtio Structure PCI Capabilities",
            "write a capability that tells where a structure is",
            "such a write",
            "ignores the write",
        ),
        "PCI-03": Rule(
            MUST_NOT,
            _WINDOW,
            "write a cap.offset that is not a multiple of cap.length",
            "an access to pci_cfg_data with such an offset",
            "reads 0, and ignores writes",
        ),
        "PCI-04": Rule(
            MUST_NOT,
            _WINDOW,
            "access pci_cfg_data unless cap.bar, cap.offset and cap.length are inside of a structure",
            "such an access",
            "does it if it is inside of a BAR, else reads 0 and ignores writes",
        ),
        "PCI-05": Rule(
            HINT,
            _LAYOUT,
            "accesses a BAR where nothing is",
            "an access outside of all structures",
            "reads 0, and ignores writes",
        ),
        "PCI-06": Rule(
            HINT,
            "Virtio Over PCI Bus",
            "accesses a BAR while the function does not answer",
            "an access while Memory Space Enable is clear, not in D0, or (of a VF) while VF MSE is clear",
            "reads all ones and ignores writes; with Memory Space Enable clear it does what it is asked for",
        ),
        "PCI-07": Rule(
            HINT,
            "Virtio Over PCI Bus",
            "accesses a function while it is reset",
            "an access while a function-level reset is under way",
            "reads what is there, and ignores writes",
        ),
        "CONF-01": Rule(
            SHOULD,
            _CONFIGURATION,
            "read a field of more than 32 bits between two reads of config_generation",
            "such a read, and none of config_generation before or after it",
            "answers; the parts may be of two different times",
        ),
        "CONF-02": Rule(
            MUST,
            _CONFIGURATION,
            "access an optional field only where its feature is offered",
            "an access to a field whose feature was not offered",
            "reads 0, and ignores writes",
        ),
        "CONF-03": Rule(
            MUST_NOT,
            "Network Device / Device configuration layout",
            "write device configuration of a network device",
            "such a write",
            "ignores the write",
        ),
        "CONF-04": Rule(
            HINT,
            "Block Device / Device configuration layout",
            "writes what a driver may not write of a block device's configuration",
            "another field than writeback, writeback without CONFIG_WCE, or a value that is neither 0 nor 1",
            "ignores the write",
        ),
        "CONF-05": Rule(
            MUST_NOT,
            "Block Device / Device Initialization",
            "read writeback before FEATURES_OK",
            "such a read",
            "answers 1",
        ),
    }

    def __init__(self, function: Function, breaches: Breaches) -> None:
        super().__init__(function, breaches)
        self._type = self.transport.device.virtio_id
        # Whether config_generation was read, and then nothing but device configuration; and what was read
        # since that has parts.
        self._fresh = False
        self._unsure = ""

    def was_reset(self) -> None:
        """Nothing was read."""
        self._fresh = False
        self._unsure = ""

    # -- any access --------------------------------------------------------------------------------------

    def read(self, access: Access) -> None:
        """See `Listener`."""
        self._look(access, "read")
        super().read(access)

    def write(self, access: Access) -> None:
        """See `Listener`."""
        self._look(access, "written")
        super().write(access)

    def _look(self, access: Access, what: str) -> None:
        """Whether this access may be made at all."""
        function = self.function
        if function.gate.flr is not None:
            self.tell("PCI-07", f"{access.describe()} {what} during a function-level reset")
        if access.structure == CONFIG:
            return
        # A VF's own bit says nothing.
        if function.member is None and not function.gate.command & pci.COMMAND_MEMORY:
            self.tell("PCI-06", f"{access.describe()} {what}, and Memory Space Enable is clear")
        elif not function.memory_space:
            why = "VF MSE of the PF is clear" if function.power_state == D0 else f"in D{function.power_state}"
            self.tell("PCI-06", f"{access.describe()} {what} {why}")
        if access.structure == NOTHING or (access.structure in {COMMON, DEVICE} and not access.pieces):
            place = f"{len(access.data)} bytes at {access.offset:#x}"
            self.tell("PCI-05", f"{place} of {access.structure} {what}", subject=access.structure)
        elif access.structure == ISR and access.offset:
            self.tell("PCI-05", f"offset {access.offset:#x} of ISR status {what}", subject=access.structure)
        if access.structure in {COMMON, DEVICE} and access.pieces and not _fits(access):
            first = access.pieces[0].field
            self.tell(
                "PCI-01",
                f"{access.describe()} {what}",
                expected=_expected(first),
                subject=first.name,
                register=first.name,
            )
        if access.structure not in {DEVICE, NOTIFY} and self._unsure and not _is_generation(access):
            self.tell(
                "CONF-01",
                f"{self._unsure} read, and then {access.describe()} {what}",
                expected="a read of config_generation",
                subject=self._unsure,
                register=self._unsure,
            )
            self._unsure = ""

    # -- configuration space -------------------------------------------------------------------------------

    def writing_config(self, access: Access) -> None:
        """Capabilities are not to be written, but for the window."""
        for piece in access.pieces:
            if piece.name.startswith(_STRUCTURES):
                self.tell("PCI-02", f"{piece.value:#x} written to {piece.name}", register=piece.name)
            elif piece.name == "pci_cfg.data":
                self._window("written")

    def reads_config(self, access: Access) -> None:
        """Nor the window where nothing is."""
        if len(access.data) <= _ATOMIC and any(piece.name == "pci_cfg.data" for piece in access.pieces):
            self._window("read")

    def _window(self, what: str) -> None:
        bar, offset, length = self.function.window
        seen = f"pci_cfg_data {what} with cap.bar {bar}, cap.offset {offset:#x}, cap.length {length}"
        if what == "read" and not length:
            return  # nobody aimed it: somebody reads all of configuration space
        if length not in {1, 2, 4} or offset % length:
            self.tell("PCI-03", seen, expected="1, 2 or 4 bytes, aligned")
        elif not any(
            bar == self.function.virtio_bar and at <= offset and offset + length <= at + size
            for at, size in self.function.structures
        ):
            self.tell("PCI-04", seen)

    # -- device configuration ------------------------------------------------------------------------------

    def reads_config_generation(self, _piece: Piece) -> None:
        """What was read is of one time if this is what it was before."""
        self._fresh = True
        self._unsure = ""

    def reads_common(self, access: Access) -> None:
        """Something else was read."""
        self._fresh = self._fresh and _is_generation(access)

    def writing_common(self, _access: Access) -> None:
        """Something was written."""
        self._fresh = False

    def reads_device(self, access: Access) -> None:
        """Fields, whole or in parts."""
        for piece in access.pieces:
            field = piece.field
            self._check_offered(field, "read")
            if field.size > _ATOMIC:
                if not self._fresh:
                    self.tell(
                        "CONF-01",
                        f"{field.name}, {8 * field.size} bits, read",
                        expected="a read of config_generation before it",
                        subject=field.name,
                        register=field.name,
                    )
                self._unsure = field.name
            if field.name == "writeback" and not self.transport.status & virtio.STATUS_FEATURES_OK:
                self.tell("CONF-05", "writeback read before FEATURES_OK", register="writeback")

    def writing_device(self, access: Access) -> None:
        """A network device's is not to be written, of a block device's one field."""
        for piece in access.pieces:
            what = f"{piece.value:#x} written to {piece.name}"
            self._check_offered(piece.field, "written")
            if self._type == virtio.ID_NET:
                self.tell("CONF-03", what, subject=piece.name, register=piece.name)
            elif self._type == virtio.ID_BLOCK:
                agreed = self.transport.negotiated(block.F_CONFIG_WCE)
                if piece.name != "writeback" or piece.value > block.WRITEBACK or not agreed:
                    self.tell("CONF-04", what, subject=piece.name, register=piece.name)

    def _check_offered(self, field: Field, what: str) -> None:
        name = field.name.split(".")[0]
        features = _OF_FEATURES.get(self._type, {}).get(name, ())
        if features and not any(self.transport.offered >> bit & 1 for bit in features):
            needed = " or ".join(map(str, features))
            self.tell(
                "CONF-02",
                f"{field.name} {what}, and feature bit {needed} is not offered",
                subject=name,
                register=field.name,
            )


def _is_generation(access: Access) -> bool:
    return [piece.name for piece in access.pieces] == ["config_generation"]


def _fits(access: Access) -> bool:
    """Whether an access is to one field, in its width: of 64 bits a half, of an array one element."""
    if len(access.pieces) != 1:
        return False
    field, length = access.pieces[0].field, len(access.data)
    unit = min(field.unit, _ATOMIC)
    return length == unit and (access.offset - field.start) % unit == 0


def _expected(field: Field) -> str:
    if field.unit > _ATOMIC:
        return "two accesses of 32 bits"
    return f"{8 * field.unit} bits" + (" at a time" if field.size > field.unit else "")
