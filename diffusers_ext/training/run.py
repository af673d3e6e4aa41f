"""What a run consists of: its ingredients, and the parts that work on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator

from ..data.base import TrainingData
from .agreement import Processes
from .batches import Batches
from .binding import ConditionBinding
from .callbacks import Callbacks, PipelineCallback
from .checkpointing import Checkpoints
from .conditioning import Conditioning
from .diagnostics import Diagnostics
from .folder import OutputFolder
from .losses import LossReader
from .precision import Mode
from .recording import Recorder
from .sample_evaluation import SampleEvaluation
from .state import TrainerControl, TrainerState
from .stepping import Step
from .weights import Weights


@dataclass(eq=False)
class Ingredients:
    """What the user brings, or else what the settings say.

    Attributes:
        train_dataset, eval_dataset: the latter may be None.
        conditioning: how the condition is used.
        network: what is trained, with what its condition trains along.
        objective: gives the loss per sample.
        names: of the model's class and of the objective, as checkpoints remember them.
    """

    train_dataset: TrainingData
    eval_dataset: TrainingData | None
    conditioning: Conditioning
    network: Any
    objective: Any
    pipeline_of: Callable[[Any], Any]
    names: dict[str, str]

    @property
    def shown_data(self) -> TrainingData:
        """What samples are compared with: held-out data where there are any."""
        return self.train_dataset if self.eval_dataset is None else self.eval_dataset


@dataclass(eq=False)
class Run:
    """The parts of a run. `Trainer` needs no settings beside them; see the parts' classes for what they do.

    Attributes:
        accumulation: batches per optimizer step.
        seconds_probing: that the choice of the mode took.
        written_every: after how many steps something is written, of everything that is.
        max_seconds: of training, or None.
        resume_from: "latest", the path of a checkpoint, or None.
        exporter: the callback that saves the pipeline.
        evaluation: of generated samples, or None.
    """

    ingredients: Ingredients
    accelerator: Accelerator
    processes: Processes
    folder: OutputFolder
    accumulation: int
    mode: Mode
    seconds_probing: float
    state: TrainerState
    batches: Batches
    binding: ConditionBinding
    weights: Weights
    step: Step
    recorder: Recorder
    reader: LossReader
    diagnostics: Diagnostics
    written_every: list[int]
    max_seconds: float | None
    resume_from: str | None
    control: TrainerControl = field(default_factory=TrainerControl)
    callbacks: Callbacks = field(init=False)
    exporter: PipelineCallback = field(init=False)
    checkpoints: Checkpoints = field(init=False)
    evaluation: SampleEvaluation | None = None
