"""Brings an SSH server and client, with which a demo joins two hosts, where the machine has not both."""

from __future__ import annotations

import os
import shutil

from vfu_images import private
from vfu_images.debian import Debian
from vfu_images.qemu import HOST
from vfu_images.workspace import CACHE, IMAGES, say, write_file

ROOT = CACHE / "openssh"
PACKAGES = ("openssh-server",)
"""It needs the client's package."""

SSHD, SSH, KEYGEN = "sshd", "ssh", "ssh-keygen"
FOLDERS = {SSHD: "usr/sbin", SSH: "usr/bin", KEYGEN: "usr/bin"}
OPTIONS = {
    SSHD: ' -o "SshdSessionPath=$root/usr/lib/openssh/sshd-session"'
    ' -o "SshdAuthPath=$root/usr/lib/openssh/sshd-auth"'
}
"""What a server needs that is elsewhere than it was built for: it runs these for each connection."""

PRIVATE = """\
#!/bin/sh
root=$(readlink -f "$(dirname "$(readlink -f "$0")")/../{root}")
exec "$root/{path}"{options} "$@"
"""


def prepare(debian: Debian) -> None:
    """Leave executables `sshd`, `ssh` and `ssh-keygen` in build/images. Raises SetupError."""
    # An ordinary user's PATH has no servers.
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
    own = {name: shutil.which(name, path=path) for name in FOLDERS}
    if all(own.values()):
        scripts = {name: HOST.format(path=path) for name, path in own.items()}
    else:
        debian.unpack(PACKAGES, ROOT)
        private.make_runnable(ROOT)
        root = ROOT.relative_to(IMAGES.parent)
        scripts = {
            name: PRIVATE.format(root=root, path=f"{folder}/{name}", options=OPTIONS.get(name, ""))
            for name, folder in FOLDERS.items()
        }
    for name, script in scripts.items():
        write_file(IMAGES / name, script, 0o755)
    say("SSH: the machine's own" if all(own.values()) else f"SSH: a private one of Debian {debian.suite}")
