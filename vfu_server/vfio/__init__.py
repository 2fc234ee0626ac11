"""What knows libvfio-user: the extension modules and the C around the library."""
