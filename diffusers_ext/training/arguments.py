"""Every setting of a training run: flags of a script, keys of a YAML recipe, fields of a Python object.

Each setting stands here once, with its default, type, choices, range, help and what it needs to have an effect. The
checks, the warnings about settings without an effect, `--help` and the recipes derive from that.

A condition brings its own settings and needs no edit here: its class in `diffusers_ext.conditions.registry` declares

    settings = {
        "vector_columns": {"type": list[str] | None, "default": None, "text": "Columns with the numbers."},
    }

as keyword arguments of `diffusers_ext.settings.option` with the annotation as `type`. They become fields of
`TrainingArguments`, flags and recipe keys, are shown by `--help condition`, and are refused when the condition is
another one. `"on_resume": "refused"` refuses to resume a run with another value. An optional static method
`check_settings(arguments)` raises ValueError for values that don't fit together.
An objective in `diffusers_ext.objectives.registry` declares its settings in the same way.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..conditions.registry import CONDITIONS
from ..data.normalization import NORMALIZATIONS
from ..data.sounds import MAX_RATE
from ..hub.provenance import versions
from ..hub.redaction import clean_token
from ..objectives.registry import DIFFUSION, OBJECTIVES, declared
from ..objectives.timestep_sampling import LOGIT_NORMAL, TIMESTEP_SAMPLINGS
from ..objectives.weighting import WEIGHTINGS
from ..schedulers import PREDICTION_TYPES, SCHEDULES
from ..schedulers.registry import OPTIONS, SAMPLERS, samplers_with
from ..schedulers.schedules import BETA_RANGE_SCHEDULES, PATHS_WITHOUT_BETAS
from ..schedulers.scheduling_subsequence import SUBSEQUENCES
from ..settings import (
    Group,
    Need,
    Recipe,
    Setting,
    SettingsError,
    check,
    make_settings_class,
    parse,
    read_recipe,
    settings_of,
)
from ..settings.declaration import FREE, NAMED, REFUSED
from ..settings.effect import FLAG, RECIPE
from ..settings.recipes import as_values
from .ema import EMA_KINDS, LONGEST_SIGMA_REL

TASKS = ("generation", "autoencoder")
MODALITIES = ("image", "signal")
LOSSES = ("l2", "l1", "huber")
LEARNED_RANGE = "learned_range"
OPTIMIZERS = ("adamw", "muon")
LR_SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
MIXED_PRECISIONS = ("no", "fp16", "bf16", "auto")
LOGGERS = ("tensorboard", "wandb", "none")

_generation = Need(lambda a: a.task == "generation", "an autoencoder is trained", ("task",))
# What changes how a run learns is named when a resumed run has another value, unless a setting says otherwise.
_data = Group("data", "Data", on_resume=NAMED)
_model = Group("model", "Network", on_resume=NAMED)
_latent = Group("latent", "Autoencoder and latents", on_resume=NAMED)
_condition = Group("condition", "Condition", (_generation,), NAMED)
_objective = Group("objective", "Noise path and objective", (_generation,), NAMED)
_loss = dataclasses.replace(_objective, needs=())
_optimisation = Group("optimisation", "Optimisation", on_resume=NAMED)
_average = Group("ema", "Average of the weights (EMA)", on_resume=NAMED)
_evaluation = Group("evaluation", "Validation, previews and evaluation")
_output = Group("output", "Output and checkpoints")
_hub = Group("hub", "Hub")


# --- what settings need to have an effect -----------------------------------------------------------------------------


def _noise_schedule(a: Any) -> str:
    return a.schedule or a.ddpm_beta_schedule


def _weighting_is(name: str) -> Need:
    def met(a: Any) -> bool:
        from .build import weighting_name

        return weighting_name(a) == name

    return Need(met, f"loss_weighting is not {name}", ("loss_weighting", "prediction_type", "schedule"))


def _is_no_toy(a: Any) -> bool:
    from .build import makes_toy

    return not makes_toy(a)


_NETWORK = ("model", "model_config_name_or_path")
_no_toy = Need(_is_no_toy, "the toy network knows no time and has an objective of its own", _NETWORK)
_variance = Need(lambda a: a.sampler == "ddpm" or a.variance_type == LEARNED_RANGE, "sampler is not ddpm", ("sampler",))
_no_toy_sampler = Need(_is_no_toy, "the toy network is sampled by its own mixing alone", _NETWORK, contradiction=True)
_no_toy_objective = Need(_is_no_toy, "the toy network has an objective of its own", _NETWORK, contradiction=True)
_diffusion = Need(
    lambda a: a.objective == DIFFUSION, "the objective has a loss of its own", ("objective",), contradiction=True
)
_toy = Need(lambda a: not _is_no_toy(a), "the network is not the toy network", _NETWORK)
_model_by_name = Need(
    lambda a: a.model_config_name_or_path is None,
    "model_config_name_or_path takes its place",
    ("model_config_name_or_path",),
    contradiction=True,
)
_no_schedule = Need(lambda a: a.schedule is None, "schedule takes its place", ("schedule",), contradiction=True)
_betas = Need(
    lambda a: _noise_schedule(a) in BETA_RANGE_SCHEDULES,
    f"of the schedules, only {', '.join(BETA_RANGE_SCHEDULES)} lie between two betas",
    ("schedule", "ddpm_beta_schedule"),
)
_min_snr, _p2, _sigmoid, _edm = map(_weighting_is, ("min_snr", "p2", "sigmoid", "edm"))
_logit_normal = Need(
    lambda a: a.timestep_sampling in LOGIT_NORMAL,
    "timestep_sampling is not (stratified_)logit_normal",
    ("timestep_sampling",),
)
_no_dataset_name = Need(lambda a: a.dataset_name is None, "dataset_name takes its place", ("dataset_name",))
_has_configurations = Need(
    lambda a: a.dataset_name not in (None, "embedded"),
    "dataset_name names no data set that has configurations",
    ("dataset_name", "train_data_dir"),
)
_streaming = Need(lambda a: a.streaming, "streaming is off", ("streaming",))
_epochs = Need(lambda a: not a.streaming, "a run on a stream is one epoch of max_train_steps", ("streaming",))
_warm_up = Need(
    lambda a: a.lr_scheduler != "constant",
    "lr_scheduler constant has no warm-up; constant_with_warmup has one",
    ("lr_scheduler",),
)
_any_average = Need(lambda a: a.use_ema or a.ema_snapshots is not None, "use_ema is off", ("use_ema", "ema_snapshots"))
_warmup_average = Need(
    lambda a: a.use_ema and a.ema_kind == "warmup",
    "there is no average by use_ema with ema_kind warmup",
    ("use_ema", "ema_kind"),
)
_power_average = Need(
    lambda a: (a.use_ema and a.ema_kind == "power") or a.ema_snapshots is not None,
    "there is no average by use_ema with ema_kind power, and no ema_snapshots",
    ("use_ema", "ema_kind", "ema_snapshots"),
)
_held_out = Need(
    lambda a: a.validation_split is not None or a.uses_embedded_data,
    "there is no validation_split",
    ("validation_split", "dataset_name", "train_data_dir"),
)
_no_validation_steps = Need(
    lambda a: a.validation_steps is None, "validation_steps takes its place", ("validation_steps",)
)
_early_stopping = Need(
    lambda a: a.early_stopping_patience is not None,
    "early_stopping_patience is not set",
    ("early_stopping_patience",),
)
_measured = Need(
    lambda a: a.classifier is not None or a.features is not None,
    "there is neither classifier nor features",
    ("classifier", "features"),
)
_subsequences = Need(
    lambda a: a.sampler in samplers_with("subsequence"),
    f"only {' and '.join(samplers_with('subsequence'))} visit a subsequence",
    ("sampler",),
)
_tensorboard = Need(lambda a: a.logger == "tensorboard", "logger is not tensorboard", ("logger",))
_pushing = Need(lambda a: a.push_to_hub, "push_to_hub is off", ("push_to_hub",))
_fresh = Need(
    lambda a: a.resume_from_checkpoint is None,
    "resume_from_checkpoint goes on with the run that is there",
    ("resume_from_checkpoint",),
)
_conditional = Need(lambda a: a.condition is not None, "there is no condition", ("condition",))


_latents = Need(lambda a: a.vae is not None, "there is no vae", ("vae",))
_autoencoder = Need(lambda a: a.task == "autoencoder", "task is not autoencoder", ("task",))
_reconstructs = Need(lambda a: a.task == "autoencoder" or a.vae is not None, "there is no autoencoder", ("task", "vae"))


def _brought_by(setting: str, registry: Mapping[str, type], group: Group) -> dict[str, dict[str, Any]]:
    """The settings that the classes of a registry bring; each needs `setting` to have its class's name."""
    brought_settings: dict[str, dict[str, Any]] = {}
    for name, brought in registry.items():
        need = Need(_equals(setting, name), f"{setting} is not {name}", (setting,), contradiction=True)
        for each, arguments in getattr(brought, "settings", {}).items():
            brought_settings[each] = {"group": group, "needs": need, **arguments}
    return brought_settings


