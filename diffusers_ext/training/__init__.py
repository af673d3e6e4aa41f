"""Training: settings in, a saved pipeline out."""

from .arguments import TrainingArguments, parse_arguments
from .interruption import TrainingInterrupted
from .trainer import Trainer, TrainingDiverged, train

__all__ = [
    "Trainer",
    "TrainingArguments",
    "TrainingDiverged",
    "TrainingInterrupted",
    "parse_arguments",
    "train",
]
