"""From settings, and what the user brings, to the parts of a run: the only place that reads the settings.

One file per thing that is built, in the order of `build_run` (in `run`): `machine`; `data`, `condition`, `network`,
`scheduler` and `objective`, which are the `ingredients`; `optimizer`; `callbacks`; `checkpoints`. Every part takes a
few plain arguments, so that it can also be built by hand.
"""

from .objective import make_objective
from .run import build_run

__all__ = ["build_run", "make_objective"]
