"""`python -m diffusers_ext`: the same as `diffusers-ext`, for launchers that start modules."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
