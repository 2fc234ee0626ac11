"""A QEMU that runs already, from outside: its monitor, its door for tests, its PCI buses."""
