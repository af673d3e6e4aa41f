"""Settings that a run would pass over in silence: what each needs to have an effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..objectives.timestep_sampling import LOGIT_NORMAL
from ..schedulers.registry import TAKES_SUBSEQUENCE
from ..schedulers.schedules import BETA_RANGE_SCHEDULES
from .arguments import FLAG, TrainingArguments
from .build import makes_toy, noise_schedule, weighting_name


@dataclass(frozen=True)
class Need:
    """What settings need.

    Args:
        names: the settings.
        switches: the settings that decide.
        met: whether `names` have an effect beside the others.
        reason: why not.
        contradiction: whether a flag is refused then, and not only told of.
    """

    names: tuple[str, ...]
    switches: tuple[str, ...]
    met: Callable[[Any], bool]
    reason: str
    contradiction: bool = False


def _weighting(weighting: str, *names: str) -> Need:
    switches = ("loss_weighting", "prediction_type", "schedule")
    return Need(names, switches, lambda a: weighting_name(a) == weighting, f"loss_weighting is not {weighting}")


def _condition(condition: str, *names: str) -> Need:
    return Need(names, ("condition",), lambda a: a.condition == condition, f"condition is not {condition}", True)


_PATH = "schedule schedule_options ddpm_beta_schedule beta_start beta_end rescale_betas_zero_snr ddpm_num_steps"
_OBJECTIVE = "loss_weighting min_snr_gamma p2_gamma p2_k sigmoid_bias edm_sigma_data timestep_sampling"
_TOY = f"{_PATH} {_OBJECTIVE} logit_normal_mean logit_normal_std sampler subsequence"

# A setting is told of by the first entry that it does not meet.
NEEDS = (
    # the network
    Need(
        ("model",),
        ("model_config_name_or_path",),
        lambda a: a.model_config_name_or_path is None,
        "model_config_name_or_path takes its place",
        contradiction=True,
    ),
    Need(
        tuple(_TOY.split()),
        ("model", "model_config_name_or_path"),
        lambda a: not makes_toy(a),
        "the toy network knows no time and has an objective and a sampler of its own",
    ),
    # the noise path and the objective
    Need(
        ("ddpm_beta_schedule",),
        ("schedule",),
        lambda a: a.schedule is None,
        "schedule takes its place",
        contradiction=True,
    ),
    Need(
        ("beta_start", "beta_end"),
        ("schedule", "ddpm_beta_schedule"),
        lambda a: noise_schedule(a) in BETA_RANGE_SCHEDULES,
        f"of the schedules, only {', '.join(BETA_RANGE_SCHEDULES)} lie between two betas",
    ),
    _weighting("min_snr", "min_snr_gamma"),
    _weighting("p2", "p2_gamma", "p2_k"),
    _weighting("sigmoid", "sigmoid_bias"),
    _weighting("edm", "edm_sigma_data"),
    Need(
        ("logit_normal_mean", "logit_normal_std"),
        ("timestep_sampling",),
        lambda a: a.timestep_sampling in LOGIT_NORMAL,
        "timestep_sampling is not (stratified_)logit_normal",
    ),
    # data
    Need(
        ("train_data_dir",),
        ("dataset_name",),
        lambda a: a.dataset_name is None,
        "dataset_name takes its place",
    ),
    Need(
        ("dataset_config_name",),
        ("dataset_name", "train_data_dir"),
        lambda a: a.dataset_name not in (None, "embedded"),
        "dataset_name names no data set that has configurations",
    ),
    Need(("shuffle_buffer_size",), ("streaming",), lambda a: a.streaming, "streaming is off"),
    Need(
        ("num_epochs", "save_images_epochs", "save_model_epochs"),
        ("streaming",),
        lambda a: not a.streaming,
        "a run on a stream is one epoch of max_train_steps",
    ),
    # optimisation
    Need(
        ("lr_warmup_steps",),
        ("lr_scheduler",),
        lambda a: a.lr_scheduler != "constant",
        "lr_scheduler constant has no warm-up; constant_with_warmup has one",
    ),
    Need(
        ("ema_kind",),
        ("use_ema", "ema_snapshots"),
        lambda a: a.use_ema or a.ema_snapshots is not None,
        "use_ema is off",
    ),
    Need(
        ("ema_inv_gamma", "ema_power", "ema_max_decay", "ema_update_after_step"),
        ("use_ema", "ema_kind"),
        lambda a: a.use_ema and a.ema_kind == "warmup",
        "there is no average by use_ema with ema_kind warmup",
    ),
    Need(
        ("ema_sigma_rel",),
        ("use_ema", "ema_kind", "ema_snapshots"),
        lambda a: (a.use_ema and a.ema_kind == "power") or a.ema_snapshots is not None,
        "there is no average by use_ema with ema_kind power, and no ema_snapshots",
    ),
    # validation and output
    Need(
        ("validation_size",),
        ("validation_split", "dataset_name", "train_data_dir"),
        lambda a: a.validation_split is not None or a.uses_embedded_data,
        "there is no validation_split",
    ),
    Need(
        ("save_images_epochs",),
        ("validation_steps",),
        lambda a: a.validation_steps is None,
        "validation_steps takes its place",
    ),
    Need(
        ("early_stopping_min_delta",),
        ("early_stopping_patience",),
        lambda a: a.early_stopping_patience is not None,
        "early_stopping_patience is not set",
    ),
    Need(
        ("evaluation_size",),
        ("classifier", "features"),
        lambda a: a.classifier is not None or a.features is not None,
        "there is neither classifier nor features",
    ),
    Need(
        ("subsequence",),
        ("sampler",),
        lambda a: a.sampler in TAKES_SUBSEQUENCE,
        f"only {' and '.join(TAKES_SUBSEQUENCE)} visit a subsequence",
    ),
    Need(("logging_dir",), ("logger",), lambda a: a.logger == "tensorboard", "logger is not tensorboard"),
    Need(("hub_private_repo",), ("push_to_hub",), lambda a: a.push_to_hub, "push_to_hub is off"),
    Need(
        ("overwrite_output_dir",),
        ("resume_from_checkpoint",),
        lambda a: a.resume_from_checkpoint is None,
        "resume_from_checkpoint goes on with the run that is there",
    ),
    # the condition
    Need(
        ("condition_dropout", "label_free_epochs", "guidance_scale"),
        ("condition",),
        lambda a: a.condition is not None,
        "there is no condition",
    ),
    _condition("class", "label_column"),
    _condition("text", "caption_column", "text_encoder", "train_text_encoder", "max_text_tokens"),
    _condition("image", "condition_image_column", "image_condition"),
)


def without_effect(arguments: TrainingArguments) -> list[str]:
    """A sentence on each group of settings that were asked for and change nothing.

    A recipe's settings that a flag beside it puts out of use are not among them.

    Raises:
        ValueError: when a flag among them contradicts another setting.
    """
    told: set[str] = set()
    sentences = []
    for need in NEEDS:
        asked = [name for name in need.names if name not in told and _asked(arguments, name, need.switches)]
        if not asked or need.met(arguments):
            continue
        told.update(asked)
        sentences.append(f"{' and '.join(asked)} {'has' if len(asked) == 1 else 'have'} no effect: {need.reason}.")
        if need.contradiction and FLAG in map(arguments.given.get, asked):
            raise ValueError(sentences[-1])
    return sentences


def _asked(arguments: TrainingArguments, name: str, switches: tuple[str, ...]) -> bool:
    """Whether a setting was given, as more than a part of a recipe that a flag has changed, and is on."""
    given = arguments.given
    if name not in given or getattr(arguments, name) is False or getattr(arguments, name) is None:
        return False
    return given[name] == FLAG or FLAG not in map(given.get, switches)
