"""`diffusers-ext train` and the scripts in `train/`: from a command line to a training run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..settings import shipped_recipes
from ..settings.recipes import recipe_names
from .boundary import guarded

USAGE = "diffusers-ext train [RECIPE] [--setting value ...]"


def run_script(argv: Sequence[str], **defaults: Any) -> int:
    """The body of a script: train as the flags say; the exit status.

    Args:
        argv: the flags.
        defaults: values of settings that neither the recipe nor a flag names.
    """
    usage = f"{Path(sys.argv[0]).name} [--recipe RECIPE] [--setting value ...]"
    return guarded(lambda: train(argv, usage, **defaults), wants_debug(argv))


def train(words: Sequence[str], usage: str = USAGE, **defaults: Any) -> None:
    """Train as the words say: `[RECIPE] [flags]`. Raises what `Trainer` raises."""
    import torch

    from ..training import parse_arguments
    from ..training import train as run
    from ..training.allocator import keep_freed_memory
    from ..training.launching import check_launcher

    flags = list(words)
    if flags and not flags[0].startswith("-"):
        flags = ["--recipe", *flags]
    arguments = parse_arguments(flags, usage, **defaults)
    check_launcher()
    if not torch.accelerator.is_available():
        keep_freed_memory()
    run(arguments)


def recipes(name: str | None = None) -> None:
    """Print the package's recipes with what they train, how long it takes and on which data; or one as YAML.

    Raises what `TrainingArguments.from_recipe` raises.
    """
    if name is not None:
        from ..training import TrainingArguments

        print(TrainingArguments.from_recipe(name).to_yaml(), end="")
        return
    width = max(map(len, recipe_names()))
    for recipe in shipped_recipes():
        about = recipe.about
        print(f"{recipe.name:{width}}  {about['description']}")
        print(f"{'':{width}}  {about['time']}; data: {about['data']}")
    print("\nTrain one with: diffusers-ext train NAME [--setting value ...]")
    print("Print its settings with: diffusers-ext recipes NAME")


def wants_debug(words: Sequence[str]) -> bool:
    """Whether `--debug` is among the words of a command line."""
    return any(word == "--debug" or word.lower() in ("--debug=true", "--debug=1", "--debug=yes") for word in words)
