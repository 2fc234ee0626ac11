"""The driver's side: a vfio-user client, virtio drivers on it, and the owner driver of a PF.

Imports `pymodel.spec` (numbers of the standards) and nothing else of the model.
"""
