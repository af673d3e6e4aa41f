"""The result of `prove`, as an object, as Markdown, and as a figure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .. import figures
from .audit import Audit


class Verdict(NamedTuple):
    """One finding. `kind` is `ok`, `note` (a consequence of the settings) or `fault`."""

    kind: str
    text: str


@dataclass
class Measurement:
    """One number of steps.

    Attributes:
        steps: as given to `set_timesteps`.
        calls: network calls.
        error: rms distance to the exact flow; for stochastic samplers, Wasserstein-2 distance between the exact law of
            the sampler and the data, for one Gaussian.
        error_at_end: the same against the noise level at which the sampler ends, if its settings stop it before the
            data. The order is fitted to it.
        law_distance: Wasserstein-1 distance of samples of the mixture from the exact law, starting noise included.
        error_before_last: rms distance to the exact flow at the last call's input; NaN for stochastic samplers.
        failure: what was raised, if the sampler does not run; the numbers are then NaN.
        drawn: `error` is the distance of drawn samples, because the noise can't be replayed.
    """

    steps: int
    calls: int
    error: float
    error_at_end: float
    law_distance: float
    error_before_last: float = math.nan
    failure: str | None = None
    drawn: bool = False


@dataclass
class Report:
    """What `prove` found about one scheduler.

    Attributes:
        name: of the scheduler.
        options: its settings, where they are not the defaults.
        version: of diffusers.
        stochastic: whether it draws noise.
        declared_order: of convergence.
        order: of convergence as found; None if the errors show none.
        repeatable: whether two runs with the same seed agree.
        measurements: one for each number of steps.
        audits: number of steps -> audit of the noise levels.
        verdicts: what is right, noteworthy and wrong, in words.
    """

    name: str
    options: dict[str, Any]
    version: str
    stochastic: bool
    declared_order: float
    measurements: list[Measurement]
    order: float | None
    repeatable: bool = True
    audits: dict[int, Audit] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def errors(self) -> dict[int, float]:
        """Network calls -> error."""
        return {entry.calls: entry.error for entry in self.measurements}

    @property
    def faults(self) -> list[str]:
        """The verdicts of kind `fault`."""
        return [verdict.text for verdict in self.verdicts if verdict.kind == "fault"]

    @property
    def label(self) -> str:
        """Name and options in one line."""
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name} ({options})" if options else self.name

    def error_at(self, calls: float) -> float:
        """Error at a number of network calls, between two measurements by a power law; NaN outside."""
        points = [(entry.calls, entry.error) for entry in self.measurements if math.isfinite(entry.error)]
        for (low, first), (high, second) in itertools.pairwise(points):
            if low <= calls <= high and first > 0 and second > 0:
                share = math.log(calls / low) / math.log(high / low)
                return first ** (1 - share) * second**share
        return math.nan

    def to_markdown(self) -> str:
        """A page: verdicts, then errors against network calls."""
        kind = "stochastic" if self.stochastic else "deterministic"
        lines = [f"## {self.label}", "", f"{kind}, diffusers {self.version}", ""]
        lines += [f"- **{verdict.kind}**: {verdict.text}" for verdict in self.verdicts]
        lines += ["", "| steps | network calls | error | distance to the exact law |", "|---:|---:|---:|---:|"]
        for entry in self.measurements:
            lines.append(f"| {entry.steps} | {entry.calls} | {_number(entry.error)} | {_number(entry.law_distance)} |")
        return "\n".join(lines) + "\n"

    def plot(self, path: str | Path) -> None:
        """Draw error against network calls, with a line of the declared order."""
        plot_reports([self], path)


def _number(value: float) -> str:
    return "-" if not math.isfinite(value) else f"{value:.2g}" if value < 100 else f"{value:.1e}"


def order_text(report: Report) -> str:
    """Order found / order declared, as in "1.0 / 1"."""
    found = "none" if report.order is None else f"{report.order:.1f}"
    return f"{found} / {report.declared_order:g}"


def table(reports: Sequence[Report], steps: Sequence[int] = (10, 20, 40, 160)) -> str:
    """One Markdown row for each report: errors at these numbers of steps, orders, and the first finding."""
    head = "| scheduler | options | " + " | ".join(f"{count} steps" for count in steps)
    lines = [f"{head} | order found / declared | finding |", "|---|---|" + "---:|" * len(steps) + "---:|---|"]
    for report in reports:
        errors: Mapping[int, Measurement] = {entry.steps: entry for entry in report.measurements}
        cells = [_number(errors[count].error) if count in errors else "-" for count in steps]
        options = ", ".join(f"{key}={value}" for key, value in report.options.items()) or "defaults"
        found = " ".join(report.faults) or next((v.text for v in report.verdicts), "")
        lines.append(
            f"| {report.name} | {options} | {' | '.join(cells)} | {order_text(report)} | {found.replace('|', '/')} |"
        )
    return "\n".join(lines) + "\n"


def plot_reports(reports: Sequence[Report], path: str | Path, title: str = "Error against network calls") -> None:
    """Draw one curve for each report on logarithmic axes."""
    curves = {
        report.label: [(entry.calls, entry.error) for entry in report.measurements if math.isfinite(entry.error)]
        for report in reports
    }
    figures.plot_convergence({label: points for label, points in curves.items() if points}, path, title)
