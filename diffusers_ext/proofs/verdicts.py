"""What a report means, in words."""

from __future__ import annotations

import itertools
import math

from .audit import log_ratio
from .levels import NetworkView
from .mixture import Level
from .report import Measurement, Report, Verdict

ORDER_TOLERANCE = 0.35
LEVEL_TOLERANCE = 0.02  # of log(sigma / alpha)
END_TOLERANCE = 0.05  # standard deviation of noise left at the end; no usual setting of a sampler leaves more
LOWEST_ORDER = 0.65
START_TOLERANCE = 0.05  # of the signal's amplitude left in the start, as a share of the noise


def verdicts_of(report: Report, view: NetworkView) -> list[Verdict]:
    """Everything worth saying about a report, most important first."""
    found = [
        *_failures(report),
        *_noise(report),
        *_noise_levels(report, view),
        *_monotony(report),
        *_end(report),
        *_start(report),
        *_order(report),
    ]
    rank = {"fault": 0, "ok": 1, "note": 2}
    return sorted(found, key=lambda verdict: rank[verdict.kind])


def _failures(report: Report) -> list[Verdict]:
    failed = [entry for entry in report.measurements if entry.failure]
    if failed:
        steps = ", ".join(str(entry.steps) for entry in failed)
        return [Verdict("fault", f"Does not run with {steps} steps: {(failed[0].failure or '')[:200]}")]
    bad = [entry.steps for entry in report.measurements if not math.isfinite(entry.error)]
    return [Verdict("fault", f"Gives NaN or infinity with {', '.join(map(str, bad))} steps.")] if bad else []


def _noise(report: Report) -> list[Verdict]:
    """Faults of where the noise comes from."""
    found = []
    if not report.repeatable:
        text = "Two runs with the same seed differ: its noise does not come from the generator that step is given."
        found.append(Verdict("fault", text))
    if report.options.get("eta") and not report.stochastic:
        found.append(Verdict("fault", f"Ignores eta = {report.options['eta']}: it draws no noise."))
    return found


def _noise_levels(report: Report, view: NetworkView) -> list[Verdict]:
    """Faults of the bookkeeping: the sample is not at the noise level that the network is told."""
    counts = [count for count, found in report.audits.items() if found.first_mismatch(LEVEL_TOLERANCE) is not None]
    if not counts or _is_discretisation(report):
        return []
    count = counts[0]
    found = report.audits[count]
    call = found.first_mismatch(LEVEL_TOLERANCE)
    assert call is not None
    t, told, actual = found.timesteps[call], found.told[call], found.found[call]
    where = f"in call {call + 1} of {len(found.timesteps)} the network is told t = {t:.6g}"
    if abs(actual[0]) < 1e-3 < told[0]:
        return [
            Verdict("fault", f"Loses the signal: {where}, where alpha is {told[0]:.3g}, but its sample has alpha 0.")
        ]
    if abs(log_ratio(actual) - log_ratio(told)) <= LEVEL_TOLERANCE:
        scale = f"{_scale(actual, told):.3g} times as large as it should be"
        text = f"Scales the network's input wrongly: {where}. Its input is {scale}."
        return [Verdict("fault", text)]
    real = timestep_of(view, actual, t)
    what = "Rounds timesteps" if abs(real - t) <= 1 else "Steps to another noise level than it says"
    time = f"the noise level of t = {real:.4g}" if abs(real - t) < 1e4 else "a noise level that no timestep has"
    text = f"{what}: {where}. The sample has {time}"
    return [Verdict("fault", f"{text} (sigma/alpha {actual[1] / actual[0]:.3g} and not {told[1] / told[0]:.3g}).")]


def _scale(actual: Level, told: Level) -> float:
    return math.hypot(*actual) / math.hypot(*told)


def _is_discretisation(report: Report) -> bool:
    """Whether the differences shrink with the number of steps: an inexact step, not a mistake."""
    sizes = [sum(found.differences()) / len(found.told) for _, found in sorted(report.audits.items())]
    return report.stochastic and len(sizes) > 1 and sizes[-1] < 0.6 * sizes[0]


