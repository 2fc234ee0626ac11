"""`python3 -m images`, in a clone of the project: see `vfu_images`, which is what is installed."""

import sys

from vfu_images.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
