"""Training: settings in, a saved pipeline out."""

from .arguments import ConditionalTrainingArguments, TrainingArguments, parse_arguments
from .interruption import TrainingInterrupted
from .trainer import Trainer, TrainingDiverged, train

__all__ = [
    "ConditionalTrainingArguments",
    "Trainer",
    "TrainingArguments",
    "TrainingDiverged",
    "TrainingInterrupted",
    "parse_arguments",
    "train",
]
