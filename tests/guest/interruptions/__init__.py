"""What stops a function under its guest and sets it going again; where I/O can go on, it does."""