def _equals(setting: str, name: str) -> Any:
    return lambda a: getattr(a, setting) == name


_Brought: Any = make_settings_class(
    "_Brought",
    {**_brought_by("condition", CONDITIONS, _condition), **_brought_by("objective", OBJECTIVES, _objective)},
    __name__,
)


class _Origins:
    """Where settings were given, kept beside them: it is no setting, so neither among the fields nor in `vars`."""

    __slots__ = ("_given",)
    _given: dict[str, str]


def _sampler_option(name: str) -> Any:
    """An option of the samplers that take it; None means the sampler's own."""
    declared, samplers = OPTIONS[name], samplers_with(name)
    need = Need(
        lambda a: a.sampler in samplers or ":" in a.sampler,
        f"it belongs to the samplers {', '.join(samplers)}",
        ("sampler",),
        contradiction=True,
    )
    return _evaluation(
        None, f"{declared.help} For {', '.join(samplers)}.", needs=(_generation, _no_toy, need), **declared.declared
    )


@dataclass
class TrainingArguments(_Origins, _Brought):
    """Train a diffusion model.

    The settings of a training run. Names that diffusers' own unconditional example has mean what they mean there.

    Raises:
        ValueError: on construction, one sentence on the first setting that can't be.
    """

    # data
    dataset_name: str | None = _data(
        None,
        "Hub name, local folder in `datasets` layout, or `embedded` (real MNIST digits; the default).",
        short=True,
        on_resume=FREE,
    )
    dataset_config_name: str | None = _data(
        None, "Configuration of the data set.", needs=_has_configurations, on_resume=FREE
    )
    train_data_dir: str | None = _data(
        None,
        "Folder of images or sounds, or a .zip/.tar archive of one; ignored if dataset_name is given.",
        needs=_no_dataset_name,
        short=True,
        on_resume=FREE,
    )
    cache_dir: str | None = _data(None, "Where downloaded data sets are kept.", on_resume=FREE)
    train_split: str = _data("train", "Split to train on.", on_resume=FREE)
    image_column: str | None = _data(None, "Column with the images; found by its type when not given.", on_resume=FREE)
    modality: str | None = _data(
        None,
        "What the data are: image or signal; found out from files and columns.",
        choices=MODALITIES,
        on_resume=FREE,
    )
    length: int | None = _data(
        None,
        "Frames that signals are cropped or padded to; their own length when not given.",
        at_least=1,
        at_most=2**24,
        on_resume=FREE,
    )
    sample_rate: int | None = _data(
        None,
        "Frames per second that recordings are resampled to; that of the first one when not given.",
        at_least=1,
        at_most=MAX_RATE,
        on_resume=FREE,
    )
    normalization: str = _data(
        "standardize",
        "How signals are scaled: standardize (mean 0, deviation 1 for each channel), peak (into [-1, 1]) or none.",
        choices=NORMALIZATIONS,
        on_resume=FREE,
    )
    signal_columns: list[str] = _data(
        [],
        "Column with the signals; or columns of numbers, the channels of one long signal with a row per frame.",
        on_resume=FREE,
    )
    resolution: int | None = _data(
        None,
        "Image side in pixels; default: 64, or the side that all images share when it is smaller.",
        at_least=1,
        at_most=16_384,
        short=True,
        on_resume=FREE,
    )
    channels: int | None = _data(
        None, "1 or 3; the images' own number when not given.", at_least=1, at_most=1024, on_resume=FREE
    )
    center_crop: bool = _data(False, "Crop in the middle; at random otherwise.")
    random_flip: bool = _data(False, "Flip horizontally with probability 1/2.", short=True)
    resize_scale: float = _data(
        1.0, "Resize the shorter side to this multiple of the resolution before cropping.", above=0
    )
    random_resized_crop: float | None = _data(
        None, "Crop a random part of at least this share of the area (0.8, say) and resize it.", above=0, at_most=1
    )
    alpha_background: str = _data("white", "Colour on which transparent images are flattened.")
    on_unreadable_image: str = _data(
        "skip", "`skip` names and counts an unreadable image, `error` stops.", choices=("skip", "error"), on_resume=FREE
    )
    preserve_input_precision: bool = _data(False, "Keep 16- and 32-bit images' precision instead of 8 bits.")
    max_memory_dataset_gb: float = _data(
        2.0, "Data that decode to less than this are held in memory.", above=0, on_resume=FREE
    )
    streaming: bool = _data(
        False,
        "Read dataset_name as it comes, without downloading it; the run counts as one epoch of max_train_steps.",
        on_resume=FREE,
    )
    shuffle_buffer_size: int = _data(
        1000, "Rows of a stream that are shuffled among one another.", at_least=1, needs=_streaming
    )
    dataloader_num_workers: int = _data(
        0,
        "Processes that prepare batches; 0 prepares them in the main process.",
        at_least=0,
        at_most=256,
        on_resume=FREE,
    )

    # model
    model: str = _model(
        "small",
        "Preset name, configuration file or folder, `unet2d` (diffusers' UNet2DModel), or a class of your own as "
        "`path/to/file.py:Class`.",
        needs=_model_by_name,
        short=True,
        on_resume=REFUSED,
    )
    model_config_name_or_path: str | None = _model(
        None, "Configuration of a diffusers UNet2DModel to train.", on_resume=FREE
    )
    model_options: str | None = _model(
        None, 'JSON with entries of the model\'s configuration, {"dropout": 0.1}, say.', json=True
    )
    gradient_checkpointing: bool = _model(False, "Recompute activations in the backward pass, to save memory.")
    channels_last: bool | None = _model(
        None,
        "Keep images and weights in channels-last memory format; measured under --mixed_precision auto if not given.",
    )

    # autoencoder and latents
    task: str = _latent(
        "generation",
        "`generation` trains a diffusion model; `autoencoder` trains the autoencoder for one that works on latents.",
        choices=TASKS,
        on_resume=REFUSED,
    )
    vae: str | None = _latent(
        None,
        "Autoencoder of diffusers, a folder or a name on the Hub: images are encoded once, the network is trained on "
        "their latents, and the pipeline decodes them.",
        needs=_generation,
        short=True,
        on_resume=FREE,
    )
    latent_crops: int = _latent(
        1,
        "Versions of each image that are encoded where images are cropped at random.",
        at_least=1,
        at_most=1024,
        needs=(_generation, _latents),
    )
    latent_cache_dir: str | None = _latent(
        None,
        "Where latents are kept; beside the Hub's files when not given.",
        needs=(_generation, _latents),
        on_resume=FREE,
    )
    kl_weight: float = _latent(
        1e-6, "Weight of the autoencoder's KL term beside its reconstruction loss.", at_least=0, needs=_autoencoder
    )
    min_psnr: float = _latent(
        20.0,
        "Reconstructions with a lower PSNR, in decibels, are warned about.",
        at_least=0,
        needs=_reconstructs,
        on_resume=FREE,
    )

    # condition
    condition: str | None = _condition(
        None,
        f"What the network is conditioned on: {', '.join(CONDITIONS)}; nothing when not given.",
        choices=tuple(CONDITIONS),
        short=True,
        on_resume=REFUSED,
    )
    condition_dropout: float = _condition(
        0.1,
        "Probability with which a sample's condition is replaced by the null condition; guidance needs it.",
        at_least=0,
        below=1,
        needs=_conditional,
    )
    label_free_epochs: int = _condition(
        0,
        "The last so many of num_epochs are trained on the null condition alone (a source project's way); a run that "
        "max_train_steps ends before them has none.",
        at_least=0,
        needs=_conditional,
    )
    guidance_scale: float = _condition(
        1.0,
        "Guidance of previews: 0 unconditional, 1 conditional, above 1 sharper.",
        at_least=0,
        needs=_conditional,
        short=True,
        on_resume=FREE,
    )

    # noise path and objective
    objective: str = _objective(
        DIFFUSION,
        "diffusion, or flow_map: samples in one to four steps (improved MeanFlow, on a rectified flow).",
        choices=tuple(OBJECTIVES),
        needs=_no_toy_objective,
        short=True,
        on_resume=REFUSED,
    )
    schedule: str | None = _objective(
        None,
        "Noise schedule by name; or a path in continuous time: vp, sub_vp, ve (score SDE), or rectified_flow (straight "
        "lines, for prediction_type flow). Takes the place of --ddpm_beta_schedule.",
        choices=(*SCHEDULES, *PATHS_WITHOUT_BETAS),
        needs=_no_toy,
        short=True,
        on_resume=REFUSED,
    )
    ddpm_beta_schedule: str = _objective(
        "linear",
        "Noise schedule by name, as diffusers' example calls the flag.",
        choices=(*SCHEDULES, *PATHS_WITHOUT_BETAS),
        needs=(_no_toy, _no_schedule),
        on_resume=FREE,
    )
    schedule_options: str | None = _objective(
        None, 'JSON with the schedule\'s options, {"s": 0.008}, say.', json=True, needs=_no_toy, on_resume=REFUSED
    )
    beta_start: float = _objective(
        1e-4, "First beta of schedules between two betas.", above=0, below=1, needs=(_no_toy, _betas), on_resume=REFUSED
    )
    beta_end: float = _objective(
        0.02,
        "Last beta of schedules between two betas.",
        above=0,
        at_most=1,
        needs=(_no_toy, _betas),
        on_resume=REFUSED,
    )
    rescale_betas_zero_snr: bool = _objective(
        False, "End the path at exactly zero signal-to-noise ratio.", needs=_no_toy, on_resume=REFUSED
    )
    ddpm_num_steps: int = _objective(
        1000, "Number of timesteps T of the noise path.", at_least=1, at_most=100_000, needs=_no_toy, on_resume=REFUSED
    )
    prediction_type: str = _objective(
        "epsilon",
        "What the network predicts: epsilon, sample, v_prediction, score, mean, scaled_epsilon or flow.",
        choices=PREDICTION_TYPES,
        short=True,
        on_resume=REFUSED,
    )
    loss: str = _loss("l2", "l2, l1 or huber.", choices=LOSSES, needs=_diffusion)
    variance_type: str = _objective(
        "fixed_small",
        "Variance of the ddpm sampler's steps: fixed_small (beta_tilde), fixed_large (beta), or learned_range, which "
        "the network learns in twice the output channels (Nichol and Dhariwal 2021).",
        choices=("fixed_small", "fixed_large", LEARNED_RANGE),
        needs=(_no_toy, _variance),
        on_resume=REFUSED,
    )
    loss_weighting: str | None = _objective(
        None,
        f"One of {', '.join(WEIGHTINGS)}; when not given, snr for `sample` (on a rectified flow, where snr has no "
        "bound, min_snr) and none otherwise.",
        choices=tuple(WEIGHTINGS),
        needs=(_no_toy, _diffusion),
    )
    toy_amounts: str = _objective(
        "uniform",
        "Distribution of the toy network's amount of corruption: uniform on [0, 1), or normal as its source draws it.",
        choices=("uniform", "normal"),
        needs=_toy,
    )
    dequantize: bool = _objective(
        False,
        "Add uniform noise of the width of one of 256 levels to the images, for a model with a likelihood.",
        needs=_no_toy,
    )
    min_snr_gamma: float = _objective(5.0, "Bound of min_snr.", above=0, needs=(_no_toy, _min_snr))
    p2_gamma: float = _objective(1.0, "Exponent of p2.", at_least=0, needs=(_no_toy, _p2))
    p2_k: float = _objective(1.0, "What p2 adds to the signal-to-noise ratio.", above=0, needs=(_no_toy, _p2))
    sigmoid_bias: float = _objective(
        0.0, "Log signal-to-noise ratio at which sigmoid counts an error of epsilon half.", needs=(_no_toy, _sigmoid)
    )
    edm_sigma_data: float = _objective(0.5, "Standard deviation of the data, for edm.", above=0, needs=(_no_toy, _edm))
    timestep_sampling: str = _objective(
        "uniform",
        "uniform, logit_normal (the ends of the noise path hardly ever), each also as stratified or "
        "stratified_logit_normal over the global batch, or importance (more often where losses are large, and counted "
        "less there).",
        choices=TIMESTEP_SAMPLINGS,
        needs=_no_toy,
        short=True,
    )
    logit_normal_mean: float = _objective(
        0.0, "Mean of logit_normal's normal variable; a positive one prefers noise.", needs=(_no_toy, _logit_normal)
    )
    logit_normal_std: float = _objective(1.0, "Its standard deviation.", above=0, needs=(_no_toy, _logit_normal))

    # optimisation
    seed: int = _optimisation(0, "Fixes initial weights, data order, noise and augmentation.", at_least=0, short=True)
    train_batch_size: int = _optimisation(16, "Images per process and step.", at_least=1, short=True)
    num_epochs: int = _optimisation(
        100, "Passes through the data.", at_least=1, needs=_epochs, short=True, on_resume=FREE
    )
    max_train_steps: int | None = _optimisation(
        None, "Stop after this many optimizer steps.", at_least=1, short=True, on_resume=FREE
    )
    max_train_seconds: float | None = _optimisation(
        None,
        "Stop after this many seconds of training, resumed parts counted; the learning rate decays in time for it.",
        above=0,
        short=True,
        on_resume=FREE,
    )
    gradient_accumulation_steps: int = _optimisation(1, "Batches per optimizer step.", at_least=1)
    optimizer: str = _optimisation(
        "adamw",
        "adamw, or muon, which learns faster: AdamW's rates times 2 or 3 suit it.",
        choices=OPTIMIZERS,
        short=True,
        on_resume=REFUSED,
    )
    learning_rate: float = _optimisation(1e-4, "Learning rate after warm-up.", above=0, short=True)
    lr_scheduler: str = _optimisation("cosine", f"One of {', '.join(LR_SCHEDULERS)}.", choices=LR_SCHEDULERS)
    lr_warmup_steps: int = _optimisation(500, "Optimizer steps of warm-up.", at_least=0, needs=_warm_up)
    adam_beta1: float = _optimisation(0.95, "Adam's beta1.", at_least=0, below=1)
    adam_beta2: float = _optimisation(0.999, "Adam's beta2.", at_least=0, below=1)
    adam_weight_decay: float = _optimisation(1e-6, "AdamW's weight decay.", at_least=0)
    adam_epsilon: float = _optimisation(1e-8, "Adam's epsilon.", at_least=0)
    max_grad_norm: float = _optimisation(1.0, "Gradients are scaled down to this norm.", above=0)
    mixed_precision: str | None = _optimisation(
        None,
        "no, fp16, bf16, or auto (what a few timed steps show to be the fastest); the launcher's when not given.",
        choices=MIXED_PRECISIONS,
        short=True,
    )
    local_rank: int = _optimisation(-1, "Set by launchers.", at_least=-1, on_resume=FREE)
    enable_xformers_memory_efficient_attention: bool = _optimisation(False, "Use xformers' attention.", on_resume=FREE)

    # exponential moving average
    use_ema: bool = _average(
        False, "Keep an exponential moving average of the weights, and save and sample that.", short=True
    )
    ema_kind: str = _average(
        "warmup",
        "warmup: a decay that grows to ema_max_decay; power: an average over the same share of the run at any time.",
        choices=EMA_KINDS,
        needs=_any_average,
        on_resume=REFUSED,
    )
    ema_sigma_rel: list[float] = _average(
        [0.05, 0.1],
        "Lengths of power-function averages, as the standard deviation's share of the training so far; "
        "`--ema_kind power` samples and saves the first.",
        above=0,
        below=LONGEST_SIGMA_REL,
        needs=_power_average,
    )
    ema_snapshots: int | None = _average(
        None,
        "Keep the averages of all ema_sigma_rel every so many optimizer steps, of which `diffusers-ext ema` makes one "
        "of any length after training.",
        at_least=1,
    )
    ema_inv_gamma: float = _average(
        1.0, "Inverse multiplicative factor of the EMA warm-up.", above=0, needs=_warmup_average
    )
    ema_power: float = _average(0.75, "Exponent of the EMA warm-up.", at_least=0, needs=_warmup_average)
    ema_max_decay: float = _average(0.9999, "Largest EMA decay.", at_least=0, at_most=1, needs=_warmup_average)
    ema_update_after_step: int = _average(
        0, "Steps before the EMA starts to follow.", at_least=0, needs=_warmup_average
    )

    # validation and previews
    validation_split: str | None = _evaluation(
        None, "Split for the validation loss; `test` for the embedded set.", short=True
    )
    validation_steps: int | None = _evaluation(
        None,
        "Validate and preview every so many optimizer steps; when not given, every save_images_epochs epochs.",
        at_least=1,
    )
    validation_size: int = _evaluation(1000, "Number of validation images.", at_least=1, needs=_held_out)
    classifier: str | None = _evaluation(
        None, "Folder of a classifier (`diffusers-ext classifier train`), which measures samples at the end of the run."
    )
    features: str | None = _evaluation(
        None,
        "Network whose features are compared, as `diffusers-ext evaluate` takes it; the classifier's if not given.",
    )
    evaluation_steps: int | None = _evaluation(
        None, "Measure samples every so many optimizer steps as well.", at_least=1
    )
    evaluation_size: int = _evaluation(
        500, "Samples that are measured, at most half of the validation images.", at_least=1, needs=_measured
    )
    early_stopping_patience: int | None = _evaluation(
        None, "Stop after so many validations without a better loss.", at_least=1
    )
    early_stopping_min_delta: float = _evaluation(
        0.0, "How much lower counts as better.", at_least=0, needs=_early_stopping
    )
    eval_batch_size: int = _evaluation(16, "Images in a preview.", at_least=1)
    sampler: str = _evaluation(
        "ddpm",
        f"Scheduler of previews, of measured samples and of the saved pipeline: {', '.join(SAMPLERS)}, or a class of "
        "your own as `path/to/file.py:Class`.",
        choices=tuple(SAMPLERS),
        or_class=True,
        needs=(_generation, _no_toy_sampler),
        short=True,
    )
    subsequence: str = _evaluation(
        "uniform",
        f"Times that ddim visits: {', '.join(SUBSEQUENCES)}.",
        choices=SUBSEQUENCES,
        needs=(_generation, _no_toy, _subsequences),
    )
    eta: float | None = _sampler_option("eta")
    gamma: str | None = _sampler_option("gamma")
    clip_sample: bool | None = _sampler_option("clip_sample")
    inner_steps: int | None = _sampler_option("inner_steps")
    snr: float | None = _sampler_option("snr")
    ddpm_num_inference_steps: int = _evaluation(
        1000,
        "Sampling steps of previews and of measured samples.",
        at_least=1,
        at_most=100_000,
        short=True,
        needs=_generation,
    )
    save_images_epochs: int = _evaluation(
        10,
        "Validate and preview every so many epochs, unless validation_steps is given.",
        at_least=1,
        needs=(_epochs, _no_validation_steps),
    )

    # output
    output_dir: str = _output("ddpm-model-64", "Where everything is written.", short=True)
    overwrite_output_dir: bool = _output(
        False, "Start afresh in an output folder that holds an earlier run.", needs=_fresh, short=True
    )
    save_model_epochs: int = _output(10, "Save the pipeline every so many epochs.", at_least=1, needs=_epochs)
    checkpointing_steps: int = _output(
        500, "Save a checkpoint to resume from every so many optimizer steps.", at_least=1
    )
    checkpoints_total_limit: int | None = _output(None, "Keep this many checkpoints, the newest.", at_least=1)
    resume_from_checkpoint: str | None = _output(None, "`latest`, or the path of a checkpoint.", short=True)
    save_figures: bool = _output(
        True, "Draw samples, the noise schedule, the losses and a GIF of the reverse process when the run ends."
    )
    logger: str = _output("tensorboard", "tensorboard, wandb or none.", choices=LOGGERS)
    logging_dir: str = _output("logs", "Folder of the tracker below the output folder.", needs=_tensorboard)
    logging_steps: int = _output(10, "Write metrics every so many optimizer steps.", at_least=1)
    push_to_hub: bool = _hub(False, "Push the pipeline to the Hub whenever it is saved.")
    hub_token: str | None = _hub(None, "Token for the Hub; better given by `hf auth login`.", secret=True)
    hub_model_id: str | None = _hub(None, "Repository on the Hub; named like the output folder when not given.")
    hub_private_repo: bool = _hub(False, "Create the repository as a private one.", needs=_pushing)
    callback: list[str] = _output(
        [], "TrainerCallback classes that act while training, each as `path/to/file.py:Class` or `module:Class`."
    )
    debug: bool = _output(False, "Show the whole traceback of an error.")

    def __post_init__(self) -> None:
        check(self)
        self._take_objective()
        self.hub_token = clean_token(self.hub_token)
        self._check_noise_path()
        self._check_average()
        self._check_evaluation()
        self._check_latents()
        if self.streaming:
            self._check_streaming()
        if self.condition is not None:
            self._check_condition(CONDITIONS[self.condition])
        if Path(self.logging_dir).is_absolute() or ".." in Path(self.logging_dir).parts:
            raise ValueError(f"logging_dir names a folder inside output_dir, got '{self.logging_dir}'.")

    def _take_objective(self) -> None:
        """Give settings at their defaults the values that the objective needs or prefers."""
        settings = settings_of(type(self))
        implied, preferred = declared(self.objective, "implied"), declared(self.objective, "preferred")
        for name, value in {**implied, **preferred}.items():
            if getattr(self, name) == settings[name].default:
                setattr(self, name, value)
            elif name in implied and getattr(self, name) != value:
                raise ValueError(f"objective {self.objective} needs {name} {value}, got {getattr(self, name)}.")

    def _check_noise_path(self) -> None:
        if _noise_schedule(self) in BETA_RANGE_SCHEDULES and self.beta_end < self.beta_start:
            raise ValueError(f"beta_end must be at least beta_start, got {self.beta_end:g} below {self.beta_start:g}.")

    def _check_average(self) -> None:
        # Files in a checkpoint are named by 6 digits of the length.
        if len({f"{sigma_rel:g}" for sigma_rel in self.ema_sigma_rel}) < max(len(self.ema_sigma_rel), 1):
            raise ValueError(
                f"ema_sigma_rel takes one length or several that differ in 6 digits, got {self.ema_sigma_rel}."
            )
        if self.ema_snapshots is not None and len(self.ema_sigma_rel) < 2:
            raise ValueError(f"ema_snapshots needs two lengths in ema_sigma_rel, got {self.ema_sigma_rel}.")
        if self.ema_kind == "power" and not self.use_ema and self.ema_snapshots is None:
            raise ValueError("ema_kind power averages nothing by itself; add use_ema to save it, or ema_snapshots.")

    def _check_evaluation(self) -> None:
        if self.early_stopping_patience is not None and self.held_out_split is None:
            raise ValueError("early_stopping_patience needs a validation_split to measure the loss on.")
        measuring = "classifier" if self.classifier is not None else "features" if self.features is not None else None
        if self.evaluation_steps is not None and measuring is None:
            raise ValueError("evaluation_steps needs a classifier to measure samples with, or features.")
        if measuring is not None and self.held_out_split is None:
            raise ValueError(f"{measuring} needs a validation_split of real images to compare samples with.")

    def _check_latents(self) -> None:
        for name in ("condition", "vae"):
            if self.task == "autoencoder" and getattr(self, name) is not None:
                raise ValueError(f"An autoencoder is trained on images alone; leave {name} out, or task.")
        if self.task == "autoencoder" and self.push_to_hub:
            raise ValueError(
                "An autoencoder is pushed by diffusers: leave push_to_hub out, and call "
                "AutoencoderKL.from_pretrained(output_dir).push_to_hub(name) after the run."
            )
        if self.vae is not None and self.streaming:
            raise ValueError("vae encodes all images before the first step, and a stream has no end; leave one out.")
        if self.vae is not None and self.dequantize:
            raise ValueError("dequantize is for images of 256 levels, and latents have none; leave it out, or vae.")
        if self.vae is not None and self.condition == "image":
            raise ValueError(
                "A condition image can't be used with vae yet; train on pixels, or choose a condition "
                f"of {', '.join(name for name in CONDITIONS if name != 'image')}."
            )

    def _check_condition(self, condition: Any) -> None:
        if self.label_free_epochs >= self.num_epochs:
            raise ValueError(f"label_free_epochs must be below num_epochs, got {self.label_free_epochs}.")
        if self.label_free_epochs and self.max_train_seconds:
            raise ValueError("label_free_epochs are the last of num_epochs; leave max_train_seconds out.")
        if self.guidance_scale != 1 and not self.condition_dropout and not self.label_free_epochs:
            raise ValueError(
                f"guidance_scale {self.guidance_scale:g} of previews needs a null condition that is trained; set "
                "condition_dropout above 0, or label_free_epochs."
            )
        if hasattr(condition, "check_settings"):
            condition.check_settings(self)

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

    @property
    def held_out_split(self) -> str | None:
        """The split that the network is validated on and compared with, if there is one."""
        return self.validation_split or ("test" if self.uses_embedded_data else None)

    @property
    def uses_embedded_data(self) -> bool:
        """Whether the run trains on the digits inside the package."""
        return self.dataset_name == "embedded" or (self.dataset_name is None and self.train_data_dir is None)

    @classmethod
    def from_recipe(cls, recipe: str | Path, **overrides: Any) -> TrainingArguments:
        """The settings of a recipe, with `overrides` in place of its own.

        Args:
            recipe: a YAML file, or the name of a recipe in the package: "mnist".
            overrides: settings by name.

        Raises:
            ValueError, FileNotFoundError: one sentence on what is wrong with the recipe or a setting.
        """
        for name in overrides:
            if name not in settings_of(cls):
                raise SettingsError(f"There is no setting '{name}'.")
        return _combined(read_recipe(recipe), overrides)

    @property
    def given(self) -> dict[str, str]:
        """Where settings were given, `flag` or `recipe`, by name; in Python, those that differ from their defaults."""
        given = getattr(self, "_given", None)
        return dict.fromkeys(self._changed(), FLAG) if given is None else given

    def _changed(self) -> dict[str, Any]:
        """The settings that differ from their defaults."""
        settings = settings_of(type(self))
        return {name: value for name, value in dataclasses.asdict(self).items() if value != settings[name].default}

    def to_yaml(self) -> str:
        """The settings that differ from their defaults, as a recipe; the Hub's token is left out."""
        # A recipe says what is trained, not whether to overwrite, resume or log in.
        left_out = ("hub_token", "overwrite_output_dir", "resume_from_checkpoint", "local_rank", "debug")
        changed = {name: value for name, value in self._changed().items() if name not in left_out}
        return f"# Written by {_made_by()}.\n{yaml.safe_dump(changed, sort_keys=False)}"


