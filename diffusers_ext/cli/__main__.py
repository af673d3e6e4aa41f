"""`python -m diffusers_ext.cli`: the same as `diffusers-ext`."""

import sys

from .program import main

sys.exit(main())
