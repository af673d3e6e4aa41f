"""Convert checkpoints of other projects: a file of weights, or a diffusers folder, becomes a `GenerationPipeline`.

A file holds a bare state dict, or what a trainer saved around one. Three questions are answered in this order:

1. Which tensors are the network's (`checkpoint`)? Averaged weights are found under their usual names, wrappers such as
   `module.` are removed from the names, and the tables of a diffusion process (`betas`, ...) are set aside.
2. Which network is it, and of which size (`network`)? The names decide the family and the shapes the configuration.
   What does not follow from weights (heads, groups, a defect that the project trained with) is in `sources`.
3. Which noise path, and which prediction (`noise`)? From the tables if there are any, else as the project trains.

Each family is one file: a configuration from shapes, the file's name for each of our parameters, and the layouts of
those that are stored differently. Missing, unknown and misshapen keys are reported under the file's own names.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...pipelines import GenerationPipeline
from .checkpoint import FILE_TYPES, read_checkpoint, unwrap
from .folder import from_folder
from .network import build_from_weights, checked, detect_architecture, translate
from .noise import SAMPLERS, detect_noise, scheduler_of, scheduler_settings
from .sources import SOURCES

__all__ = [
    "FILE_TYPES",
    "SOURCES",
    "build_from_weights",
    "convert",
    "detect_architecture",
    "detect_noise",
    "translate",
    "unwrap",
]

logger = logging.getLogger(__name__)


def convert(
    path: str | Path,
    architecture: str | None = None,
    *,
    ema: bool = True,
    schedule: str | None = None,
    num_train_timesteps: int | None = None,
    beta_start: float | None = None,
    beta_end: float | None = None,
    schedule_options: Mapping[str, Any] | None = None,
    prediction_type: str | None = None,
    sample_size: int | None = None,
    model_options: Mapping[str, Any] | None = None,
    sampler: str = "ddpm",
    report: Callable[[str], None] = logger.info,
) -> GenerationPipeline:
    """Convert another project's checkpoint into a pipeline; `save_pretrained` or `export` saves the result.

    Args:
        path: a file of weights (`FILE_TYPES`), or a folder of diffusers' `UNet2DModel` or of a pipeline with one.
            Nothing but tensors and plain containers is unpickled.
        architecture: a key of `SOURCES`; detected when None, if only one fits.
        ema: take averaged weights if the file has any; False takes those as trained.
        schedule, num_train_timesteps, beta_start, beta_end, schedule_options: the noise path, as in `NoisePath`, if it
            differs from the tables in the file and from what the project trains with.
        prediction_type: what the network predicts, if it differs from the same.
        sample_size: default height and width of images; the project's own when None.
        model_options: entries of the network's configuration that override those found.
        sampler: scheduler of the pipeline, `ddpm` or `ddim`.
        report: called with one line on which weights were found and chosen; logs it by default.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: one sentence, if the file can't be read or does not fit, or if a setting must be given.
    """
    path = Path(path)
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got '{sampler}'.")
    if sample_size is not None and sample_size < 1:
        raise ValueError(f"sample_size must be at least 1, got {sample_size}.")
    given = {
        "beta_schedule": schedule,
        "num_train_timesteps": num_train_timesteps,
        "beta_start": beta_start,
        "beta_end": beta_end,
        "schedule_options": schedule_options,
        "prediction_type": prediction_type,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if path.is_dir():
        if architecture is not None or model_options:
            raise ValueError("architecture and model_options are for files; a diffusers folder has its own.")
        return from_folder(path, given, sample_size, sampler)
    checkpoint = read_checkpoint(path, ema)
    weights, tables = unwrap(checkpoint.weights, ema)
    architecture = detect_architecture(weights) if architecture is None else checked(architecture, weights)
    settings = scheduler_settings(architecture, tables, given)
    options = {**(model_options or {}), **({} if sample_size is None else {"sample_size": sample_size})}
    model = build_from_weights(architecture, weights, options, settings.get("num_train_timesteps"))
    report(f"Found in '{path}': {checkpoint}.")
    return GenerationPipeline(model, scheduler_of(architecture, model, settings, sampler))
