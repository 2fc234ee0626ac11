"""Fuzzers that attack the device through its queues, in this process and as a server (see `__main__`)."""
