"""`TrainingArguments`: the settings of a training run, as flags of a script, keys of a YAML recipe, or an object.

The settings stand in `options`; here are the checks that concern several of them, and the ways to give them.
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
from ..hub.provenance import versions
from ..hub.redaction import clean_token
from ..models import PRESETS, ToyUNet2DModel
from ..objectives.registry import OBJECTIVES, declared
from ..schedulers.named_objects import is_name_of_object
from ..schedulers.schedules import BETA_RANGE_SCHEDULES, PATHS_WITHOUT_BETAS
from ..settings import Recipe, Setting, SettingsError, check, parse, read_recipe, settings_of
from ..settings.declaration import json_option
from ..settings.effect import FLAG, RECIPE
from ..settings.recipes import as_values
from .options import (
    LEARNED_RANGE,
    BroughtOptions,
    ConditionOptions,
    DataOptions,
    EvaluationOptions,
    NetworkOptions,
    ObjectiveOptions,
    OptimisationOptions,
    OutputOptions,
)

__all__ = ["LEARNED_RANGE", "MODELS", "TrainingArguments", "json_option", "parse_arguments", "read_config"]

MODELS = (*PRESETS, "unet2d")


class _Origins:
    """Where settings were given, kept beside them: it is no setting, so neither among the fields nor in `vars`."""

    __slots__ = ("_given",)
    _given: dict[str, str]


@dataclass
class TrainingArguments(
    _Origins,
    OutputOptions,
    EvaluationOptions,
    OptimisationOptions,
    ObjectiveOptions,
    ConditionOptions,
    NetworkOptions,
    DataOptions,
    BroughtOptions,
):
    """Train a diffusion model.

    The settings of a training run. Names that diffusers' own unconditional example has mean what they mean there.

    Raises:
        ValueError: on construction, one sentence on the first setting that can't be.
    """

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
            elif name in implied:
                _check_implied(self, name, getattr(self, name))

    def _check_noise_path(self) -> None:
        if self.noise_schedule in BETA_RANGE_SCHEDULES and self.beta_end < self.beta_start:
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
        for name in declared(self.objective, "conditional_entries").values():
            if getattr(self, name) is not None and not self.condition_dropout:
                raise ValueError(f"{name} needs a null condition that is trained; set condition_dropout above 0.")
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

    @property
    def noise_schedule(self) -> str:
        """The name of the noise path's schedule."""
        return self.schedule or self.ddpm_beta_schedule

    @property
    def weighting(self) -> str:
        """The weighting of losses.

        Without a `loss_weighting`, `sample`, `score` and `mean` are weighted by `snr`, which is 1 on epsilon:
        unweighted, a score is learned near the data only, and a mean hardly at all. In continuous time, where snr is
        unbounded near the data, `sample` is weighted by `min_snr`. Other predictions are not weighted.
        """
        of_sample = "min_snr" if self.noise_schedule in PATHS_WITHOUT_BETAS else "snr"
        defaults = {"sample": of_sample, "score": "snr", "mean": "snr"}
        return self.loss_weighting or defaults.get(self.prediction_type, "none")

    @property
    def trains_toy(self) -> bool:
        """Whether the network is the toy network without time. Raises ValueError when there is no such model."""
        if self.task != "generation" or self.model_config_name_or_path is not None:
            return False
        if self.model == "unet2d" or is_name_of_object(self.model):
            return False
        if self.model in PRESETS:
            return PRESETS[self.model].model_class is ToyUNet2DModel
        config = read_config(self.model, MODELS)
        return isinstance(config, dict) and config.get("_class_name") == ToyUNet2DModel.__name__

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
        settings, preferred = settings_of(type(self)), declared(self.objective, "preferred")
        plain = {name: preferred.get(name, setting.default) for name, setting in settings.items()}
        return {name: value for name, value in dataclasses.asdict(self).items() if value != plain[name]}

    def to_yaml(self) -> str:
        """The settings that differ from their defaults, as a recipe; the Hub's token is left out."""
        # A recipe says what is trained, not whether to overwrite, resume or log in.
        left_out = ("hub_token", "overwrite_output_dir", "resume_from_checkpoint", "local_rank", "debug")
        changed = {name: value for name, value in self._changed().items() if name not in left_out}
        return f"# Written by {_made_by()}.\n{yaml.safe_dump(changed, sort_keys=False)}"


def _made_by() -> str:
    return ", ".join(f"{name} {version}" for name, version in versions().items())


def read_config(name: str, presets: Sequence[str]) -> Any:
    """The configuration in a file or a folder. Raises ValueError when there is none."""
    path = Path(name)
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"model '{name}' is neither a preset ({', '.join(presets)}) nor a configuration.")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        raise ValueError(f"model configuration '{file}' is not valid JSON.") from None


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
    inherited = {name: value for name, value in values.items() if name not in recipe.own}
    for name in _superseded(inherited, {name: value for name, value in values.items() if name in recipe.own}):
        del values[name]
    for name in _superseded(values, flags):
        del values[name]
    given = {**dict.fromkeys(values, RECIPE), **dict.fromkeys(flags, FLAG)}
    own = {**values, **flags}
    arguments = TrainingArguments(**{**defaults, **own})
    for name in declared(arguments.objective, "implied"):
        # A value that equals its default was replaced when the settings were made; only here it is known as given.
        if own.get(name) is not None:
            _check_implied(arguments, name, own[name])
    for name in declared(arguments.objective, "preferred"):
        if own.get(name) is not None:
            setattr(arguments, name, own[name])
    arguments._given = given
    return arguments


def _check_implied(arguments: TrainingArguments, name: str, value: Any) -> None:
    """Raise ValueError unless a setting has the value that the objective implies."""
    needed = declared(arguments.objective, "implied")[name]
    if value != needed:
        raise ValueError(f"objective {arguments.objective} needs {name} {needed}, got {value}.")


def _superseded(under: Mapping[str, Any], over: Mapping[str, Any]) -> list[str]:
    """Settings of `under` that those of `over`, which win, put out of use by another name.

    They are what is said of a data set where a folder is named in its place, and what another objective decides.
    """
    names: list[str] = []
    if over.get("train_data_dir") is not None and "dataset_name" not in over and "dataset_name" in under:
        names += ["dataset_name", "dataset_config_name", "image_column", "label_column", "caption_column"]
    if over.get("objective") in OBJECTIVES:
        names += declared(over["objective"], "implied") | declared(over["objective"], "preferred")
    return [name for name in names if name in under and name not in over]
