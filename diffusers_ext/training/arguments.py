"""Every setting of a training run: flags of a script, keys of a YAML recipe, fields of a Python object."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from ..conditions.image import IMAGE_CONDITIONS
from ..hub.redaction import clean_token
from ..objectives.timestep_sampling import TIMESTEP_SAMPLINGS
from ..objectives.weighting import WEIGHTINGS
from ..schedulers.registry import SAMPLERS
from ..schedulers.scheduling_subsequence import SUBSEQUENCES
from .ema import EMA_KINDS, LONGEST_SIGMA_REL

LOSSES = ("l2", "l1", "huber")
OPTIMIZERS = ("adamw", "muon")
LR_SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
MIXED_PRECISIONS = ("no", "fp16", "bf16", "auto")
LOGGERS = ("tensorboard", "wandb", "none")
CONDITIONS = ("class", "text", "image")
FLAG, RECIPE = "flag", "recipe"  # where a setting was given
LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127
FROM_TARGET = tuple(name for name in IMAGE_CONDITIONS if name != "image")


def option(default: Any, text: str, **of_flag: Any) -> Any:
    """A field with its help text, and what else argparse is told of its flag."""
    return field(default=default, metadata={"help": text, **of_flag})


class _Origins:
    """Where settings were given, kept beside them: it is no setting, so neither among the fields nor in `vars`."""

    __slots__ = ("_given",)
    _given: dict[str, str]


@dataclass
class TrainingArguments(_Origins):
    """Settings of training; names that diffusers' own example has mean what they mean there.

    Raises:
        ValueError: on construction, one sentence on the first setting that can't be.
    """

    # data
    dataset_name: str | None = option(
        None, "Hub name, local folder in `datasets` layout, or `embedded` (real MNIST digits; the default)."
    )
    dataset_config_name: str | None = option(None, "Configuration of the data set.")
    train_data_dir: str | None = option(
        None, "Folder of images, or a .zip/.tar archive of one; ignored if dataset_name is given."
    )
    cache_dir: str | None = option(None, "Where downloaded data sets are kept.")
    train_split: str = option("train", "Split to train on.")
    image_column: str | None = option(None, "Column with the images; found by its type when not given.")
    resolution: int | None = option(None, "Image side in pixels; 64 as in diffusers' example, 28 for `embedded`.")
    channels: int | None = option(None, "1 or 3; the images' own number when not given.")
    center_crop: bool = option(False, "Crop at the centre; at random otherwise.")
    random_flip: bool = option(False, "Flip horizontally with probability 1/2.")
    resize_scale: float = option(1.0, "Resize the shorter side to this multiple of the resolution before cropping.")
    random_resized_crop: float | None = option(
        None, "Crop a random part of at least this share of the area (0.8, say) and resize it."
    )
    alpha_background: str = option("white", "Colour on which transparent images are flattened.")
    on_unreadable_image: str = option("skip", "`skip` names and counts an unreadable image, `error` stops.")
    preserve_input_precision: bool = option(False, "Keep 16- and 32-bit images' precision instead of 8 bits.")
    max_memory_dataset_gb: float = option(2.0, "Data that decode to less than this are held in memory.")
    streaming: bool = option(
        False, "Read dataset_name as it comes, without downloading it; the run counts as one epoch of max_train_steps."
    )
    shuffle_buffer_size: int = option(1000, "Rows of a stream that are shuffled among one another.")
    dataloader_num_workers: int = option(0, "Processes that prepare batches; 0 prepares them in the main process.")

    # model
    model: str = option("small", "Preset name, configuration file or folder, or `unet2d` (diffusers' UNet2DModel).")
    model_config_name_or_path: str | None = option(None, "Configuration of a diffusers UNet2DModel to train.")
    model_options: str | None = option(None, 'JSON with entries of the model\'s configuration, {"dropout": 0.1}, say.')
    gradient_checkpointing: bool = option(False, "Recompute activations in the backward pass, to save memory.")
    channels_last: bool | None = option(
        None,
        "Keep images and weights in channels-last memory format; measured under --mixed_precision auto if not given.",
        nargs="?",
        const=True,
    )

    # condition
    condition: str | None = option(
        None, f"What the network is conditioned on: {', '.join(CONDITIONS)}; nothing when not given."
    )
    condition_dropout: float = option(
        0.1, "Probability with which a sample's condition is replaced by the null condition; guidance needs it."
    )
    label_free_epochs: int = option(
        0, "The last so many of num_epochs are trained on the null condition alone (a source project's way)."
    )
    guidance_scale: float = option(1.0, "Guidance of previews: 0 unconditional, 1 conditional, above 1 sharper.")
    label_column: str | None = option(None, "Column with the classes; `label` or `labels` when not given.")
    caption_column: str | None = option(None, "Column with the texts; `text` or `caption` when not given.")
    text_encoder: str = option(
        "small",
        "Name or folder of a transformers text encoder with its tokenizer, or `small`: a CLIP text model of two layers "
        "and a tokenizer, both trained on the data set's own captions.",
    )
    train_text_encoder: bool = option(False, "Train a named text encoder too; `small` always is trained.")
    max_text_tokens: int = option(77, "Texts are cut to this many tokens.")
    condition_image_column: str | None = option(None, "Column with the images that the network is conditioned on.")
    image_condition: str | None = option(
        None,
        "Make the condition from the target: super_resolution_2, _4 or _8, colorization or inpainting.",
    )

    # noise path and objective
    schedule: str | None = option(
        None,
        "Noise schedule by name, or rectified_flow (straight lines, for prediction_type flow); takes the place of "
        "--ddpm_beta_schedule.",
    )
    ddpm_beta_schedule: str = option("linear", "Noise schedule by name, as diffusers' example calls the flag.")
    schedule_options: str | None = option(None, 'JSON with the schedule\'s options, {"s": 0.008}, say.')
    beta_start: float = option(1e-4, "First beta of schedules between two betas.")
    beta_end: float = option(0.02, "Last beta of schedules between two betas.")
    rescale_betas_zero_snr: bool = option(False, "End the path at exactly zero signal-to-noise ratio.")
    ddpm_num_steps: int = option(1000, "Number of timesteps T of the noise path.")
    prediction_type: str = option(
        "epsilon", "What the network predicts: epsilon, sample, v_prediction, score, mean, scaled_epsilon or flow."
    )
    loss: str = option("l2", "l2, l1 or huber.")
    loss_weighting: str | None = option(
        None,
        f"One of {', '.join(WEIGHTINGS)}; when not given, snr for `sample` (on a rectified flow, where snr has no "
        "bound, min_snr) and none otherwise.",
    )
    min_snr_gamma: float = option(5.0, "Bound of min_snr.")
    p2_gamma: float = option(1.0, "Exponent of p2.")
    p2_k: float = option(1.0, "What p2 adds to the signal-to-noise ratio.")
    sigmoid_bias: float = option(0.0, "Log signal-to-noise ratio at which sigmoid counts an error of epsilon half.")
    edm_sigma_data: float = option(0.5, "Standard deviation of the data, for edm.")
    timestep_sampling: str = option(
        "uniform",
        "uniform, logit_normal (the ends of the noise path hardly ever), each also as stratified or "
        "stratified_logit_normal over the global batch, or importance (more often where losses are large, and counted "
        "less there).",
    )
    logit_normal_mean: float = option(0.0, "Mean of logit_normal's normal variable; a positive one prefers noise.")
    logit_normal_std: float = option(1.0, "Its standard deviation.")

    # optimisation
    seed: int = option(0, "Fixes initial weights, data order, noise and augmentation.")
    train_batch_size: int = option(16, "Images per process and step.")
    num_epochs: int = option(100, "Passes through the data.")
    max_train_steps: int | None = option(None, "Stop after this many optimizer steps.")
    max_train_seconds: float | None = option(
        None,
        "Stop after this many seconds of training, resumed parts counted; the learning rate decays in time for it.",
    )
    gradient_accumulation_steps: int = option(1, "Batches per optimizer step.")
    optimizer: str = option("adamw", "adamw, or muon, which learns faster: AdamW's rates times 2 or 3 suit it.")
    learning_rate: float = option(1e-4, "Learning rate after warm-up.")
    lr_scheduler: str = option("cosine", f"One of {', '.join(LR_SCHEDULERS)}.")
    lr_warmup_steps: int = option(500, "Optimizer steps of warm-up.")
    adam_beta1: float = option(0.95, "Adam's beta1.")
    adam_beta2: float = option(0.999, "Adam's beta2.")
    adam_weight_decay: float = option(1e-6, "AdamW's weight decay.")
    adam_epsilon: float = option(1e-8, "Adam's epsilon.")
    max_grad_norm: float = option(1.0, "Gradients are scaled down to this norm.")
    mixed_precision: str | None = option(
        None, "no, fp16, bf16, or auto (what a few timed steps show to be the fastest); the launcher's when not given."
    )
    local_rank: int = option(-1, "Set by launchers.")
    enable_xformers_memory_efficient_attention: bool = option(False, "Use xformers' attention.")

    # exponential moving average
    use_ema: bool = option(False, "Keep an exponential moving average of the weights, and save and sample that.")
    ema_kind: str = option(
        "warmup",
        "warmup: a decay that grows to ema_max_decay; power: an average over the same share of the run at any time.",
    )
    ema_sigma_rel: list[float] = field(
        default_factory=lambda: [0.05, 0.1],
        metadata={
            "help": "Lengths of power-function averages, as the standard deviation's share of the training so far; "
            "`--ema_kind power` samples and saves the first."
        },
    )
    ema_snapshots: int | None = option(
        None,
        "Keep the averages of all ema_sigma_rel every so many optimizer steps, of which `diffusers-ext ema` makes one "
        "of any length after training.",
    )
    ema_inv_gamma: float = option(1.0, "Inverse multiplicative factor of the EMA warm-up.")
    ema_power: float = option(0.75, "Exponent of the EMA warm-up.")
    ema_max_decay: float = option(0.9999, "Largest EMA decay.")
    ema_update_after_step: int = option(0, "Steps before the EMA starts to follow.")

    # validation and previews
    validation_split: str | None = option(None, "Split for the validation loss; `test` for the embedded set.")
    validation_steps: int | None = option(
        None, "Validate and preview every so many optimizer steps; when not given, every save_images_epochs epochs."
    )
    validation_size: int = option(1000, "Number of validation images.")
    classifier: str | None = option(
        None, "Folder of a classifier (`diffusers-ext classifier train`), which measures samples at the end of the run."
    )
    features: str | None = option(
        None,
        "Network whose features are compared, as `diffusers-ext evaluate` takes it; the classifier's if not given.",
    )
    evaluation_steps: int | None = option(None, "Measure samples every so many optimizer steps as well.")
    evaluation_size: int = option(500, "Samples that are measured, at most half of the validation images.")
    early_stopping_patience: int | None = option(None, "Stop after so many validations without a better loss.")
    early_stopping_min_delta: float = option(0.0, "How much lower counts as better.")
    eval_batch_size: int = option(16, "Images in a preview.")
    sampler: str = option(
        "ddpm", f"Scheduler of previews, of measured samples and of the saved pipeline: {', '.join(SAMPLERS)}."
    )
    subsequence: str = option("uniform", f"Times that ddim visits: {', '.join(SUBSEQUENCES)}.")
    ddpm_num_inference_steps: int = option(1000, "Sampling steps of previews and of measured samples.")
    save_images_epochs: int = option(10, "Validate and preview every so many epochs, unless validation_steps is given.")

    # output
    output_dir: str = option("ddpm-model-64", "Where everything is written.")
    overwrite_output_dir: bool = option(False, "Start afresh in an output folder that holds an earlier run.")
    save_model_epochs: int = option(10, "Save the pipeline every so many epochs.")
    checkpointing_steps: int = option(500, "Save a checkpoint to resume from every so many optimizer steps.")
    checkpoints_total_limit: int | None = option(None, "Keep this many checkpoints, the newest.")
    resume_from_checkpoint: str | None = option(None, "`latest`, or the path of a checkpoint.")
    logger: str = option("tensorboard", "tensorboard, wandb or none.")
    logging_dir: str = option("logs", "Folder of the tracker below the output folder.")
    logging_steps: int = option(10, "Write metrics every so many optimizer steps.")
    push_to_hub: bool = option(False, "Push the pipeline to the Hub whenever it is saved.")
    hub_token: str | None = field(default=None, repr=False, metadata={"help": "Token for the Hub."})
    hub_model_id: str | None = option(None, "Repository on the Hub; named like the output folder when not given.")
    hub_private_repo: bool = option(False, "Create the repository as a private one.")
    debug: bool = option(False, "Show the whole traceback of an error.")

    def __post_init__(self) -> None:
        self.hub_token = clean_token(self.hub_token)
        self._check_choices()
        self._check_numbers()
        if self.streaming:
            self._check_streaming()
        if self.ema_kind == "power" and not self.use_ema and self.ema_snapshots is None:
            raise ValueError("ema_kind power averages nothing by itself; add use_ema to save it, or ema_snapshots.")
        if self.early_stopping_patience is not None and self.held_out_split is None:
            raise ValueError("early_stopping_patience needs a validation_split to measure the loss on.")
        measuring = "classifier" if self.classifier is not None else "features" if self.features is not None else None
        if self.evaluation_steps is not None and measuring is None:
            raise ValueError("evaluation_steps needs a classifier to measure samples with, or features.")
        if measuring is not None and self.held_out_split is None:
            raise ValueError(f"{measuring} needs a validation_split of real images to compare samples with.")
        if self.condition is not None:
            self._check_condition()

    def _check_condition(self) -> None:
        if not 0 <= self.condition_dropout < 1:
            raise ValueError(f"condition_dropout must be at least 0 and below 1, got {self.condition_dropout}.")
        if not 0 <= self.label_free_epochs < self.num_epochs:
            raise ValueError(f"label_free_epochs must lie in 0..num_epochs - 1, got {self.label_free_epochs}.")
        if self.label_free_epochs and (self.max_train_seconds or self.max_train_steps):
            raise ValueError("label_free_epochs end the run's num_epochs; leave max_train_seconds and max_train_steps.")
        if self.max_text_tokens < 2:
            raise ValueError(f"max_text_tokens must be at least 2, got {self.max_text_tokens}.")
        self._check_image_condition()
        if self.guidance_scale < 0:
            raise ValueError(f"guidance_scale must be a number of at least 0, got {self.guidance_scale}.")
        if self.guidance_scale != 1 and not self.condition_dropout and not self.label_free_epochs:
            raise ValueError(
                f"guidance_scale {self.guidance_scale:g} of previews needs a null condition that is trained; set "
                "condition_dropout above 0, or label_free_epochs."
            )

    def _check_image_condition(self) -> None:
        if self.condition == "image" and (self.condition_image_column is None) == (self.image_condition is None):
            raise ValueError("condition image needs either condition_image_column or image_condition.")
        if self.image_condition not in (None, *FROM_TARGET):
            raise ValueError(f"image_condition must be one of {', '.join(FROM_TARGET)}, got '{self.image_condition}'.")

    def _check_streaming(self) -> None:
        if self.dataset_name is None and self.train_data_dir is not None:
            raise ValueError("streaming reads a dataset_name; a train_data_dir is never held as a whole anyway.")
        if self.max_train_steps is None:
            raise ValueError("streaming needs max_train_steps, for a stream does not say how long an epoch is.")
        if self.dataloader_num_workers > 1:
            raise ValueError(
                "streaming takes dataloader_num_workers 0 or 1, since one process reads and decodes in threads, got "
                f"{self.dataloader_num_workers}."
            )
        if self.condition == "text" or self.condition_image_column is not None:
            wanted = "texts" if self.condition == "text" else "condition_image_column"
            raise ValueError(
                f"streaming can't give {wanted} yet, only classes and conditions made from the image itself."
            )

    def _check_choices(self) -> None:
        choices = {
            "condition": (None, *CONDITIONS),
            "loss": LOSSES,
            "ema_kind": EMA_KINDS,
            "loss_weighting": (None, *WEIGHTINGS),
            "timestep_sampling": TIMESTEP_SAMPLINGS,
            "optimizer": OPTIMIZERS,
            "sampler": tuple(SAMPLERS),
            "subsequence": SUBSEQUENCES,
            "lr_scheduler": LR_SCHEDULERS,
            "mixed_precision": (None, *MIXED_PRECISIONS),
            "logger": LOGGERS,
            "on_unreadable_image": ("skip", "error"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                shown = ", ".join(str(choice) for choice in allowed if choice is not None)
                raise ValueError(f"{name} must be one of {shown}, got '{getattr(self, name)}'.")

    def _check_numbers(self) -> None:
        at_least_one = (
            "train_batch_size num_epochs max_train_steps gradient_accumulation_steps validation_steps "
            "validation_size evaluation_steps evaluation_size early_stopping_patience eval_batch_size "
            "ddpm_num_inference_steps save_images_epochs save_model_epochs checkpointing_steps "
            "checkpoints_total_limit logging_steps resolution ema_snapshots shuffle_buffer_size"
        )
        for name in at_least_one.split():
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        for name in (
            "learning_rate",
            "max_train_seconds",
            "max_grad_norm",
            "resize_scale",
            "max_memory_dataset_gb",
            "min_snr_gamma",
            "p2_k",
            "edm_sigma_data",
            "logit_normal_std",
            "ema_inv_gamma",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be greater than 0, got {value}.")
        at_least_zero = (
            "lr_warmup_steps ema_update_after_step ema_power early_stopping_min_delta adam_epsilon adam_weight_decay "
            "dataloader_num_workers p2_gamma"
        )
        for name in at_least_zero.split():
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}.")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}.")
        if not 0 <= self.ema_max_decay <= 1:
            raise ValueError(f"ema_max_decay must lie between 0 and 1, got {self.ema_max_decay}.")
        for name, value in vars(self).items():
            if isinstance(value, float) and not abs(value) <= LARGEST_FLOAT32:
                raise ValueError(f"{name} must be a finite number that float32 can hold, got {value}.")
        for sigma_rel in self.ema_sigma_rel:
            if not 0 < sigma_rel < LONGEST_SIGMA_REL:
                raise ValueError(f"ema_sigma_rel takes numbers between 0 and {LONGEST_SIGMA_REL:.3f}, got {sigma_rel}.")
        # Their files in a checkpoint are named so.
        if len({f"{sigma_rel:g}" for sigma_rel in self.ema_sigma_rel}) < max(len(self.ema_sigma_rel), 1):
            raise ValueError(
                f"ema_sigma_rel takes one length or several that differ in 6 digits, got {self.ema_sigma_rel}."
            )
        if self.ema_snapshots is not None and len(self.ema_sigma_rel) < 2:
            raise ValueError(f"ema_snapshots needs two lengths in ema_sigma_rel, got {self.ema_sigma_rel}.")
        if Path(self.logging_dir).is_absolute() or ".." in Path(self.logging_dir).parts:
            raise ValueError(f"logging_dir names a folder inside output_dir, got '{self.logging_dir}'.")

    @property
    def held_out_split(self) -> str | None:
        """The split that the network is validated on and compared with, if there is one."""
        return self.validation_split or ("test" if self.uses_embedded_data else None)

    @property
    def uses_embedded_data(self) -> bool:
        """Whether the run trains on the digits inside the package."""
        return self.dataset_name == "embedded" or (self.dataset_name is None and self.train_data_dir is None)

    @classmethod
    def from_recipe(cls, path: str | Path, **overrides: Any) -> TrainingArguments:
        """The settings of a YAML recipe, with `overrides` in place of its own.

        Raises:
            ValueError, FileNotFoundError: one sentence on what is wrong with the recipe or a setting.
        """
        flags = recipe_as_flags(path)
        given = {**dict.fromkeys(_names(flags), RECIPE), **dict.fromkeys(overrides, FLAG)}
        arguments = dataclasses.replace(_parse(flags), **{**_other_data(given), **overrides})
        arguments._given = given
        return arguments

    @property
    def given(self) -> dict[str, str]:
        """Where settings were given, `flag` or `recipe`, by name; in Python, those that differ from their defaults."""
        return getattr(self, "_given", None) or dict.fromkeys(self._changed(), FLAG)

    def _changed(self) -> dict[str, Any]:
        """The settings that differ from their defaults."""
        defaults = {
            f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
            for f in dataclasses.fields(self)
        }
        return {k: v for k, v in dataclasses.asdict(self).items() if v != defaults[k]}

    def to_yaml(self) -> str:
        """The settings that differ from their defaults, as a recipe; the Hub's token is left out."""
        # A recipe says what is trained, not whether to overwrite, resume or log in.
        left_out = ("hub_token", "overwrite_output_dir", "resume_from_checkpoint", "local_rank", "debug")
        return yaml.safe_dump({k: v for k, v in self._changed().items() if k not in left_out}, sort_keys=False)


