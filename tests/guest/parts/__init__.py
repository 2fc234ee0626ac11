"""Upstream Linux moves VFs by device parts: its virtio_vfio_pci, in a stock guest, while they are busy."""
