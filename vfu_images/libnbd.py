"""Brings libnbd, with which `vfu-server` reaches disks of NBD servers, where the system has none."""

from __future__ import annotations

import ctypes

from vfu_images.debian import Debian
from vfu_images.sources import own_release
from vfu_images.workspace import CACHE, say, shown

SONAME = "libnbd.so.0"
PACKAGES = ("libnbd0",)
ROOT = CACHE / "libnbd"


def prepare() -> None:
    """Leave the library and all it needs below ROOT, of this machine's release, unless the system has it.

    Raises SetupError.
    """
    try:
        ctypes.CDLL(SONAME)
    except OSError:
        Debian(own_release()).unpack(PACKAGES, ROOT)
        say(f"libnbd: {shown(ROOT)}")
    else:
        say("libnbd: the machine's own")
