"""`python -m streamfleet_drivers` is the command `streamfleet`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
