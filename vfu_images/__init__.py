"""What guests run and what the build needs: QEMU, a kernel, an initramfs, libvfio-user's source.

Standard library only, so that it runs before any virtual environment exists: `python3 -m images --help`.
"""
