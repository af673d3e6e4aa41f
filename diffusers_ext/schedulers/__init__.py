"""Noise paths, predictions, and schedulers on them."""

from .continuous_path import (
    RectifiedFlowPath,
    SubVariancePreservingPath,
    VarianceExplodingPath,
    VariancePreservingPath,
)
from .noise_path import DiscretePath, NoisePath
from .prediction import PREDICTION_TYPES, Prediction
from .schedules import SCHEDULES
from .scheduling_ancestral import AncestralDDPMScheduler
from .scheduling_flow_map import FlowMapScheduler
from .scheduling_flow_match import FlowMatchScheduler
from .scheduling_langevin import GuidedLangevinScheduler
from .scheduling_mix import MixScheduler
from .scheduling_score_sde import ScoreSDEScheduler
from .scheduling_subsequence import SubsequenceDDIMScheduler

__all__ = [
    "PREDICTION_TYPES",
    "SCHEDULES",
    "AncestralDDPMScheduler",
    "DiscretePath",
    "FlowMapScheduler",
    "FlowMatchScheduler",
    "GuidedLangevinScheduler",
    "MixScheduler",
    "NoisePath",
    "Prediction",
    "RectifiedFlowPath",
    "ScoreSDEScheduler",
    "SubVariancePreservingPath",
    "SubsequenceDDIMScheduler",
    "VarianceExplodingPath",
    "VariancePreservingPath",
]
