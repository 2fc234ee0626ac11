"""Virtio over PCI from the driver's side: structures, initialization, virtqueues."""
