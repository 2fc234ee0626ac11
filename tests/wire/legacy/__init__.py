"""Drivers of the time before virtio 1.0 can use network VFs, through the PF's admin queue (`--legacy`)."""
