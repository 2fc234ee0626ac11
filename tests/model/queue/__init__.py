"""Virtqueues of both formats: nothing is lost or doubled, and no ring does worse than break its queue."""
