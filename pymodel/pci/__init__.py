"""PCI functions: configuration space, capabilities, interrupts, resets and power states."""
