"""What happens besides the steps of a run: one callback per file."""

from .base import EVENTS, Callbacks, TrainerCallback, check_callback
from .checkpoints import CheckpointCallback, SnapshotCallback
from .diagnostics import ConditionCheckCallback, DiagnosticsCallback
from .efficiency import EfficiencyCallback
from .evaluation import SampleEvaluationCallback
from .logging import LoggingCallback
from .pipelines import FiguresCallback, PipelineCallback, PushCallback
from .previews import PreviewCallback
from .reconstruction import ReconstructionCallback
from .validation import ValidationCallback

__all__ = [
    "EVENTS",
    "Callbacks",
    "CheckpointCallback",
    "ConditionCheckCallback",
    "DiagnosticsCallback",
    "EfficiencyCallback",
    "FiguresCallback",
    "LoggingCallback",
    "PipelineCallback",
    "PreviewCallback",
    "PushCallback",
    "ReconstructionCallback",
    "SampleEvaluationCallback",
    "SnapshotCallback",
    "TrainerCallback",
    "ValidationCallback",
    "check_callback",
]
