"""Virtio over PCI: what the virtio structures in a function's BAR do."""