def _made_by() -> str:
    return ", ".join(f"{name} {version}" for name, version in versions().items())


# --- command lines and recipes ----------------------------------------------------------------------------------------

_RECIPE = Setting("recipe", str, None, "YAML file with settings, or the name of a recipe in the package.", short=True)
_USAGE = "train_unconditional.py [--recipe RECIPE] [--setting value ...]"


def parse_arguments(argv: Sequence[str], usage: str = _USAGE, **defaults: Any) -> TrainingArguments:
    """Settings from a command line. `--recipe` is read first; flags beside it win.

    Args:
        argv: the flags.
        usage: how the program is called, for its help.
        defaults: values of settings that neither the recipe nor a flag names, in place of their usual defaults.

    Raises:
        HelpRequested: with the help, when the flags ask for it.
        ValueError, FileNotFoundError: one sentence on the first thing that is wrong.
    """
    _check_recipe_flags(argv)
    flags, others = parse(TrainingArguments, argv, usage, [_RECIPE])
    if others:
        raise SettingsError(f"'{others[0]}' belongs to no flag; flags start with --.")
    recipe = flags.pop("recipe", None)
    return _combined(Recipe("", {}) if recipe is None else read_recipe(recipe), flags, **defaults)


def _check_recipe_flags(argv: Sequence[str]) -> None:
    if sum(flag == "--recipe" or flag.startswith("--recipe=") for flag in argv) > 1:
        raise SettingsError("Give one --recipe; flags beside it change single settings.")
    if "--recipe=" in argv or list(argv[-1:]) == ["--recipe"]:
        raise SettingsError("recipe takes a YAML file or the name of a recipe, got nothing.")


