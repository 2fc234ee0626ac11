"""SR-IOV for a guest: what it and its clients see agrees, and ECAM is found or not, but never guessed."""
