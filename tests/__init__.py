"""All tests: each ring of them (model, wire, guest) stands closer to what a user has."""
