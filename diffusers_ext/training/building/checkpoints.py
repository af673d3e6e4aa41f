"""The checkpoints of a run: which of its parts must survive a kill, and what they remember of its settings."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ...settings import settings_of
from ...settings.declaration import NAMED, REFUSED
from ..arguments import TrainingArguments
from ..checkpointing import Checkpoints
from ..ema import PowerFunctionAverage
from ..precision import Mode
from ..resume import RunDescription
from ..run import Run
from ..state import Stateful
from ..unfinished import SAMPLING, PipelineDescription
from ..weights import AverageState, OptimizerState


def make_checkpoints(args: TrainingArguments, run: Run) -> Checkpoints:
    """Checkpoints of the parts that must survive a kill. What refuses another run comes first."""
    network, objective, optimizer = run.weights.network, run.ingredients.objective, run.step.optimizer
    parts: dict[str, Stateful] = {"run": _describe(args, run), "trainer": run.state, "mode": _ModeState(run.mode)}
    parts["model"], parts["optimizer"] = run.weights, OptimizerState(getattr(optimizer, "optimizer", optimizer))
    if run.accelerator.scaler is not None:
        parts["scaler"] = _Optional(run.accelerator.scaler)
    saved = None  # the name of the average that is evaluated and saved
    for average in run.step.averages:
        name = f"ema-{average.sigma_rel:g}" if isinstance(average, PowerFunctionAverage) else "ema"
        parts[name] = AverageState(average, network)
        saved = name if average is run.weights.ema else saved
    if isinstance(objective, Stateful):
        parts["objective"] = _Optional(objective)
    parts["batches"] = run.batches
    sampling = {name: getattr(args, name) for name in SAMPLING}
    parts["pipeline"] = PipelineDescription(run.ingredients.pipeline_of, run.weights.described, saved, sampling)
    parts.update(run.callbacks.parts())
    return Checkpoints(
        run.folder.path,
        parts,
        run.state,
        run.recorder,
        run.processes,
        lambda: (run.state.global_step, run.callbacks.stage()),
        args.checkpoints_total_limit,
        lambda path: run.callbacks.fire("on_save", checkpoint=path),
    )


def _describe(args: TrainingArguments, run: Run) -> RunDescription:
    """What a checkpoint remembers of the settings and the data; `on_resume` of each setting says what it refuses."""
    data = run.ingredients.train_dataset
    in_use = {
        **run.ingredients.names,
        "schedule": args.noise_schedule,
        "loss_weighting": args.weighting,
        "gradient_accumulation_steps": run.accumulation,
    }
    meaning = {
        "the training data": data.fingerprint(),
        **_settings_in_use(args, REFUSED, in_use),
        "classes": getattr(data, "label_names", None) if args.condition == "class" else None,
    }
    named = {**_settings_in_use(args, NAMED, in_use), "the number of processes": run.processes.count}
    return RunDescription(meaning, named, {"the training data": f"'{data.description}'"})


def _settings_in_use(args: TrainingArguments, on_resume: str, in_use: dict[str, Any]) -> dict[str, Any]:
    """The values of the settings of one kind; `in_use` gives those that settings only lead to."""
    names = [name for name, setting in settings_of(type(args)).items() if setting.on_resume == on_resume]
    return {name: in_use.get(name, getattr(args, name)) for name in names}


class _Optional:
    """A part that begins anew where a checkpoint has no state of it."""

    def __init__(self, part: Stateful):
        self.state_dict, self.load_state_dict = part.state_dict, part.load_state_dict

    def start_afresh(self) -> None:
        """It begins anew."""


class _ModeState:
    """How the steps of a run are computed; a run that goes on takes it up before the network is prepared for it."""

    def __init__(self, mode: Mode):
        self._mode = mode

    def state_dict(self) -> dict[str, Any]:
        """The mode."""
        return asdict(self._mode)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """It has been taken up."""
