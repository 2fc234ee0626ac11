"""All that virtio 1.4 asks of drivers, and the rules of `pymodel/rules` that hold them to it.

Each of its words MUST and SHOULD under "driver requirements" is a statement here, in our words, of the basic
facilities, virtio over PCI, block and network devices. A rule sees it broken, or there is a reason why none
does.
"""
