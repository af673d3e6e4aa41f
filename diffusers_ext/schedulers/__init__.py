"""Schedulers on a noise path."""

from .noise_path import (
    PREDICTION_TYPES,
    SCHEDULES,
    DiscretePath,
    NoisePath,
    RectifiedFlowPath,
    SubVariancePreservingPath,
    VarianceExplodingPath,
    VariancePreservingPath,
)
from .scheduling_ancestral import AncestralDDPMScheduler
from .scheduling_langevin import GuidedLangevinScheduler
from .scheduling_mix import MixScheduler
from .scheduling_score_sde import ScoreSDEScheduler
from .scheduling_subsequence import SubsequenceDDIMScheduler

__all__ = [
    "PREDICTION_TYPES",
    "SCHEDULES",
    "AncestralDDPMScheduler",
    "DiscretePath",
    "GuidedLangevinScheduler",
    "MixScheduler",
    "NoisePath",
    "RectifiedFlowPath",
    "ScoreSDEScheduler",
    "SubVariancePreservingPath",
    "SubsequenceDDIMScheduler",
    "VarianceExplodingPath",
    "VariancePreservingPath",
]
