"""Puts the sources of libvfio-user and json-c, and their licences, into a source distribution as it is made.

`meson dist` runs this, and so do `python -m build` and `pip`: what they make builds without a network.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

SOURCE = Path(os.environ["MESON_SOURCE_ROOT"])
DIST = Path(os.environ["MESON_DIST_ROOT"])

sys.path.insert(0, str(SOURCE))

from vfu_images import libvfio_user  # noqa: E402 - of this clone
from vfu_images.workspace import SetupError, locked  # noqa: E402

NEEDED = {
    "libvfio-user": ("meson.build", "LICENSE", "lib/*.[ch]", "include/**/*.h"),
    "json-c": ("meson.build", "COPYING", "*.[ch]", "json.h.cmakein"),
}
"""The files of each that its build needs."""

LICENSES = {"libvfio-user": "LICENSE", "json-c": "COPYING"}


def main() -> int:
    """Fetch what is not there, and copy it. Returns the exit status."""
    try:
        with locked():
            libvfio_user.prepare()
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    for name, patterns in NEEDED.items():
        origin, copy = (root / "subprojects" / name for root in (SOURCE, DIST))
        for path in (path for pattern in patterns for path in origin.glob(pattern)):
            target = copy / path.relative_to(origin)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        shutil.copyfile(origin / LICENSES[name], DIST / f"LICENSE.{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
