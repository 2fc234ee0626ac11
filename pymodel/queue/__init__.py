"""Virtqueues, from the device's side."""
