"""A running guest moves with its disks and network cards, or goes on where it was; its I/O never notices."""
