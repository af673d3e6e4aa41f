"""Every scheduler in one table: `diffusers-ext prove all`."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .catalogue import NOT_MEASURED, Case, scheduler_classes, usual_cases
from .prove import prove
from .report import Report, table

EQUAL_CALLS = (10, 20, 40)


def survey(
    path: dict[str, Any] | None = None, report_progress: Callable[[str], None] = lambda _: None
) -> tuple[list[Report], dict[str, str]]:
    """(reports of every scheduler of diffusers and ours with its usual options, class name -> why it has no report).

    Args:
        path: arguments that choose the noise schedule, of `catalogue.path_settings`.
        report_progress: is given one line for each report.
    """
    reports, missing = [], {}
    for name, scheduler_class in scheduler_classes().items():
        if name in NOT_MEASURED:
            missing[name] = NOT_MEASURED[name]
            continue
        for case in usual_cases(name, scheduler_class, path):
            outcome = prove_case(case)
            if isinstance(outcome, str):
                missing[name if not case.options else f"{name} {case.options}"] = outcome
                if not case.options:
                    break
                continue
            reports.append(outcome)
            report_progress(f"{outcome.label}: {outcome.verdicts[0].text if outcome.verdicts else ''}")
    return reports, missing


def prove_case(case: Case) -> Report | str:
    """The report of one case, or why there is none, in one line."""
    with _quiet():
        try:
            return prove(case.build(), name=case.name, options=case.options, **case.step_arguments)
        except Exception as error:
            return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the hints that diffusers logs and prints for every unusual combination."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def is_ours(report: Report) -> bool:
    """Whether the scheduler is one of this package."""
    from .. import schedulers

    return report.name in schedulers.__all__


def best_at_equal_calls(reports: Sequence[Report], calls: float, stochastic: bool) -> list[Report]:
    """The reports with the smallest errors at this number of network calls, best first.

    Only those on the variance-preserving path: other paths make the problem easier or harder.
    """
    same_path = [r for r in reports if r.stochastic == stochastic and _preserves_variance(r)]
    measured = [r for r in same_path if math.isfinite(r.error_at(calls))]
    return sorted(measured, key=lambda r: r.error_at(calls))


def _preserves_variance(report: Report) -> bool:
    other = ("Flow", "EDM", "LTX", "MiniMax", "IPNDM", "CogVideoX", "UnCLIP", "Wuerstchen")
    if any(part in report.name for part in other):
        return False
    keys = ("use_flow_sigmas", "sde", "continuous", "rescale_betas_zero_snr")
    return not any(report.options.get(key) for key in keys)


def equal_calls_table(reports: Sequence[Report], best: int = 3) -> str:
    """Markdown: the best samplers of diffusers and ours at equal numbers of network calls."""
    lines = ["| network calls | noise | best of diffusers | best of this package |", "|---:|---|---|---|"]
    for calls in EQUAL_CALLS:
        for stochastic, kind in ((False, "no"), (True, "yes")):
            ranked = best_at_equal_calls(reports, calls, stochastic)
            cells = []
            for own in (False, True):
                chosen = [r for r in ranked if is_ours(r) == own][:best]
                cells.append("<br>".join(f"{r.error_at(calls):.2g} {r.label}" for r in chosen) or "-")
            lines.append(f"| {calls} | {kind} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def survey_markdown(reports: Sequence[Report], missing: dict[str, str]) -> str:
    """The whole survey as Markdown: faults, equal calls, the table, and what was not measured."""
    faulty = [report for report in reports if report.faults]
    lines = [
        f"# {len(reports)} samplers against exact answers (diffusers {reports[0].version})",
        "",
        f"{len(faulty)} of {len(reports)} have a fault.",
        "",
        "## What is wrong",
        "",
    ]
    lines += [f"- **{report.label}**: {' '.join(report.faults)}" for report in faulty]
    lines += ["", "## At equal numbers of network calls", "", equal_calls_table(reports)]
    lines += ["## Every sampler", "", table(reports), "## Not measured", ""]
    lines += [f"- {name}: {reason}." for name, reason in missing.items()]
    return "\n".join(lines) + "\n"
