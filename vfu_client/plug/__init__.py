"""The functions of a server become a guest's devices, on QEMU's command line or while it runs: vfu-qemu."""
