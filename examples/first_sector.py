"""A small driver of a disk, which breaks rules: docs/driver-author.md."""

from __future__ import annotations

import struct
import sys

from vfu_client.virtio.function import VirtioPci

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK = 1, 2, 4, 8
VERSION_1, ACCESS_PLATFORM = 32, 33
IN = 0

with VirtioPci.open(sys.argv[1]) as device:
    common = device.common
    device.function.set_command(6)  # Memory Space Enable, Bus Master Enable
    device.reset()
    device.enable_interrupts()
    common.write("device_status", ACKNOWLEDGE)
    common.write("device_status", ACKNOWLEDGE | DRIVER)
    device.features = common.features() & (1 << VERSION_1 | 1 << ACCESS_PLATFORM)
    common.accept(device.features)
    common.write("device_status", ACKNOWLEDGE | DRIVER | FEATURES_OK)
    queue = device.setup_queue(0, size=8)
    common.write("device_status", ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)

    sectors = device.config_read(0, 4) | device.config_read(4, 4) << 32
    header, data, status = (device.memory.allocate(size) for size in (16, 512, 1))
    header.view[:] = list(struct.pack("<IIQ", IN, 0, sectors))
    status.view[0] = 0xFF
    queue.add([header.segment], [data.segment, status.segment])
    queue.kick()
    (done,) = queue.wait(5)
    print(f"{sectors} sectors; {done.length} bytes used, status {status.view[0]}")
    sys.exit(int(status.view[0]))
