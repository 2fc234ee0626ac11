"""What drivers must do, as far as a device can see it, and who did otherwise (`--check-driver`)."""
