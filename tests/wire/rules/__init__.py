"""Each mistake of a driver's author is told: by rule and place, and with what the device does."""
