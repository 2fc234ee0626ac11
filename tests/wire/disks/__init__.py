"""virtio-blk and the disks behind it: data ends up where it belongs, and a slow disk holds up only itself."""
