"""Linux in QEMU: what a guest may count on, from its boot to its move."""
