"""Drivers and clients that break every rule: they harm their own function, and no other."""
