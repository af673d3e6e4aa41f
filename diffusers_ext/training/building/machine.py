"""The machine of a run: processes, precision, and the way in which steps are computed."""

from __future__ import annotations

import importlib.util
import math
import os
import time
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    ProjectConfiguration,
    broadcast_object_list,
)

from .. import checkpoint
from ..arguments import TrainingArguments
from ..batches import Batches
from ..binding import ConditionBinding
from ..precision import Mode, cpu_multiplies_bf16, resolve_mixed_precision
from ..probe import ModeProbe, TrainingSteps, unchanged
from ..run import Ingredients
from ..sharding import uses_fsdp
from .optimizer import make_optimizer

SLOW_BF16 = (
    "This CPU has no instructions for bf16, so a step may take ten times as long as in float32; "
    "--mixed_precision auto chooses the faster of the two."
)


def accumulation_steps(args: TrainingArguments) -> int:
    """Batches per optimizer step, by the settings or by Accelerate's launcher.

    Raises:
        ValueError: when both say it and differ.
    """
    own, name = args.gradient_accumulation_steps, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
    try:
        launcher = int(os.environ.get(name, "1"))
    except ValueError:
        raise ValueError(f"{name} must be a whole number, got '{os.environ[name]}'.") from None
    if launcher < 1:
        raise ValueError(f"{name} must be at least 1, got {launcher}.")
    if launcher != 1 and own not in (1, launcher):
        raise ValueError(
            f"gradient_accumulation_steps is {own}, but {name} of the launcher says {launcher}; give one of both."
        )
    return max(own, launcher)


def make_accelerator(args: TrainingArguments, accumulation: int, mixed_precision: str | None = None) -> Accelerator:
    """Accelerate's object for this run, in another precision than the settings' where one is given."""
    # A notebook may train twice with different precisions; Accelerate's process-wide state would refuse the second.
    AcceleratorState._reset_state()
    log_with = None if args.logger == "none" else args.logger
    if log_with is not None and importlib.util.find_spec(log_with) is None:
        package = "diffusers_ext[train]" if log_with == "tensorboard" else log_with
        raise ImportError(
            f"logger {log_with} needs the package {log_with}: install '{package}', or set logger to none."
        )
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise ValueError("Training under DeepSpeed is not supported; FSDP shards as its ZeRO stage 3 does.")
    accelerator = Accelerator(
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulation),
        mixed_precision=mixed_precision or resolve_mixed_precision(args.mixed_precision),
        log_with=log_with,
        project_config=ProjectConfiguration(args.output_dir, logging_dir=str(Path(args.output_dir) / args.logging_dir)),
        kwargs_handlers=[DistributedDataParallelKwargs()],
        # torchrun on a machine without accelerators: Accelerate would take every process for a run of its own.
        cpu=True if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available() else None,
    )
    uses_fsdp(accelerator)  # on CPUs it has to be taken up
    return accelerator


def choose_mode(
    args: TrainingArguments,
    accelerator: Accelerator,
    ingredients: Ingredients,
    batches: Batches,
    binding: ConditionBinding,
    steps: int,
) -> tuple[Mode, str, float]:
    """How steps are computed, the same on every process; measured where the settings leave it open.

    Args:
        ingredients: what is trained.
        batches, binding: of the run; they give the steps that are timed.
        steps: batches of the whole run.

    Returns:
        The mode, a line on why, and the seconds that the measurement took.
    """
    asked = Mode(accelerator.mixed_precision, bool(args.channels_last))
    # Of a sharded network there is no copy to measure with.
    if args.mixed_precision != "auto" or accelerator.distributed_type == DistributedType.FSDP:
        slow = asked.precision == "bf16" and accelerator.device.type == "cpu" and not cpu_multiplies_bf16()
        return asked, SLOW_BF16 if slow else "", 0.0
    mode, chosen, seconds = _stored_mode(args), "", 0.0
    if mode is None:
        began, limit = time.monotonic(), args.max_train_seconds or math.inf
        ingredients.network.to(accelerator.device)
        batch = batches.first(args.train_batch_size)
        optimizer = partial(make_optimizer, args, accelerator.device)
        trial = TrainingSteps(ingredients.objective, batch, binding.of_training(batch, 0), optimizer)
        probe = ModeProbe(ingredients.network, trial, lambda seconds: min(steps * seconds, limit))
        with unchanged(ingredients.objective):
            mode = probe.choose(args.channels_last)
        seconds = time.monotonic() - began
        chosen = f"{probe} Probed in {seconds:.1f} s."
    (mode,) = broadcast_object_list([mode])
    return mode, f"Steps are computed in {mode}. {chosen}".strip(), seconds


def _stored_mode(args: TrainingArguments) -> Mode | None:
    """The mode of the checkpoint that the run will go on from: in another one it would end with other weights."""
    if args.resume_from_checkpoint is None:
        return None
    named, output_dir = Path(args.resume_from_checkpoint), Path(args.output_dir)
    folders = [named if named.is_dir() else output_dir / named.name]
    if args.resume_from_checkpoint == "latest":
        folders = checkpoint.own_checkpoints(output_dir)[::-1]
    for state in map(checkpoint.read_state, folders):
        if state is not None and "mode" in state:
            return Mode(**state["mode"])
    return None