def timestep_of(view: NetworkView, level: Level, near: float) -> float:
    """The timestep whose noise level this is, by bisection; levels grow with t, or fall as in MiniMaxH3Scheduler."""
    wanted = log_ratio(level)
    low, high = near, near
    width = max(abs(near) * 0.01, 1e-3)
    sign = 1 if log_ratio(view.level(near + width)) >= log_ratio(view.level(near)) else -1
    for _ in range(40):
        if sign * (log_ratio(_safe(view, low)) - wanted) <= 0 <= sign * (log_ratio(_safe(view, high)) - wanted):
            break
        low, high, width = low - width, high + width, 2 * width
    for _ in range(60):
        middle = (low + high) / 2
        if sign * (log_ratio(_safe(view, middle)) - wanted) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _safe(view: NetworkView, t: float) -> Level:
    try:
        return view.level(t)
    except (ValueError, OverflowError, ArithmeticError):
        return (1.0, 0.0)


def _monotony(report: Report) -> list[Verdict]:
    """More steps should not be worse, and should not stop helping before rounding."""
    found = [entry for entry in report.measurements if math.isfinite(entry.error) and not entry.drawn]
    smallest, factor = (1e-2, 2.0) if report.stochastic else (2e-3, 1.2)
    for before, after in itertools.pairwise(found):
        if after.error > factor * before.error and after.error > smallest:
            text = f"More steps make it worse: the error is {before.error:.2g} with {before.steps} steps and "
            kind = "fault" if after.steps > 20 else "note"
            return [Verdict(kind, f"{text}{after.error:.2g} with {after.steps}.")]
    if _stagnates(report):
        before, after = found[-2:]
        text = f"Stops converging: the error is {before.error:.2g} with {before.steps} steps and "
        return [Verdict("fault", f"{text}{after.error:.2g} with {after.steps}.")]
    return []


def _stagnates(report: Report) -> bool:
    errors = [entry.error_at_end for entry in report.measurements]
    return not report.stochastic and len(errors) > 1 and errors[-1] > max(0.8 * errors[-2], 2e-3)


def _end(report: Report) -> list[Verdict]:
    ends = {count: found.end for count, found in report.audits.items()}
    for count, (alpha, sigma) in ends.items():
        if sigma > 1e-3 and abs(alpha - 1) < 0.05:
            counts = " and ".join(str(other) for other, end in ends.items() if end[1] > 1e-3)
            text = f"Ends at noise level sigma = {sigma:.3g} and not at the data (with {counts} steps)."
            return [Verdict("fault" if sigma > END_TOLERANCE else "note", text)]
        if abs(alpha - 1) > 0.01:
            return [Verdict("fault", f"The signal at the end is {alpha:.3g} times the data's with {count} steps.")]
    return []


def _start(report: Report) -> list[Verdict]:
    for count, found in sorted(report.audits.items()):
        alpha, sigma = found.told[0]
        if alpha > START_TOLERANCE * sigma:
            text = f"With {count} steps it starts from pure noise where {alpha / math.hypot(alpha, sigma):.0%} of the "
            return [Verdict("note", f"{text}signal's amplitude should be left.")]
    return []


def _order(report: Report) -> list[Verdict]:
    what = "law" if report.stochastic else "flow"
    finite = [entry for entry in report.measurements if math.isfinite(entry.error)]
    if not finite or _stagnates(report):
        return []
    if any(entry.drawn for entry in report.measurements):
        return [Verdict("note", "Its noise can't be replayed, so errors are distances of drawn samples (about 0.01).")]
    last = finite[-1]
    if report.order is None:
        if len(finite) < 3:
            return [Verdict("note", "An order needs errors at three numbers of steps or more.")]
        if last.error < 0.01 and last.error < finite[0].error / 5:
            return [Verdict("ok", f"Reaches the exact {what} to {last.error:.1g}, without a clear order.")]
        text = f"Does not converge to the exact {what}: the error is {last.error:.2g} with {last.steps} steps."
        return [Verdict("fault", text)]
    if report.order >= report.declared_order - ORDER_TOLERANCE:
        return [Verdict("ok", f"Converges to the exact {what} with order {report.order:.1f}.")]
    text = f"Converges with order {report.order:.1f}, where {report.declared_order:g} is declared."
    if last.error_before_last < last.error / 3:
        text += (
            f" Most of the error comes in the last step: it is {last.error_before_last:.1g} before and {last.error:.1g}"
        )
        text += f" after it, with {last.steps} steps."
    return [Verdict("fault" if max(report.order, _last_slope(finite)) < LOWEST_ORDER else "note", text)]


def _last_slope(finite: list[Measurement]) -> float:
    """Order between the last two numbers of steps: some samplers reach theirs late."""
    before, after = finite[-2:]
    return math.log(before.error / after.error) / math.log(after.calls / before.calls)
