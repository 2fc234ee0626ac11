"""Member modes, the device context, and what moving a function needs of it."""
