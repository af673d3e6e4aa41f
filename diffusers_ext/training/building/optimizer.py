"""What moves the weights of a run: the optimizer, its learning rate, and the averages that follow."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers.optimization import get_scheduler

from ..arguments import TrainingArguments
from ..ema import ExponentialMovingAverage, PowerFunctionAverage, WeightAverage
from ..muon import Muon
from ..sharding import own_parameters
from ..state import TrainerState

logger = logging.getLogger(__name__)


def make_optimizer(args: TrainingArguments, device: torch.device, network: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the network's parameters, in one kernel where the device has one."""
    options: dict[str, Any] = {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "weight_decay": args.adam_weight_decay,
        "eps": args.adam_epsilon,
        "fused": device.type in ("cpu", "cuda"),
    }
    if args.optimizer == "muon":
        return Muon(network, **options)
    return torch.optim.AdamW(network.parameters(), **options)


def count_steps(args: TrainingArguments, batches_per_epoch: int, accumulation: int, speaks: bool) -> int:
    """Optimizer steps of the run; where it `speaks`, it warns of epochs that end it early."""
    per_run = math.ceil(args.num_epochs * batches_per_epoch / accumulation)
    if args.max_train_steps and args.max_train_steps > per_run and speaks:
        logger.warning(
            "num_epochs %d ends the run after %d steps, before max_train_steps %d; raise num_epochs to train longer.",
            args.num_epochs,
            per_run,
            args.max_train_steps,
        )
    return min(per_run, args.max_train_steps) if args.max_train_steps else per_run


def make_learning_rate(args: TrainingArguments, state: TrainerState) -> Callable[[], float]:
    """The learning rate of the next step, by diffusers' schedules.

    Under a time budget it decays with the larger share of steps and seconds.
    """
    warmup = min(args.lr_warmup_steps, state.max_steps)
    stand_in = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    scheduler = get_scheduler(args.lr_scheduler, stand_in, num_warmup_steps=warmup, num_training_steps=state.max_steps)
    factor, limit, max_steps = scheduler.lr_lambdas[0], args.max_train_seconds, state.max_steps

    def rate() -> float:
        step = state.global_step
        if limit and step >= warmup:
            share = min(1.0, state.seconds / limit)
            step = max(step, int(warmup + share * (max_steps - warmup)))
        return args.learning_rate * factor(step)

    return rate


def make_averages(
    args: TrainingArguments, network: torch.nn.Module
) -> tuple[list[WeightAverage], WeightAverage | None]:
    """The averages that follow the weights, and the one of them that is evaluated and saved, or None."""
    power: list[WeightAverage] = []
    if args.ema_snapshots is not None or (args.use_ema and args.ema_kind == "power"):
        power = [PowerFunctionAverage(own_parameters(network), sigma_rel) for sigma_rel in args.ema_sigma_rel]
    if not args.use_ema:
        return power, None
    if args.ema_kind == "power":
        return power, power[0]
    decay = args.ema_inv_gamma, args.ema_power, args.ema_max_decay, args.ema_update_after_step
    ema = ExponentialMovingAverage(own_parameters(network), *decay)
    return [*power, ema], ema
