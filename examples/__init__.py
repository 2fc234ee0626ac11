"""Device types of one's own: docs/own-device.md walks through them."""
