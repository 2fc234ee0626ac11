"""A client of vfio-user, and PCI through it: configuration space, BARs, interrupts, guest memory."""
