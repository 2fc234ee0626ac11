"""Serves the device model over vfio-user: sockets and threads, disks and networks, monitor, command line."""
