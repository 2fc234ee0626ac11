"""The admin virtqueue of a physical function: frame, header checks, command sets."""
