"""`diffusers-ext convert`: a checkpoint of another project as a pipeline."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from ..schedulers import PREDICTION_TYPES
from ..settings import CheckedSettings, option


@dataclass
class ConvertArguments(CheckedSettings):
    """Turn another project's checkpoint, or a diffusers folder, into a pipeline."""

    checkpoint: str = option(text="File of weights, or folder of a UNet2DModel or its pipeline.")
    output_dir: str = option(text="Where the pipeline goes.", writes="folder")
    architecture: str | None = option(None, "Preset of the network; detected if not given.")
    weights: str = option("ema", "ema (raw where there are none) or raw.", choices=("ema", "raw"))
    schedule: str | None = option(None, "Noise schedule, where it is another than found.")
    num_train_timesteps: int | None = option(None, "T, where it is another than found.")
    beta_start: float | None = option(None, "First beta of schedules between two betas.")
    beta_end: float | None = option(None, "Last beta of schedules between two betas.")
    schedule_options: str | None = option(None, "JSON object of the schedule's options.", json=True)
    prediction_type: str | None = option(None, "epsilon, sample, v_prediction, ...", choices=PREDICTION_TYPES)
    sample_size: int | None = option(None, "Height and width of the images.", at_least=1, at_most=16_384)
    model_options: str | None = option(None, "JSON object of the network's configuration.", json=True)
    sampler: str = option("ddpm", "Scheduler of the pipeline: ddpm or ddim.")


def convert(arguments: ConvertArguments) -> None:
    """Write the pipeline of a checkpoint, and print what it was found to be."""
    from ..hub.convert import convert as convert_checkpoint

    options = asdict(arguments)
    output_dir, ema = options.pop("output_dir"), options.pop("weights") == "ema"
    for name in ("schedule_options", "model_options"):
        options[name] = None if options[name] is None else json.loads(options[name])
    pipeline = convert_checkpoint(options.pop("checkpoint"), ema=ema, report=print, **options)
    pipeline.save_pretrained(output_dir)
    config = pipeline.scheduler.config
    print(f"{type(pipeline.unet).__name__} of {pipeline.unet.num_parameters():,} parameters in {output_dir}")
    print(
        f"It predicts {config.prediction_type}; {config.num_train_timesteps} timesteps of the noise schedule "
        f"{config.get('beta_schedule', 'of the mix')}"
    )
