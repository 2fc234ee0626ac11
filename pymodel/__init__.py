"""The device model: a virtio PCI physical function and its virtual functions. It does no I/O."""

__version__ = "0.1.0"