class _Parser(HfArgumentParser):
    """Reports a wrong flag in one sentence, without a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse_arguments(argv: Sequence[str], **defaults: Any) -> TrainingArguments:
    """Settings from a command line. `--recipe FILE` reads a YAML recipe first; flags given beside it win.

    Args:
        argv: the flags.
        defaults: values of settings that neither the recipe nor a flag names, in place of their usual defaults.

    Raises:
        ValueError, FileNotFoundError: one sentence on the first thing that is wrong.
    """
    flags = list(argv)
    recipe: list[str] = []
    if sum(flag == "--recipe" or flag.startswith("--recipe=") for flag in flags) > 1:
        raise ValueError("Give one --recipe; flags beside it change single settings.")
    for i, flag in enumerate(flags):
        if flag == "--recipe" or flag.startswith("--recipe="):
            path = flag.partition("=")[2] or (flags[i + 1] if i + 1 < len(flags) else "")
            del flags[i : i + (1 if "=" in flag else 2)]
            recipe = recipe_as_flags(path)
            break
    arguments = _parse([*recipe, *flags], **defaults)
    given = {**dict.fromkeys(_names(recipe), RECIPE), **dict.fromkeys(_names(flags), FLAG)}
    arguments = dataclasses.replace(arguments, **_other_data(given))
    arguments._given = given
    return arguments


def _other_data(given: dict[str, str]) -> dict[str, Any]:
    """What a recipe says of its data set, back to the defaults and out of `given`, where a flag names other data.

    So a flag wins, though under another name.
    """
    if not (given.get("train_data_dir") == FLAG and given.get("dataset_name") == RECIPE):
        return {}
    of_the_set = ("dataset_name", "dataset_config_name", "image_column", "label_column", "caption_column")
    dropped = [name for name in of_the_set if given.get(name) == RECIPE]
    for name in dropped:
        del given[name]
    return {f.name: f.default for f in dataclasses.fields(TrainingArguments) if f.name in dropped}


def _names(flags: Sequence[str]) -> list[str]:
    return [flag[2:].partition("=")[0].replace("-", "_") for flag in flags if flag.startswith("--")]


def _parse(flags: Sequence[str], **defaults: Any) -> TrainingArguments:
    parser = _Parser(
        TrainingArguments,  # type: ignore[arg-type]
        allow_abbrev=False,
        description="Train a diffusion model.",
    )
    parser.add_argument("--recipe", help="YAML file with settings; flags given beside it win.")
    parser.set_defaults(**defaults)
    arguments, _, unknown = parser.parse_args_into_dataclasses(list(flags), return_remaining_strings=True)
    if unknown:
        raise ValueError(f"Unknown flag {unknown[0]}.")
    return arguments


def recipe_as_flags(path: str | Path) -> list[str]:
    """A YAML recipe as a command line, so that a recipe is checked by the same parser as flags are."""
    if not path:
        raise ValueError("recipe takes a YAML file, got nothing.")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no recipe '{path}'.")
    try:
        settings = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"Recipe '{path}' is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(settings, dict):
        raise ValueError(f"Recipe '{path}' must hold `name: value` lines, got a {type(settings).__name__}.")
    flags: list[str] = []
    for name, value in settings.items():
        if name == "mixed_precision" and value is False:
            value = "no"  # YAML reads a bare `no` as false
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def json_option(name: str, text: str | None) -> dict[str, Any]:
    """The dictionary in a JSON setting; empty when it was not given.

    Raises:
        ValueError: unless it is a JSON object.
    """
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a JSON object such as '{{\"s\": 0.008}}', got {text!r}.")
    return value
