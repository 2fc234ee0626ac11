"""The network device, and what the port under it has to be."""
