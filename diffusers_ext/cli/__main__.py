"""`python -m diffusers_ext.cli`: the same as `diffusers-ext`."""

import sys

from . import run

sys.exit(run())
