"""Serves the device model over vfio-user: the extension around libvfio-user, threads, backends, command."""
