"""SR-IOV: the capability of a PF, and what a guest that has both PF and VFs needs beside it."""
