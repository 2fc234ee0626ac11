"""Drivers of device types."""
