"""What several commands do alike."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from tqdm.auto import tqdm

from ..files import one_line
from ..pipelines.guidance import check_guidance
from ..settings import SettingsError, option, read_recipe, settings_of
from ..settings.recipes import recipe_names
from ..training.checkpoint import list_checkpoints

if TYPE_CHECKING:
    from ..evaluation.classifier import ImageClassifier

_T = TypeVar("_T")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTO = "auto"
DTYPE_HELP = "Numbers the network computes with; auto times them on the first batch, and takes the fastest."
DTYPE_CHOICES = (*DTYPES, AUTO)


@dataclass
class GuidedSteps:
    """The flag of commands that guide."""

    guidance_interval: list[float] | None = option(
        None,
        "Guide only this part of the sampling, such as 0.2 0.8: from 20 % to 80 % of the steps. The others are "
        "conditional.",
        at_least=0,
        at_most=1,
    )

    def interval(self) -> dict[str, list[float]]:
        """The argument of a pipeline's call, if it was given. Raises ValueError for shares that are no interval."""
        if self.guidance_interval is None:
            return {}
        check_guidance(1.0, self.guidance_interval, 0.0)
        return {"guidance_interval": self.guidance_interval}

    def check_interval(self, scale: float) -> None:
        """Raise ValueError for shares that are no interval, and for any at a scale that they do not change."""
        if self.interval() and scale == 1:
            raise ValueError("guidance_interval has no effect at guidance_scale 1; give another scale.")


@dataclass
class ModelCode:
    """The flag of commands that load a model."""

    trust_remote_code: bool = option(
        False, "Run the code in the model's folder or repository, which a network of your own needs. Read it first."
    )


def best_device(device: str | None) -> str:
    """The device asked for, or the best there is. Raises ValueError for one that is not there."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=torch.device(device))
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f"device '{device}' is not available here; the best there is: {best_device(None)}.") from None
    if torch.device(device).type == "meta":
        raise ValueError("device 'meta' computes nothing; use cpu, cuda or mps.")
    return device


def load_pipeline(model: str, device: str | None, dtype: str = "float32", trust_remote_code: bool = False) -> Any:
    """A pipeline by folder or Hub name, on its device. Raises ValueError or OSError when there is none.

    Classes of this package are the installed ones; code beside the model runs only with `trust_remote_code`.
    """
    import diffusers
    from packaging.version import Version

    check_folder("pipeline", model, "model_index.json", "`diffusers-ext train` makes one")
    device = best_device(device)
    # Not `to(dtype)`, which warns of modules to keep in float32 even when there are none.
    name = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"
    numbers = DTYPES.get(dtype, torch.float32)
    try:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            model, **{name: numbers}, trust_remote_code=trust_remote_code
        )
    except (OSError, ImportError, MemoryError):
        raise
    except Exception as error:  # whatever diffusers raises for configurations that nobody checked
        raise ValueError(_why_not_loaded(model, error)) from error
    _check_weights(model, pipeline)
    pipeline.set_progress_bar_config(**progress_bar())
    if dtype == AUTO:
        _compute_fastest(pipeline)
    return pipeline.to(device)


def _compute_fastest(pipeline: Any) -> None:
    from ..training.fastest import compute_fastest

    compute_fastest(pipeline.unet)


def _why_not_loaded(model: str, error: Exception) -> str:
    """One sentence that names the file, or the model if its configurations are sound."""
    import diffusers

    if "trust_remote_code" in str(error):
        return (
            f"'{model}' holds code of its own, such as the class of its network. Read it; then add --trust_remote_code "
            "to run it."
        )
    index = Path(model) / "model_index.json"
    parts = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    for part, value in parts.items():
        files = [Path(model) / part / name for name in ("config.json", "scheduler_config.json")]
        is_class = isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)
        if not is_class and (Path(model) / part).is_dir():
            return f"'{index}' is damaged: {part} is {_brief(value)}, where a library and a class belong."
        part_class: Any = getattr(diffusers, value[1], None) if is_class else None
        if not hasattr(part_class, "from_config"):
            continue
        for file in filter(Path.is_file, files):
            try:
                with torch.device("meta"):
                    part_class.from_config(json.loads(file.read_text(encoding="utf-8")))
            except Exception as reason:
                return f"'{file}' is no configuration of {value[1]}: {_brief(reason)}"
    where = f"'{index}' or the parts it names" if parts else f"'{model}'"
    return f"{where} can't be loaded: {_brief(error)}"


def _brief(error: Any) -> str:
    text = one_line(error)
    return text if len(text) <= 400 else f"{text[:397]}..."


def _check_weights(model: str, pipeline: Any) -> None:
    """Raise ValueError for a network whose configuration has weights that its file lacks."""
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            missing = [key for key, value in part.named_parameters() if value.is_meta]
            if missing:
                raise ValueError(
                    f"The weights of '{model}/{name}' lack {', '.join(missing[:3])}, which its config.json has."
                )


def run_folder(model: str) -> str:
    """The output folder of a recipe that is meant by its name, or the name itself.

    Raises:
        ValueError: when nothing was trained by the recipe yet.
    """
    if model not in recipe_names() or Path(model).exists():
        return model
    folder = str(read_recipe(model).settings["output_dir"])
    saved = any((Path(folder) / name).is_file() for name in ("model_index.json", "config.json"))
    if not saved and not list_checkpoints(Path(folder)):
        raise ValueError(f"There is no model in '{folder}' yet; train one with: diffusers-ext train {model}.")
    return folder


def settings_of_run(folder: str) -> dict[str, Any]:
    """The settings of a run by its `recipe.yaml`, defaults included, or those of sampling by a `checkpoint-N` folder.

    There are none when the folder holds neither.
    """
    from ..training.unfinished import sampling_of_checkpoint

    file = Path(folder) / "recipe.yaml"
    try:
        written = read_recipe(file).settings if file.is_file() else None
    except SettingsError:  # somebody else's file of that name
        written = None
    if written is None:
        return sampling_of_checkpoint(folder)
    from ..training import TrainingArguments

    return {name: setting.default for name, setting in settings_of(TrainingArguments).items()} | written


def load_checkpoint(path: str, device: str | None, dtype: str = "float32", architecture: str | None = None) -> Any:
    """The pipeline of a checkpoint: a `checkpoint-N` folder of a run, or a file of weights of another project.

    Raises:
        ValueError, FileNotFoundError: one sentence on what can't be read.
    """
    from ..hub.convert import convert
    from ..training.precision import cast_weights
    from ..training.unfinished import pipeline_of_checkpoint

    found = Path(path)
    if not found.exists():
        raise FileNotFoundError(f"There is no checkpoint '{path}'.")
    is_ours = found.is_dir() and not (found / "config.json").is_file() and not (found / "model_index.json").is_file()
    pipeline = pipeline_of_checkpoint(found) if is_ours else convert(found, architecture, report=print)
    if dtype == AUTO:
        _compute_fastest(pipeline)
    else:
        cast_weights(pipeline.unet, DTYPES[dtype])
    pipeline.set_progress_bar_config(**progress_bar())
    return pipeline.to(best_device(device))


def progress_bar(**more: Any) -> dict[str, Any]:
    """Options of a pipeline's progress bar: none when the output is not a terminal."""
    return {"disable": None, **more}


