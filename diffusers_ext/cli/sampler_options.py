"""The flags of samplers, the same in every command; names, help and choices come from `schedulers.registry`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..schedulers.registry import OPTIONS, SAMPLERS, build_sampler, check_options, samplers_with
from ..settings import option
from .shared import settings_of_run


def sampler_option(name: str) -> Any:
    """The field of a settings class for an option of the registry; None means not given."""
    declared = OPTIONS[name]
    return option(None, f"{declared.help} For {', '.join(samplers_with(name))}.", **declared.declared)


@dataclass
class SamplerOptions:
    """Options of samplers."""

    eta: float | None = sampler_option("eta")
    gamma: str | None = sampler_option("gamma")
    variance_type: str | None = sampler_option("variance_type")
    clip_sample: bool | None = sampler_option("clip_sample")
    inner_steps: int | None = sampler_option("inner_steps")
    snr: float | None = sampler_option("snr")

    def sampler_options(self) -> dict[str, Any]:
        """The options that were given."""
        values = {name: getattr(self, name, None) for name in OPTIONS}
        return {name: value for name, value in values.items() if value is not None}


@dataclass
class OneSampler(SamplerOptions):
    """A sampler by name, and its options."""

    sampler: str | None = option(
        None, f"{', '.join(SAMPLERS)}, or module:Class for a scheduler of your own; the saved one if not given."
    )
    subsequence: str | None = sampler_option("subsequence")

    def check_sampler(self, model: str | None = None) -> None:
        """Raise ValueError, before anything is loaded, for an option that the sampler does not take.

        Options without a sampler are for the one of the model's own run, if it is known.
        """
        options = self.sampler_options()
        if self.sampler is None and options and model is not None:
            self.sampler = settings_of_run(model).get("sampler")
        check_options(self.sampler, options)

    def put_sampler_into(self, pipeline: Any) -> None:
        """Give the pipeline the sampler, if one was named, on the noise path of its own scheduler."""
        if self.sampler is not None:
            pipeline.scheduler = build_sampler(self.sampler, pipeline.scheduler.config, **self.sampler_options())
