"""Settings of the noise path and the objective."""

from dataclasses import dataclass

from ...objectives.diffusion import LOSSES
from ...objectives.registry import DIFFUSION, OBJECTIVES
from ...objectives.timestep_sampling import TIMESTEP_SAMPLINGS
from ...objectives.weighting import WEIGHTINGS
from ...schedulers import PREDICTION_TYPES, SCHEDULES
from ...schedulers.schedules import PATHS_WITHOUT_BETAS
from ...settings.declaration import FREE, REFUSED
from . import groups, needs
from .needs import LEARNED_RANGE

_SCHEDULES = (*SCHEDULES, *PATHS_WITHOUT_BETAS)


@dataclass
class ObjectiveOptions:
    """How samples are noised, and what the network learns from them."""

    objective: str = groups.objective(
        DIFFUSION,
        "diffusion, or flow_map: samples in one to four steps (improved MeanFlow, on a rectified flow).",
        choices=tuple(OBJECTIVES),
        needs=needs.NO_TOY_OBJECTIVE,
        short=True,
        on_resume=REFUSED,
        replaced_by="objective",
    )
    schedule: str | None = groups.path(
        None,
        "Noise schedule by name; or a path in continuous time: vp, sub_vp, ve (score SDE), or rectified_flow (straight "
        "lines, for prediction_type flow). Takes the place of --ddpm_beta_schedule.",
        choices=_SCHEDULES,
        short=True,
    )
    ddpm_beta_schedule: str = groups.learning(
        "linear",
        "Noise schedule by name, as diffusers' example calls the flag.",
        choices=_SCHEDULES,
        needs=needs.NO_SCHEDULE,
        on_resume=FREE,
    )
    schedule_options: str | None = groups.path(None, 'JSON with the schedule\'s options, {"s": 0.008}, say.', json=True)
    beta_start: float = groups.path(
        1e-4, "First beta of schedules between two betas.", above=0, below=1, needs=needs.BETAS
    )
    beta_end: float = groups.path(
        0.02, "Last beta of schedules between two betas.", above=0, at_most=1, needs=needs.BETAS
    )
    rescale_betas_zero_snr: bool = groups.path(False, "End the path at exactly zero signal-to-noise ratio.")
    ddpm_num_steps: int = groups.path(1000, "Number of timesteps T of the noise path.", at_least=1, at_most=100_000)
    prediction_type: str = groups.objective(
        "epsilon",
        "What the network predicts.",
        choices=PREDICTION_TYPES,
        short=True,
        on_resume=REFUSED,
    )
    loss: str = groups.loss(
        "l2",
        "Distance between the prediction and its target.",
        choices=tuple(LOSSES),
        needs=needs.DIFFUSION_LOSS,
        replaced_by="objective",
    )
    variance_type: str = groups.path(
        "fixed_small",
        "Variance of the ddpm sampler's steps: fixed_small (beta_tilde), fixed_large (beta), or learned_range, which "
        "the network learns in twice the output channels (Nichol and Dhariwal 2021).",
        choices=("fixed_small", "fixed_large", LEARNED_RANGE),
        needs=needs.VARIANCE,
    )
    loss_weighting: str | None = groups.learning(
        None,
        "Weight of each noise level's loss; when not given, snr for `score`, `mean` and `sample` (min_snr for `sample` "
        "in continuous time, where snr has no bound) and none otherwise.",
        choices=tuple(WEIGHTINGS),
        needs=needs.DIFFUSION_LOSS,
        replaced_by="objective",
    )
    toy_amounts: str = groups.objective(
        "uniform",
        "Distribution of the toy network's amount of corruption: uniform on [0, 1), or normal as its source draws it.",
        choices=("uniform", "normal"),
        needs=needs.TOY,
    )
    dequantize: bool = groups.learning(
        False, "Add uniform noise of the width of one of 256 levels to the images, for a model with a likelihood."
    )
    min_snr_gamma: float = groups.learning(5.0, "Bound of min_snr.", above=0, needs=needs.MIN_SNR)
    p2_gamma: float = groups.learning(1.0, "Exponent of p2.", at_least=0, needs=needs.P2)
    p2_k: float = groups.learning(1.0, "What p2 adds to the signal-to-noise ratio.", above=0, needs=needs.P2)
    sigmoid_bias: float = groups.learning(
        0.0, "Log signal-to-noise ratio at which sigmoid counts an error of epsilon half.", needs=needs.SIGMOID
    )
    edm_sigma_data: float = groups.learning(0.5, "Standard deviation of the data, for edm.", above=0, needs=needs.EDM)
    timestep_sampling: str = groups.learning(
        "uniform",
        "uniform, logit_normal (the ends of the noise path hardly ever), each also as stratified or "
        "stratified_logit_normal over the global batch, or importance (more often where losses are large, and counted "
        "less there).",
        choices=TIMESTEP_SAMPLINGS,
        short=True,
        replaced_by="objective",
    )
    logit_normal_mean: float = groups.learning(
        0.0, "Mean of logit_normal's normal variable; a positive one prefers noise.", needs=needs.LOGIT_NORMAL_TIMES
    )
    logit_normal_std: float = groups.learning(1.0, "Its standard deviation.", above=0, needs=needs.LOGIT_NORMAL_TIMES)
