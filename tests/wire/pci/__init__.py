"""A function as a PCI core meets it: configuration space, interrupts, SR-IOV, the window on its BARs."""
