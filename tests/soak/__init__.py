"""Hours of a guest's life: moves of it, under traffic, while all that takes part is killed at random."""
