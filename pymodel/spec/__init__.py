"""Numbers and layouts of the standards, one file for each standard noun; no logic, no choices of ours.

Virtio means version 1.4 (committee specification 01); sections are cited by title.
"""
