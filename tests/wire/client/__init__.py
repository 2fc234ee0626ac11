"""Our client alone: what it says, how it fails, and what it tells people of contexts and moves."""
