"""What builds and boots guests for people: its command line."""