def _combined(recipe: Recipe, flags: dict[str, Any], **defaults: Any) -> TrainingArguments:
    """The settings of a recipe and of flags; flags win."""
    values = as_values(recipe, settings_of(TrainingArguments))
    given = {**dict.fromkeys(values, RECIPE), **dict.fromkeys(flags, FLAG)}
    for name in _of_other_data(given):
        del given[name], values[name]
    arguments = TrainingArguments(**{**defaults, **values, **flags})
    arguments._given = given
    return arguments


def _of_other_data(given: Mapping[str, str]) -> list[str]:
    """What a recipe says of its data set, where a flag names a folder in its place: a flag wins by any name."""
    if not (given.get("train_data_dir") == FLAG and given.get("dataset_name") == RECIPE):
        return []
    of_the_set = ("dataset_name", "dataset_config_name", "image_column", "label_column", "caption_column")
    return [name for name in of_the_set if given.get(name) == RECIPE]


def json_option(name: str, text: str | None) -> dict[str, Any]:
    """The dictionary in a JSON setting; empty when it was not given.

    Raises:
        ValueError: unless it is a JSON object.
    """
    try:
        value = json.loads(text or "{}")
    except (json.JSONDecodeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a JSON object such as '{{\"s\": 0.008}}', got {text!r}.")
    return value
