"""Device types: what one is, a folder for each, and the table of them."""
