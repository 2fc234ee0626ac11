"""The demo: a guest that writes to a VF moves to another QEMU and server and back, and nothing is lost."""
