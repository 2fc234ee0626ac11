"""One function as PCI sees it: configuration space, the gate to guest memory, VFs that come and go."""
