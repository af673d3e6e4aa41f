"""`diffusers-ext`: train, sample, compare, measure, draw, convert and share from the command line."""

from __future__ import annotations

import importlib
import importlib.util
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..hub.provenance import versions
from ..settings import HelpRequested, Setting, SettingsError, check_places, parse
from ..settings.parsing import build, closest
from .boundary import guarded
from .train import recipes, train, wants_debug


@dataclass(frozen=True)
class Command:
    """A command: where its function and settings are, imported only when they are needed.

    Args:
        module: in this folder.
        function: takes the settings.
        settings: name of the settings class; empty for a function that takes the words themselves.
        summary: what it does, for the list of commands.
        draws: whether it needs matplotlib.
    """

    module: str
    function: str
    settings: str
    summary: str
    draws: bool = False

    def load(self) -> tuple[Callable[[Any], None], Any]:
        """(function, settings class)."""
        inside = importlib.import_module(f".{self.module}", __package__)
        return getattr(inside, self.function), getattr(inside, self.settings)


COMMANDS = {
    "train": Command("train", "train", "", "Train a model: diffusers-ext train mnist, or any recipe and settings."),
    "recipes": Command("train", "recipes", "", "List the recipes of the package, or print one."),
    "sample": Command("sample", "sample", "SampleArguments", "Sample images from a saved pipeline."),
    "compare": Command(
        "compare", "compare", "CompareArguments", "Compare samplers: a picture and a table.", draws=True
    ),
    "evaluate": Command("evaluate", "evaluate", "EvaluateArguments", "Measure samples against real images."),
    "sweep": Command("sweep", "sweep", "SweepArguments", "Measure samples over guidance scales.", draws=True),
    "restore": Command(
        "restore", "restore", "RestoreArguments", "Restore held-out images with an image condition.", draws=True
    ),
    **{
        f"edit {name}": Command("edit", f"edit_{name}", f"{settings}Arguments", summary, draws=True)
        for name, settings, summary in (
            ("invert", "Invert", "Find the noise that images come from."),
            ("interpolate", "Interpolate", "Images between real ones."),
            ("vary", "Vary", "Variations of images (SDEdit)."),
            ("inpaint", "Inpaint", "Paint a part of images anew (RePaint)."),
            ("restore", "RestoreMeasured", "Restore measured images with any model (PiGDM, DPS)."),
        )
    },
    "classifier train": Command(
        "classifier", "classifier_train", "ClassifierTrainArguments", "Train a classifier to measure samples with."
    ),
    "experiments run": Command(
        "experiments", "experiments_run", "ExperimentsRunArguments", "Run many trainings by one file: one table."
    ),
    "experiments compare": Command(
        "experiments",
        "experiments_compare",
        "ExperimentsCompareArguments",
        "Losses and samples of a study's runs side by side.",
        draws=True,
    ),
    "prove": Command("prove", "prove", "ProveArguments", "Check a sampler against exact answers."),
    "likelihood": Command(
        "likelihood", "measure_likelihood", "LikelihoodArguments", "Measure bits per dimension of real images."
    ),
    "schedules": Command("schedules", "schedules", "ScheduleArguments", "Draw noise schedules.", draws=True),
    "figure": Command(
        "figure", "figure", "FigureArguments", "Draw noise, trajectories, schedules, embeddings, ...", draws=True
    ),
    "demo": Command("demo", "demo", "DemoArguments", "Show a page in the browser that samples step by step."),
    "ema": Command("ema", "ema", "EmaArguments", "Average the weights of a run over any length."),
    "convert": Command(
        "convert", "convert", "ConvertArguments", "Turn a checkpoint of another project into a pipeline."
    ),
    "export": Command("hub", "export", "ExportArguments", "Write a folder that loads with and without this package."),
    "card": Command("hub", "card", "CardArguments", "Write the model card of a run or an export."),
    "push": Command("hub", "push", "PushArguments", "Put a run or an export on the Hub."),
}

_DEBUG = Setting("debug", bool, False, "Show the whole traceback of an error.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if words else 2
    return guarded(lambda: _run(words), wants_debug(words))


def run() -> int:
    """`main` as a program of its own; its exit status."""
    status = main()
    # Everything is done: a late Ctrl-C would only show the traceback of some library's exit handler.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return status


def overview(group: str = "") -> str:
    """The commands whose names begin with `group`, a line each."""
    lines = [f"  {name:18} {command.summary}" for name, command in COMMANDS.items() if name.startswith(group)]
    return "\n".join(["usage: diffusers-ext COMMAND [--help] ...", "", *lines, "", "diffusers-ext --version"])


def _run(words: list[str]) -> None:
    if words[0] in ("--version", "-V"):
        print(", ".join(f"{name} {version}" for name, version in versions().items()))
        return
    name = next((" ".join(words[:count]) for count in (1, 2) if " ".join(words[:count]) in COMMANDS), None)
    kinds = [name.partition(" ")[2] for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if name is None and kinds:
        if words[1:] and words[1] in ("-h", "--help"):
            raise HelpRequested(overview(f"{words[0]} "))
        raise SettingsError(f"{words[0]} takes one of {', '.join(kinds)}, got {' '.join(words[1:2]) or 'nothing'!r}.")
    if name is None:
        near = closest(" ".join(words[:2]), list(COMMANDS)) or closest(words[0], list(COMMANDS))
        raise SettingsError(f"Unknown command '{words[0]}'{near or '; diffusers-ext --help lists them.'}")
    rest, command = words[len(name.split()) :], COMMANDS[name]
    if name == "train":
        train(rest)
    elif name == "recipes":
        if rest and rest[0] in ("-h", "--help"):
            raise HelpRequested("usage: diffusers-ext recipes [RECIPE]\n\nList the recipes, or print what one sets.")
        named = 1 if rest and not rest[0].startswith("-") else 0
        _no_words(rest[named:])
        recipes(*rest[:named])
    else:
        _run_command(name, command, rest)


def _run_command(name: str, command: Command, words: list[str]) -> None:
    function, settings_class = command.load()
    first = getattr(settings_class, "POSITIONAL", None)
    if first is not None and words and not words[0].startswith("-"):
        words = [f"--{first}", *words]
    shown = f" [{first.upper()}]" if first is not None else ""
    values, others = parse(settings_class, words, f"diffusers-ext {name}{shown} [--setting value ...]", [_DEBUG])
    _no_words(others)
    values.pop("debug", None)
    arguments = build(settings_class, values)
    check_places(arguments)
    if command.draws:
        need_matplotlib(name)
    if isinstance(getattr(arguments, "model", None), str):
        from .shared import run_folder

        arguments.model = run_folder(arguments.model)
    from ..training.allocator import keep_freed_memory

    keep_freed_memory()
    from diffusers.utils import logging

    (logging.enable_progress_bar if sys.stderr.isatty() else logging.disable_progress_bar)()
    function(arguments)


def _no_words(words: Sequence[str]) -> None:
    if words and words[0] in ("-h", "--help"):
        raise HelpRequested(overview())
    if words:
        raise SettingsError(f"'{words[0]}' belongs to no flag; flags start with --.")


def need_matplotlib(name: str) -> None:
    """Raise ImportError, before anything is computed, when matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(f"{name} draws with matplotlib, which is not installed: pip install 'diffusers_ext[train]'.")


if __name__ == "__main__":
    sys.exit(main())
