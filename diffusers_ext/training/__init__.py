"""Training: settings and what the user brings in, a saved pipeline out."""

from .agreement import TrainingFailed
from .arguments import TrainingArguments, parse_arguments
from .callbacks import TrainerCallback
from .interruption import TrainingInterrupted
from .losses import TrainingDiverged
from .state import TrainerControl, TrainerState
from .trainer import Trainer, train

__all__ = [
    "Trainer",
    "TrainerCallback",
    "TrainerControl",
    "TrainerState",
    "TrainingArguments",
    "TrainingDiverged",
    "TrainingFailed",
    "TrainingInterrupted",
    "parse_arguments",
    "train",
]
