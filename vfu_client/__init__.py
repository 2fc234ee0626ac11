"""The driver's side: a vfio-user client, virtio drivers on it, the owner driver of a PF, moves of guests.

Imports `pymodel.spec` (numbers of the standards) and nothing else of the model. The drivers can be had
from here; all else from where it stands.
"""

from vfu_client.drivers.block import BlockDriver
from vfu_client.drivers.net import NetDriver
from vfu_client.owner.owner import OwnerDriver
from vfu_client.owner.parts import DeviceParts

__all__ = ["BlockDriver", "DeviceParts", "NetDriver", "OwnerDriver"]
