"""What guests say to each other arrives byte for byte."""
