# Runs in the guest: the first virtio device changes hands, and the driver says what it found.
set -e
cd /sys/bus/virtio/drivers
echo virtio0 > virtio_blk/unbind
echo virtio0 > capacity/bind
dmesg | grep -o 'capacity: .* sectors'
