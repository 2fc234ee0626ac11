"""Moves of a running QEMU guest with its VFs."""
