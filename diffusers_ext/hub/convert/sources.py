"""The registry of projects and families: a new family is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .adm import ADM
from .annotated import ANNOTATED, GUIDED, PACKAGE
from .attention import ATTENTION
from .layouts import Family
from .simple import SIMPLE
from .toy import TOY

FAMILIES: dict[str, Family] = {
    "annotated": ANNOTATED,
    "package": PACKAGE,
    "guided": GUIDED,
    "adm": ADM,
    "attention": ATTENTION,
    "simple": SIMPLE,
    "toy": TOY,
}


@dataclass(frozen=True)
class Source:
    """A project: the family of its network, and what does not follow from the weights.

    Attributes:
        family: key of `FAMILIES`.
        model: options of the network.
        scheduler: options of the sampler, as the project samples.
    """

    family: str
    model: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Mapping[str, Any] = field(default_factory=dict)


_BETA = {"variance_type": "fixed_large", "clip_sample": False}
_BETA_TILDE = {"variance_type": "fixed_small", "clip_sample": False}
_BETA_TILDE_CLAMPED = {"variance_type": "fixed_small", "clip_sample": True}

# Defects of a project stay in: its weights were trained with them, and compute another function without them.
SOURCES = {
    "usurf-unet": Source("annotated", {"weight_standardization": "inverted"}, _BETA),
    "usurf-guided-unet": Source("guided", {"weight_standardization": "inverted"}, _BETA),
    "playground-ddpm": Source("annotated", {}, {**_BETA_TILDE, "schedule_options": {"clip": [1e-4, 0.9999]}}),
    "playground-toy": Source("toy"),
    "denoising-diffusion-pytorch": Source("package", {}, _BETA_TILDE_CLAMPED),
    "generative-pytorch-adm": Source("adm", {"attention_scale": 10.0}, _BETA_TILDE_CLAMPED),
    "ddpm-accelerate-attention": Source("attention", {}, _BETA),
    "ict1022-simple": Source("simple", {"raw_time": True}, _BETA_TILDE),
}
