"""Drivers that are not this Linux: firmware, boot loaders, older kernels, a guest with an IOMMU.

What takes longer than some seconds is in the files `slow_*.py`, which only `make compat` runs. What is marked
with `driver` is a row of docs/compatibility.md.
"""
