"""The driver of a physical function: its admin queue, device parts, and what people read."""
