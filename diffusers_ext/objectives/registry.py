"""The objectives by name. A new one is a file with its class, and its line here.

A class is built from a noise path, a `TimestepSampler` as `sampler`, and its own `settings`, which become settings of a
run (see `diffusers_ext.training.arguments`). It may declare what a run with it needs:

- `implied`: settings that take these values when they are not given, and may have no others;
- `preferred`: settings that take these values when they are not given;
- `network_entries`: entries of the network's configuration;
- `network_defaults`: entries that a preset takes unless `model_options` says otherwise;
- `conditional_entries`: further entries of a network with a condition, by the setting whose value they take if it has
  one.
"""

from __future__ import annotations

from typing import Any

from .diffusion import DiffusionObjective
from .flow_map import FlowMapObjective

DIFFUSION = "diffusion"

OBJECTIVES: dict[str, Any] = {DIFFUSION: DiffusionObjective, "flow_map": FlowMapObjective}


def declared(name: str, what: str) -> dict[str, Any]:
    """What the objective `name` declares under one of the names above."""
    return dict(getattr(OBJECTIVES[name], what, {}))
