"""Virtio 1.4's capabilities, resource objects and device parts: each of their rules is met, by ID."""
