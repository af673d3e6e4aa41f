"""Experiments: many training runs by one description, and one table of their results."""

from .manager import ExperimentManager, StudyFailed
from .study import Experiment, read_study

__all__ = ["Experiment", "ExperimentManager", "StudyFailed", "read_study"]
