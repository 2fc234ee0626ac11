"""A member that is moved: its modes, its context to the byte, and no trace of what was refused."""
