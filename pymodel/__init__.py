"""The device model: a virtio PCI physical function and its virtual functions. It does no I/O."""
