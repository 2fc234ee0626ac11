"""A guest has SR-IOV of its own: its VFs are VFs to it, and stay right through all that it does to them."""
