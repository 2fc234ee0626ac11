"""Fuzzers that attack the device through its queues, in this process and as a real server (README in __main__)."""
