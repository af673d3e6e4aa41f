"""Folders of diffusers: a `UNet2DModel`, or a pipeline with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...pipelines import GenerationPipeline
from .noise import PATH_KEYS, SAMPLERS, over


def from_folder(path: Path, given: dict[str, Any], sample_size: int | None, sampler: str) -> GenerationPipeline:
    """A pipeline with the `UNet2DModel` of a folder, whose parts are read one by one: no code in the folder runs."""
    from diffusers import UNet2DModel

    inside = (path / "model_index.json").is_file()
    folder = path / "unet" if inside else path
    config = _read_json(folder / "config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise ValueError(
            f"'{folder}' holds a {config.get('_class_name')}; of diffusers' networks only UNet2DModel can be converted."
        )
    scheduler = _folder_scheduler(path / "scheduler" / "scheduler_config.json", given, sampler)
    model: Any = UNet2DModel.from_pretrained(folder)
    if sample_size is not None:
        model.register_to_config(sample_size=sample_size)
    return GenerationPipeline(model.eval(), scheduler)


def _folder_scheduler(file: Path, given: dict[str, Any], sampler: str) -> Any:
    config = _read_json(file) if file.is_file() else {}
    if "beta_schedule" not in config and config.get("trained_betas") is None:
        absent = [name for name in ("beta_schedule", "num_train_timesteps", "prediction_type") if name not in given]
        if absent:
            words = ", ".join(absent).replace("beta_schedule", "schedule")
            raise ValueError(f"The folder has no noise schedule; give {words}.")
        return SAMPLERS[sampler](**given, timestep_spacing="trailing")
    if "beta_schedule" in given:
        config = {key: value for key, value in config.items() if key not in PATH_KEYS}
    return SAMPLERS[sampler].from_config(over(config, given))


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"'{file.parent}' is not a diffusers model: it has no {file.name}.")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"'{file}' is not valid JSON.") from None
