"""The state of a function's virtio side as plain values: how it is taken, and what of it is believed."""

from __future__ import annotations

from pymodel.errors import InvalidField
from pymodel.migration.state import FunctionState, Mark
from pymodel.spec import virtio, virtio_pci
from pymodel.transport.features import legacy_features
from pymodel.transport.transport import Transport


def capture(transport: Transport, since: Mark | None = None, *, own_fields: bool = True) -> FunctionState:
    """All that a device context says of a function; with `since`, see `Device.capture_fields`."""
    return FunctionState(
        virtio_id=transport.device.virtio_id,
        device_features=transport.offered,
        driver_features=transport.accepted,
        device_feature_select=transport.device_feature_select,
        driver_feature_select=transport.driver_feature_select,
        config_msix_vector=transport.config_vector,
        num_queues=transport.num_queues,
        queue_select=transport.queue_select,
        device_status=transport.status,
        config_generation=transport.generation,
        device_config=transport.device.read_config(0, transport.config_length),
        queues=[queue.capture() for queue in transport.queues.values()],
        isr=transport.isr,
        config_changed=transport.config_owed,
        content=transport.device.mark().name,
        device=transport.device.capture_fields(since) if own_fields else [],
    )


def check(transport: Transport, state: FunctionState) -> None:
    """Raise `InvalidField`, with the reason, for a state that the function cannot be in."""
    if state.virtio_id != transport.device.virtio_id:
        raise InvalidField(f"device type {state.virtio_id}, here it is {transport.device.virtio_id}")
    features_ok = state.device_status & virtio.STATUS_FEATURES_OK
    legacy = transport.transitional and not features_ok
    if state.legacy and not legacy:
        raise InvalidField("it runs without FEATURES_OK, as by a legacy driver, and none can come here")
    offered = legacy_features(transport.offered) if legacy else transport.offered
    if not state.legacy:
        # A legacy driver that has not begun yet cannot be told from another one.
        offered |= transport.offered
    extra = state.driver_features & ~offered
    if extra:
        raise InvalidField(f"driver features {extra:#x} are not offered here")
    if not transport.legal_status(state.device_status, legacy=legacy):
        raise InvalidField(f"no driver can have reached device status {state.device_status:#x}")
    if features_ok and not state.driver_features >> virtio.F_VERSION_1 & 1:
        raise InvalidField("FEATURES_OK without VERSION_1")
    if (features_ok or state.legacy) and (reason := transport.device.acceptable(state.driver_features)):
        raise InvalidField(f"driver features {state.driver_features:#x}: {reason}")
    if state.num_queues != transport.num_queues:
        raise InvalidField(f"{state.num_queues} queues, here there are {transport.num_queues}")
    vectors = [state.config_msix_vector]
    for entry in state.queues:
        queue = transport.queues.get(entry.index)
        if queue is None:
            raise InvalidField(f"queue {entry.index} does not exist here")
        queue.check(entry, state.driver_features)
        vectors.append(entry.msix_vector)
    for vector in vectors:
        if transport.bus.msix_vectors <= vector != virtio_pci.NO_VECTOR:
            raise InvalidField(f"MSI-X vector {vector}, here there are {transport.bus.msix_vectors}")
    transport.device.check(state.device_config, state.device)
