"""Settings of what is measured and drawn, and of what is written."""

from dataclasses import dataclass
from typing import Any

from ...schedulers.registry import OPTIONS, SAMPLERS, samplers_with
from ...schedulers.scheduling_subsequence import SUBSEQUENCES
from ...settings.needs import Need
from . import groups, needs


def _sampler_option(name: str) -> Any:
    """An option of the samplers that take it; None means the sampler's own."""
    declared, samplers = OPTIONS[name], samplers_with(name)
    need = Need(
        lambda a: a.sampler in samplers or ":" in a.sampler,
        f"it belongs to the samplers {', '.join(samplers)}",
        ("sampler",),
        contradiction=True,
    )
    return groups.evaluation(
        None,
        f"{declared.help} For {', '.join(samplers)}.",
        needs=(needs.GENERATION, needs.NO_TOY, need),
        **declared.declared,
    )


@dataclass
class EvaluationOptions:
    """What is measured and drawn."""

    validation_split: str | None = groups.evaluation(
        None, "Split for the validation loss; `test` for the embedded set.", short=True
    )
    validation_steps: int | None = groups.evaluation(
        None,
        "Validate and preview every so many optimizer steps; when not given, every save_images_epochs epochs.",
        at_least=1,
    )
    validation_size: int = groups.evaluation(1000, "Number of validation images.", at_least=1, needs=needs.HELD_OUT)
    classifier: str | None = groups.evaluation(
        None, "Folder of a classifier (`diffusers-ext classifier train`), which measures samples at the end of the run."
    )
    features: str | None = groups.evaluation(
        None,
        "Network whose features are compared, as `diffusers-ext evaluate` takes it; the classifier's if not given.",
    )
    evaluation_steps: int | None = groups.evaluation(
        None, "Measure samples every so many optimizer steps as well.", at_least=1
    )
    evaluation_size: int = groups.evaluation(
        500,
        "Samples or reconstructions that are measured, at most half of the validation images.",
        at_least=1,
        needs=needs.EVALUATED,
    )
    early_stopping_patience: int | None = groups.evaluation(
        None, "Stop after so many validations without a better loss.", at_least=1
    )
    early_stopping_min_delta: float = groups.evaluation(
        0.0, "How much lower counts as better.", at_least=0, needs=needs.EARLY_STOPPING
    )
    eval_batch_size: int = groups.evaluation(16, "Images in a preview.", at_least=1)
    sampler: str = groups.evaluation(
        "ddpm",
        "Scheduler of previews, of measured samples and of the saved pipeline, or a class of your own as "
        "`path/to/file.py:Class`.",
        choices=tuple(SAMPLERS),
        or_class=True,
        needs=(needs.GENERATION, needs.NO_TOY_SAMPLER),
        short=True,
    )
    subsequence: str = groups.evaluation(
        "uniform",
        "Times that ddim visits.",
        choices=SUBSEQUENCES,
        needs=(needs.GENERATION, needs.NO_TOY, needs.SUBSEQUENCES),
    )
    eta: float | None = _sampler_option("eta")
    gamma: str | None = _sampler_option("gamma")
    clip_sample: bool | None = _sampler_option("clip_sample")
    inner_steps: int | None = _sampler_option("inner_steps")
    snr: float | None = _sampler_option("snr")
    ddpm_num_inference_steps: int = groups.evaluation(
        1000,
        "Sampling steps of previews and of measured samples.",
        at_least=1,
        at_most=100_000,
        short=True,
        needs=needs.GENERATION,
    )
    save_images_epochs: int = groups.evaluation(
        10,
        "Validate and preview every so many epochs, unless validation_steps is given.",
        at_least=1,
        needs=(needs.EPOCHS, needs.NO_VALIDATION_STEPS),
    )


@dataclass
class OutputOptions:
    """What is written, and where."""

    output_dir: str = groups.output("ddpm-model-64", "Where everything is written.", short=True)
    overwrite_output_dir: bool = groups.output(
        False, "Start afresh in an output folder that holds an earlier run.", needs=needs.FRESH, short=True
    )
    save_model_epochs: int = groups.output(
        10, "Save the pipeline every so many epochs.", at_least=1, needs=needs.EPOCHS
    )
    checkpointing_steps: int = groups.output(
        500, "Save a checkpoint to resume from every so many optimizer steps.", at_least=1
    )
    checkpoints_total_limit: int | None = groups.output(None, "Keep this many checkpoints, the newest.", at_least=1)
    resume_from_checkpoint: str | None = groups.output(None, "`latest`, or the path of a checkpoint.", short=True)
    save_figures: bool = groups.output(
        True, "Draw samples, the noise schedule, the losses and a GIF of the reverse process when the run ends."
    )
    logger: str = groups.output("tensorboard", "What shows the metrics.", choices=("tensorboard", "wandb", "none"))
    logging_dir: str = groups.output("logs", "Folder of the tracker below the output folder.", needs=needs.TENSORBOARD)
    logging_steps: int = groups.output(10, "Write metrics every so many optimizer steps.", at_least=1)
    push_to_hub: bool = groups.hub(False, "Push the pipeline to the Hub whenever it is saved.")
    hub_token: str | None = groups.hub(None, "Token for the Hub; better given by `hf auth login`.", secret=True)
    hub_model_id: str | None = groups.hub(None, "Repository on the Hub; named like the output folder when not given.")
    hub_private_repo: bool = groups.hub(False, "Create the repository as a private one.", needs=needs.PUSHING)
    callback: list[str] = groups.output(
        [], "TrainerCallback classes that act while training, each as `path/to/file.py:Class` or `module:Class`."
    )
    debug: bool = groups.output(False, "Show the whole traceback of an error.")
