"""The demo: what it calls a failure, the gaps it measures, and the switch that joins its hosts."""
