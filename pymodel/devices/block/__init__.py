"""The block device, and what the disk under it has to be."""
