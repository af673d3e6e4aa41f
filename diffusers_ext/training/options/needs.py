"""What the settings of a training run need to have an effect."""

from typing import Any

from ...objectives.registry import DIFFUSION
from ...objectives.timestep_sampling import LOGIT_NORMAL
from ...schedulers.registry import samplers_with
from ...schedulers.schedules import BETA_RANGE_SCHEDULES
from ...settings.needs import Need, equal_to, given, not_given, switched_on

_NETWORK = ("model", "model_config_name_or_path")
_AVERAGES = ("use_ema", "ema_kind", "ema_snapshots")
LEARNED_RANGE = "learned_range"


def _no_toy(a: Any) -> bool:
    return not a.trains_toy


def _weighting(name: str) -> Need:
    switches = ("loss_weighting", "prediction_type", "schedule")
    return Need(lambda a: a.weighting == name, f"loss_weighting is not {name}", switches)


# --- data and network -------------------------------------------------------------------------------------------------

NO_DATASET_NAME = not_given("dataset_name")
CONFIGURATIONS = Need(
    lambda a: a.dataset_name not in (None, "embedded"),
    "dataset_name names no data set that has configurations",
    ("dataset_name", "train_data_dir"),
)
STREAMING = switched_on("streaming")
EPOCHS = Need(lambda a: not a.streaming, "a run on a stream is one epoch of max_train_steps", ("streaming",))
GENERATION = Need(lambda a: a.task == "generation", "an autoencoder is trained", ("task",))
AUTOENCODER = equal_to("task", "autoencoder")
ADVERSARIAL = Need(lambda a: a.adversarial_weight > 0, "adversarial_weight is 0", ("adversarial_weight",))
RECONSTRUCTS = Need(lambda a: a.task == "autoencoder" or a.vae is not None, "there is no autoencoder", ("task", "vae"))
LATENTS = given("vae")
CONDITIONAL = given("condition")
NO_START = not_given("init_from", contradiction=True)
MODEL_BY_NAME = not_given("model_config_name_or_path", contradiction=True)

# --- noise path and objective -----------------------------------------------------------------------------------------

TOY = Need(lambda a: a.trains_toy, "the network is not the toy network", _NETWORK)
NO_TOY = Need(_no_toy, "the toy network knows no time and has an objective of its own", _NETWORK)
NO_TOY_SAMPLER = Need(_no_toy, "the toy network is sampled by its own mixing alone", _NETWORK, contradiction=True)
NO_TOY_OBJECTIVE = Need(_no_toy, "the toy network has an objective of its own", _NETWORK, contradiction=True)
DIFFUSION_LOSS = Need(
    lambda a: a.objective == DIFFUSION, "the objective has a loss of its own", ("objective",), contradiction=True
)
NO_SCHEDULE = not_given("schedule", contradiction=True)
BETAS = Need(
    lambda a: a.noise_schedule in BETA_RANGE_SCHEDULES,
    f"of the schedules, only {', '.join(BETA_RANGE_SCHEDULES)} lie between two betas",
    ("schedule", "ddpm_beta_schedule"),
)
VARIANCE = Need(lambda a: a.sampler == "ddpm" or a.variance_type == LEARNED_RANGE, "sampler is not ddpm", ("sampler",))
MIN_SNR, P2, SIGMOID, EDM = map(_weighting, ("min_snr", "p2", "sigmoid", "edm"))
LOGIT_NORMAL_TIMES = Need(
    lambda a: a.timestep_sampling in LOGIT_NORMAL,
    "timestep_sampling is not (stratified_)logit_normal",
    ("timestep_sampling",),
)

# --- optimisation and averages ----------------------------------------------------------------------------------------

WARM_UP = Need(
    lambda a: a.lr_scheduler != "constant",
    "lr_scheduler constant has no warm-up; constant_with_warmup has one",
    ("lr_scheduler",),
)
ANY_AVERAGE = Need(lambda a: a.use_ema or a.ema_snapshots is not None, "use_ema is off", ("use_ema", "ema_snapshots"))
WARMUP_AVERAGE = Need(
    lambda a: a.use_ema and a.ema_kind == "warmup",
    "there is no average by use_ema with ema_kind warmup",
    _AVERAGES[:2],
)
POWER_AVERAGE = Need(
    lambda a: (a.use_ema and a.ema_kind == "power") or a.ema_snapshots is not None,
    "there is no average by use_ema with ema_kind power, and no ema_snapshots",
    _AVERAGES,
)

# --- evaluation and output --------------------------------------------------------------------------------------------

HELD_OUT = Need(
    lambda a: a.held_out_split is not None,
    "there is no validation_split",
    ("validation_split", "dataset_name", "train_data_dir"),
)
NO_VALIDATION_STEPS = not_given("validation_steps")
EARLY_STOPPING = given("early_stopping_patience", "early_stopping_patience is not set")
EVALUATED = Need(
    lambda a: a.task == "autoencoder" or a.classifier is not None or a.features is not None,
    "there is neither classifier nor features",
    ("task", "classifier", "features"),
)
SUBSEQUENCES = Need(
    lambda a: a.sampler in samplers_with("subsequence"),
    f"only {' and '.join(samplers_with('subsequence'))} visit a subsequence",
    ("sampler",),
)
TENSORBOARD = equal_to("logger", "tensorboard")
PUSHING = switched_on("push_to_hub")
FRESH = not_given("resume_from_checkpoint", "resume_from_checkpoint goes on with the run that is there")
