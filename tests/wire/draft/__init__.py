"""The draft of 2023 and the admin queue below it: each of its requirements is met, by ID."""
