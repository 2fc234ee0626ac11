"""A function as a good virtio driver meets it: common configuration, notifications, every kind of ring."""
