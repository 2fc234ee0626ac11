"""The block device: each request is answered as virtio says, and a disk keeps what it was given."""
