"""`diffusers-ext schedules`: draw noise schedules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..schedulers import SCHEDULES
from ..settings import CheckedSettings, option


@dataclass
class ScheduleArguments(CheckedSettings):
    """Draw noise schedules: betas and alphas_cumprod."""

    schedules: list[str] = option(
        ["linear", "cosine", "quadratic", "exponential", "sigmoid", "sigmoid_alpha_bar"],
        "Schedules by name.",
        choices=SCHEDULES,
    )
    num_train_timesteps: int = option(1000, "T.", at_least=1, at_most=100_000)
    beta_start: float = option(1e-4, "First beta of schedules between two betas.", above=0, below=1)
    beta_end: float = option(0.02, "Last beta of schedules between two betas.", above=0, at_most=1)
    output: str = option("schedules.png", "The picture to write.", writes=".png .pdf .svg .jpg .jpeg .webp")


def schedules(arguments: ScheduleArguments) -> None:
    """Draw betas and alphas_cumprod of named schedules on shared axes."""
    from .. import figures
    from ..schedulers import NoisePath

    curves = {}
    for name in arguments.schedules:
        path = NoisePath.from_schedule(
            name, arguments.num_train_timesteps, beta_start=arguments.beta_start, beta_end=arguments.beta_end
        )
        curves[name] = {"betas": path.betas, "alphas_cumprod": path.alphas_cumprod}
        print(f"{name:20} alphas_cumprod ends at {path.alphas_cumprod[-1]:.3g}")
    Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
    figures.plot_schedule(curves, arguments.output)
    print(f"Picture in {arguments.output}")
