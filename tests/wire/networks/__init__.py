"""virtio-net and what it is connected to: the switch, taps, sockets, from the command line to the driver."""
