"""A driver's author edits, builds, boots and reads a verdict, with `vfu-boot`."""
