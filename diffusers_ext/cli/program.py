"""`diffusers-ext`: sample, compare, draw and convert from the command line."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import HfArgumentParser

from ..training.allocator import keep_freed_memory


@dataclass
class ScheduleArguments:
    """Draw noise schedules: betas and alphas_cumprod."""

    schedules: list[str] = field(
        default_factory=lambda: ["linear", "cosine", "quadratic", "exponential", "sigmoid", "sigmoid_alpha_bar"],
        metadata={"help": "Schedules by name."},
    )
    num_train_timesteps: int = field(default=1000, metadata={"help": "T."})
    beta_start: float = field(default=1e-4, metadata={"help": "First beta of schedules between two betas."})
    beta_end: float = field(default=0.02, metadata={"help": "Last beta of schedules between two betas."})
    output: str = field(default="schedules.png", metadata={"help": "The picture to write."})


@dataclass
class ConvertArguments:
    """Turn another project's checkpoint, or a diffusers folder, into a pipeline."""

    checkpoint: str = field(metadata={"help": "File of weights, or folder of a UNet2DModel or its pipeline."})
    output_dir: str = field(metadata={"help": "Where the pipeline goes."})
    architecture: str | None = field(default=None, metadata={"help": "Preset of the network; detected if not given."})
    weights: str = field(default="ema", metadata={"help": "ema (raw where there are none) or raw."})
    schedule: str | None = field(default=None, metadata={"help": "Noise schedule, where it is another than found."})
    num_train_timesteps: int | None = field(default=None, metadata={"help": "T, where it is another than found."})
    beta_start: float | None = field(default=None, metadata={"help": "First beta of schedules between two betas."})
    beta_end: float | None = field(default=None, metadata={"help": "Last beta of schedules between two betas."})
    schedule_options: str | None = field(default=None, metadata={"help": "JSON object of the schedule's options."})
    prediction_type: str | None = field(default=None, metadata={"help": "epsilon, sample, v_prediction, ..."})
    sample_size: int | None = field(default=None, metadata={"help": "Height and width of the images."})
    model_options: str | None = field(default=None, metadata={"help": "JSON object of the network's configuration."})
    sampler: str = field(default="ddpm", metadata={"help": "Scheduler of the pipeline: ddpm or ddim."})


def schedules(arguments: ScheduleArguments) -> None:
    """Draw betas and alphas_cumprod of named schedules on shared axes."""
    from .. import figures
    from ..schedulers import NoisePath

    curves = {}
    for name in arguments.schedules:
        path = NoisePath.from_schedule(
            name, arguments.num_train_timesteps, beta_start=arguments.beta_start, beta_end=arguments.beta_end
        )
        curves[name] = {"betas": path.betas, "alphas_cumprod": path.alphas_cumprod}
        print(f"{name:20} alphas_cumprod ends at {path.alphas_cumprod[-1]:.3g}")
    figures.plot_schedule(curves, arguments.output)
    print(f"Picture in {arguments.output}")


def convert(arguments: ConvertArguments) -> None:
    """Write the pipeline of a checkpoint, and print what it was found to be."""
    from ..hub.convert import convert as convert_checkpoint

    if arguments.weights not in ("ema", "raw"):
        raise ValueError(f"weights must be ema or raw, got '{arguments.weights}'.")
    pipeline = convert_checkpoint(
        arguments.checkpoint,
        arguments.architecture,
        ema=arguments.weights == "ema",
        schedule=arguments.schedule,
        num_train_timesteps=arguments.num_train_timesteps,
        beta_start=arguments.beta_start,
        beta_end=arguments.beta_end,
        schedule_options=_json_object("schedule_options", arguments.schedule_options),
        prediction_type=arguments.prediction_type,
        sample_size=arguments.sample_size,
        model_options=_json_object("model_options", arguments.model_options),
        sampler=arguments.sampler,
        report=print,
    )
    pipeline.save_pretrained(arguments.output_dir)
    config = pipeline.scheduler.config
    print(f"{type(pipeline.unet).__name__} of {pipeline.unet.num_parameters():,} parameters in {arguments.output_dir}")
    print(
        f"It predicts {config.prediction_type}; {config.num_train_timesteps} timesteps of the noise schedule "
        f"{config.get('beta_schedule', 'of the mix')}"
    )


def _json_object(name: str, text: str | None) -> dict[str, Any] | None:
    try:
        value = None if text is None else json.loads(text)
    except json.JSONDecodeError:
        value = text
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{name} must be a JSON object, got '{text}'.")
    return value


Command = tuple[Callable[[Any], None], Any]

# name -> (function, settings), or where they are: module, function and settings, imported only when they are needed.
COMMANDS: dict[str, Command | str] = {
    "sample": "sample sample SampleArguments",
    "compare": "compare compare CompareArguments",
    "schedules": (schedules, ScheduleArguments),
    "convert": (convert, ConvertArguments),
    "ema": "ema ema EmaArguments",
    "classifier train": "classifier classifier_train ClassifierTrainArguments",
    "evaluate": "evaluate evaluate EvaluateArguments",
    "sweep": "sweep sweep SweepArguments",
    "export": "hub export ExportArguments",
    "push": "hub push PushArguments",
    "card": "hub card CardArguments",
    "restore": "restore restore RestoreArguments",
    "prove": "prove prove ProveArguments",
}


def _command(name: str) -> Command:
    found = COMMANDS[name]
    if not isinstance(found, str):
        return found
    module, function, settings = found.split()
    inside = importlib.import_module(f".{module}", __package__)
    return getattr(inside, function), getattr(inside, settings)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0, or 1 after one sentence on what was wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = next((" ".join(words[:count]) for count in (1, 2) if " ".join(words[:count]) in COMMANDS), None)
    if name is None:
        asked_for_help = bool(words) and words[0] in ("-h", "--help")
        print(f"usage: diffusers-ext {{{','.join(COMMANDS)}}} [--help] ...")
        for known in COMMANDS:
            print(f"  {known:12} {_command(known)[1].__doc__}")
        return 0 if asked_for_help else 2
    function, settings = _command(name)
    parser = HfArgumentParser(settings, prog=f"diffusers-ext {name}", description=settings.__doc__)
    rest = words[len(name.split()) :]
    if hasattr(settings, "POSITIONAL") and rest and not rest[0].startswith("-"):
        rest = [f"--{settings.POSITIONAL}", *rest]
    (arguments,) = parser.parse_args_into_dataclasses(rest)
    keep_freed_memory()
    try:
        function(arguments)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
