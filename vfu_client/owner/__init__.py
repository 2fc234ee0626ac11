"""The driver of a physical function: its admin queue, and contexts for people to read."""
