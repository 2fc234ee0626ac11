"""All C: libvfio-user with the guards around it (`_vfu`), and guest memory, which does not know it."""