def bar(steps: Iterable[_T], title: str, total: int | None = None) -> Iterable[_T]:
    """The steps, with a progress bar and the time left; none when the output is not a terminal."""
    return tqdm(steps, desc=title, total=total, **progress_bar(leave=False))


def load_classifier(folder: str, device: str | None) -> ImageClassifier:
    """A classifier by folder or Hub name, on its device. Raises ValueError or OSError when there is none."""
    from ..evaluation.signal_classifier import classifier_of

    check_folder("classifier", folder, "config.json", "`diffusers-ext classifier train` makes one")
    classifier: Any = classifier_of(folder)
    return classifier.to(best_device(device))


def check_folder(what: str, name: str, file: str, maker: str) -> None:
    """Raise ValueError when a name means a local folder that is not there or lacks `file`; the Hub is not asked then.

    A Hub name is `owner/name`. A name means a folder when it is there, when it can be no Hub name, or when its first
    part is a folder here or `outputs`, where the recipes write.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / file).is_file():
            if what == "pipeline" and "latent_channels" in _entries(path / "config.json"):
                raise ValueError(
                    f"'{name}' is an autoencoder, which samples nothing by itself; train a diffusion model on its "
                    f"latents with --vae {name}, and name that model here."
                )
            checkpoints = list_checkpoints(path)
            if checkpoints:
                maker = f"its run has not ended; its latest checkpoint is sampled by --checkpoint {checkpoints[-1]}"
            raise ValueError(f"'{name}' holds no {what}: {file} is missing; {maker}.")
        _check_json_files(path)
        return
    if path.exists():
        raise ValueError(f"'{name}' is a file; a {what} is a folder, or a name on the Hub.")
    if not _HUB_NAME.fullmatch(name) or Path(path.parts[0]).is_dir() or path.parts[0] == "outputs":
        raise ValueError(f"There is no {what} '{name}'; {maker}.")


def _entries(file: Path) -> dict[str, Any]:
    """The entries of a configuration; none where the file is missing or holds something else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_json_files(folder: Path) -> None:
    """Raise ValueError for a configuration that is no JSON object, of which libraries raise what they happen to."""
    for path in [*folder.glob("*.json"), *folder.glob("*/*config.json")]:
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise ValueError(f"'{path}' is damaged: it holds no JSON object.")
