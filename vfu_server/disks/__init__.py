"""Disks of virtio-blk functions: the option, image files, and the threads that wait for them."""
