"""Ports of virtio-net functions: the options, the switch, taps and Unix sockets."""
