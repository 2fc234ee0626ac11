"""What a VMM says to a function, in order: python examples/client.py DIR/vf1.sock."""

import sys

from vfu_client import BlockDriver
from vfu_client.vfio.memory import GuestMemory
from vfu_client.virtio.function import VirtioPci

memory = GuestMemory()
region = memory.add_region(16 << 20)  # a memfd: the guest's memory
with VirtioPci.open(sys.argv[1], memory=memory) as device:  # VERSION, DMA_MAP with the memfd
    server = device.connection
    print(f"memory at {region.address:#x}, {server.device_info()}")
    for index in (0, 2, 7):  # BARs 0 and 2, configuration space
        print(server.region_info(index))
    print(server.irq_info(2))  # MSI-X
    disk = BlockDriver(device)  # eventfds, Bus Master, features, queues, DRIVER_OK
    disk.write(0, b"hello".ljust(512))
    print(disk.capacity, "sectors,", disk.read(0)[:5].tobytes())
    server.device_reset()  # DEVICE_RESET, what a VMM sends when the machine is reset
    print("status", device.status)
