"""What builds a module for the usual guest's kernel: its headers, and the compiler that they ask for.

`build/images/kbuild M=FOLDER modules` is Kbuild with them; of the machine it takes only make, a shell and
the like.
"""

from __future__ import annotations

import shutil

from vfu_images import private
from vfu_images.debian import Debian
from vfu_images.initramfs import ROOT as GUEST_ROOT
from vfu_images.initramfs import Kernel
from vfu_images.workspace import CACHE, IMAGES, SetupError, say, write_file

HEADERS = CACHE / "kernel-headers"
KBUILD = "kbuild"
"""The command, in HEADERS; build/images has a link to it."""

SCRIPT = """\
#!/bin/sh
# Kbuild for the guest's kernel {release}.
root=$(dirname "$(readlink -f "$0")")
kernel=$root/lib/modules/{release}
# Beside the source, if no MO= says otherwise: Kbuild would build in the folder where it is called, and
# write over a Makefile there.
source= output=
for word; do
    case $word in
    M=*) source=${{word#M=}} ;;
    MO=*) output=$word ;;
    esac
done
test -n "$output" || test -z "$source" || set -- "$@" "MO=$source"
# Neither the machine's compiler nor the settings of a make around this one.
exec env -i PATH="$root/usr/bin:$PATH" HOME="$HOME" TMPDIR="${{TMPDIR:-/tmp}}" LC_ALL=C.UTF-8 \
    make -f "$kernel/source/Makefile" KBUILD_OUTPUT="$kernel/build" "$@"
"""


def prepare(debian: Debian) -> None:
    """Leave HEADERS (300 MB) and `build/images/kbuild`. `initramfs.prepare` goes before.

    Raises SetupError when a package or make is missing.
    """
    if shutil.which("make") is None:
        raise SetupError("make is not installed; install the package make")
    release = Kernel.of(GUEST_ROOT).modules.name
    try:
        debian.unpack([f"linux-headers-{release}", "binutils"], HEADERS)
    except SetupError as error:
        raise SetupError(
            f"{error}\nWhere the suite has a newer kernel by now than {release}, remove {GUEST_ROOT} first."
        ) from error
    # The last step: where it is there, all is.
    script = SCRIPT.format(release=release)
    if not (HEADERS / KBUILD).is_file() or (HEADERS / KBUILD).read_text() != script:
        private.make_runnable(HEADERS)
        write_file(HEADERS / KBUILD, script, 0o755)
    link = IMAGES / KBUILD
    if not link.is_symlink():
        link.symlink_to(f"../{CACHE.name}/{HEADERS.name}/{KBUILD}")
    say(f"kernel headers: {link}")
