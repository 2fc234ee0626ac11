"""A device type of one's own in a few lines is a whole device: driven, reset, checked, traced, migrated."""
