"""What drivers do, in the words of the standard: accesses by register, for rules and for traces."""
