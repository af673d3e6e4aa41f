"""Settings of the optimizer and of the averages of weights."""

from dataclasses import dataclass

from ...settings.declaration import FREE, REFUSED
from ..ema import EMA_KINDS, LONGEST_SIGMA_REL
from . import groups, needs

LR_SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")


@dataclass
class OptimisationOptions:
    """How the weights move."""

    seed: int = groups.optimisation(
        0, "Fixes initial weights, data order, noise and augmentation.", at_least=0, short=True
    )
    train_batch_size: int = groups.optimisation(16, "Images per process and step.", at_least=1, short=True)
    num_epochs: int = groups.optimisation(
        100, "Passes through the data.", at_least=1, needs=needs.EPOCHS, short=True, on_resume=FREE
    )
    max_train_steps: int | None = groups.optimisation(
        None, "Stop after this many optimizer steps.", at_least=1, short=True, on_resume=FREE
    )
    max_train_seconds: float | None = groups.optimisation(
        None,
        "Stop after this many seconds of training, resumed parts counted; the learning rate decays in time for it.",
        above=0,
        short=True,
        on_resume=FREE,
    )
    gradient_accumulation_steps: int = groups.optimisation(1, "Batches per optimizer step.", at_least=1)
    optimizer: str = groups.optimisation(
        "adamw",
        "adamw, or muon, which learns faster: AdamW's rates times 2 or 3 suit it.",
        choices=("adamw", "muon"),
        short=True,
        on_resume=REFUSED,
    )
    learning_rate: float = groups.optimisation(1e-4, "Learning rate after warm-up.", above=0, short=True)
    lr_scheduler: str = groups.optimisation(
        "cosine", "How the learning rate falls after warm-up.", choices=LR_SCHEDULERS
    )
    lr_warmup_steps: int = groups.optimisation(500, "Optimizer steps of warm-up.", at_least=0, needs=needs.WARM_UP)
    adam_beta1: float = groups.optimisation(0.95, "Adam's beta1.", at_least=0, below=1)
    adam_beta2: float = groups.optimisation(0.999, "Adam's beta2.", at_least=0, below=1)
    adam_weight_decay: float = groups.optimisation(1e-6, "AdamW's weight decay.", at_least=0)
    adam_epsilon: float = groups.optimisation(1e-8, "Adam's epsilon.", at_least=0)
    max_grad_norm: float = groups.optimisation(1.0, "Gradients are scaled down to this norm.", above=0)
    mixed_precision: str | None = groups.optimisation(
        None,
        "no, fp16, bf16, or auto (what a few timed steps show to be the fastest); the launcher's when not given.",
        choices=("no", "fp16", "bf16", "auto"),
        short=True,
    )
    local_rank: int = groups.optimisation(-1, "Set by launchers.", at_least=-1, on_resume=FREE)
    enable_xformers_memory_efficient_attention: bool = groups.optimisation(
        False, "Use xformers' attention.", on_resume=FREE
    )
    use_ema: bool = groups.average(
        False, "Keep an exponential moving average of the weights, and save and sample that.", short=True
    )
    ema_kind: str = groups.average(
        "warmup",
        "warmup: a decay that grows to ema_max_decay; power: an average over the same share of the run at any time.",
        choices=EMA_KINDS,
        needs=needs.ANY_AVERAGE,
        on_resume=REFUSED,
    )
    ema_sigma_rel: list[float] = groups.average(
        [0.05, 0.1],
        "Lengths of power-function averages, as the standard deviation's share of the training so far; "
        "`--ema_kind power` samples and saves the first.",
        above=0,
        below=LONGEST_SIGMA_REL,
        needs=needs.POWER_AVERAGE,
    )
    ema_snapshots: int | None = groups.average(
        None,
        "Keep the averages of all ema_sigma_rel every so many optimizer steps, of which `diffusers-ext ema` makes one "
        "of any length after training.",
        at_least=1,
    )
    ema_inv_gamma: float = groups.average(
        1.0, "Inverse multiplicative factor of the EMA warm-up.", above=0, needs=needs.WARMUP_AVERAGE
    )
    ema_power: float = groups.average(0.75, "Exponent of the EMA warm-up.", at_least=0, needs=needs.WARMUP_AVERAGE)
    ema_max_decay: float = groups.average(
        0.9999, "Largest EMA decay.", at_least=0, at_most=1, needs=needs.WARMUP_AVERAGE
    )
    ema_update_after_step: int = groups.average(
        0, "Steps before the EMA starts to follow.", at_least=0, needs=needs.WARMUP_AVERAGE
    )
