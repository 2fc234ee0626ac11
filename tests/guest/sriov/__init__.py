"""A guest's own SR-IOV: its PF's VFs are VFs to it, however they came, and whatever becomes of them."""
