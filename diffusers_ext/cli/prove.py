"""`diffusers-ext prove`: check a sampler against exact answers."""

from __future__ import annotations

import difflib
import inspect
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..files import one_line
from ..proofs.catalogue import NOT_MEASURED, path_settings, scheduler_classes
from ..proofs.prove import COUNTS
from ..proofs.prove import prove as prove_scheduler
from ..proofs.report import Report, plot_reports
from ..proofs.survey import best_at_equal_calls, survey, survey_markdown
from ..schedulers.named_objects import load_object
from ..settings import CheckedSettings, option

# Arguments of `step` that the sampling loop gives.
_OF_THE_LOOP = {"self", "model_output", "timestep", "sample", "generator", "return_dict"}


@dataclass
class ProveArguments(CheckedSettings):
    """Check a sampler, or all of them, against exact answers: orders of convergence, laws, and what is wrong."""

    POSITIONAL: ClassVar[str] = "scheduler"

    scheduler: str = option(
        text="Class name of a scheduler of diffusers or of this package, module:Class or file.py:Class for your "
        "own, or `all`."
    )
    options: str | None = option(None, "JSON object of arguments of the scheduler, or of its step: '{\"eta\": 1.0}'.")
    schedule: str = option("linear", "Noise schedule by name, for schedulers that are made from betas.")
    counts: list[int] = option(list(COUNTS), "Numbers of inference steps, increasing; one scheduler only.")
    output: str | None = option(None, "Write OUTPUT.md and OUTPUT.png, for example report.md and report.png.")


def prove(arguments: ProveArguments) -> None:
    """Print the verdicts, and write the report."""
    path = path_settings(arguments.schedule)
    if arguments.scheduler == "all":
        if arguments.options is not None:
            raise ValueError("options belong to one scheduler; give its name instead of 'all'.")
        if tuple(arguments.counts) != COUNTS:
            raise ValueError("counts belong to one scheduler; 'all' has its own.")
        _prove_all(path, arguments.output)
        return
    report = _prove_one(arguments, path)
    markdown = report.to_markdown()
    print(markdown)
    if arguments.output is not None:
        _write(arguments.output, markdown, [report])


def _prove_one(arguments: ProveArguments, path: dict[str, Any]) -> Report:
    if not arguments.counts or min(arguments.counts) < 2 or sorted(set(arguments.counts)) != list(arguments.counts):
        raise ValueError(f"counts must be increasing numbers of at least 2, got {arguments.counts}.")
    kind: Any = _scheduler_class(arguments.scheduler)
    step = getattr(kind, "step", None)
    if not (inspect.isclass(kind) and callable(step)):
        raise ValueError(f"'{arguments.scheduler}' is no scheduler: that is a class with set_timesteps and step.")
    known = inspect.signature(kind.__init__).parameters
    options = _options(arguments.options)
    settings = {key: value for key, value in path.items() if key in known}
    settings |= {"clip_sample": False} if "clip_sample" in known else {}
    of_step = {key: value for key, value in options.items() if key not in known}
    unknown = sorted(set(of_step) - set(inspect.signature(step).parameters) | set(of_step) & _OF_THE_LOOP)
    if unknown:
        raise ValueError(f"{kind.__name__} has no option {', '.join(unknown)}.")
    settings |= {key: value for key, value in options.items() if key in known}
    return prove_scheduler(_built(kind, settings), counts=arguments.counts, options=options, **of_step)


def _built(kind: Any, settings: dict[str, Any]) -> Any:
    try:
        return kind(**settings)
    except Exception as error:  # constructors raise anything
        reason = one_line(error)
        raise ValueError(f"{kind.__name__} can't be made with {settings}: {reason}") from error


def _options(text: str | None) -> dict[str, Any]:
    try:
        value = {} if text is None else json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"options must be a JSON object, got '{text}'.")
    return value


def _scheduler_class(name: str) -> Any:
    """The class of a name, of `module:Class`, or of `file.py:Class`."""
    if ":" in name:
        return load_object(name, "scheduler")
    classes = scheduler_classes()
    if name in NOT_MEASURED:
        raise ValueError(f"{name} can't be compared with an exact denoiser: {NOT_MEASURED[name]}.")
    if name not in classes:
        close = difflib.get_close_matches(name, classes, n=3, cutoff=0.4)
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise ValueError(f"Unknown scheduler '{name}'.{hint} Use a class name, module:Class, or all.")
    return classes[name]


def _prove_all(path: dict[str, Any], output: str | None) -> None:
    began = time.monotonic()
    reports, missing = survey(path, lambda line: print(line, flush=True))
    faulty = sum(bool(report.faults) for report in reports)
    print(f"{len(reports)} samplers in {time.monotonic() - began:.0f} s; {faulty} have a fault.")
    best = best_at_equal_calls(reports, 20, stochastic=False)[:7]
    _write(output or "report", survey_markdown(reports, missing), [*best, *(r for r in reports if r not in best)])


def _write(output: str, markdown: str, reports: list[Report]) -> None:
    base = Path(output).with_suffix("") if Path(output).suffix in (".md", ".png") else Path(output)
    base.parent.mkdir(parents=True, exist_ok=True)
    base.with_name(base.name + ".md").write_text(markdown, encoding="utf-8")
    plot_reports(reports, base.with_name(base.name + ".png"))
    print(f"Report in {base}.md and {base}.png")
