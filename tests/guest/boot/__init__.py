"""A guest finds its functions, takes what they offer, starts from them, and starts again."""
