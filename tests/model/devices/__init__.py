"""Device types between their buffers and what they stand on."""
