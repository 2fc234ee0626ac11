"""The monitor: what is asked of a running server over QMP."""
