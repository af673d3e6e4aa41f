"""diffusers_ext: train diffusion models from scratch, sample them every way, and share them through Diffusers.

Importing this package makes diffusers know its classes: `DiffusionPipeline.from_pretrained` then loads what was saved
with them. Names are resolved on first use, so the import itself is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .hub.registration import BASE_NAMES, register

if TYPE_CHECKING:  # at run time, names are imported on first use
    from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin

    from .editing import EditingPipeline
    from .evaluation.classifier import ImageClassifier
    from .evaluation.signal_classifier import SignalClassifier
    from .hub.export import export
    from .hub.model_card import write_card
    from .hub.push import push_to_hub
    from .models import (
        PRESETS,
        ADMUNet2DModel,
        AnnotatedUNet2DModel,
        AttentionUNet2DModel,
        GuidedUNet2DModel,
        SignalUNet1DModel,
        SimpleUNet2DModel,
        ToyUNet2DModel,
        build_model,
    )
    from .objectives.diffusion import DiffusionObjective
    from .objectives.flow_map import FlowMapObjective
    from .pipelines import GenerationPipeline
    from .schedulers import (
        PREDICTION_TYPES,
        SCHEDULES,
        AncestralDDPMScheduler,
        FlowMapScheduler,
        FlowMatchScheduler,
        GuidedLangevinScheduler,
        MixScheduler,
        NoisePath,
        Prediction,
        ScoreSDEScheduler,
        SubsequenceDDIMScheduler,
    )
    from .schedulers.registry import build_sampler
    from .training import Trainer, TrainerCallback, TrainingArguments, train

__version__ = "0.1.0"

_CLASSES = {
    "models": [
        "ADMUNet2DModel",
        "AnnotatedUNet2DModel",
        "AttentionUNet2DModel",
        "GuidedUNet2DModel",
        "SignalUNet1DModel",
        "SimpleUNet2DModel",
        "ToyUNet2DModel",
    ],
    "schedulers": [
        "AncestralDDPMScheduler",
        "FlowMapScheduler",
        "FlowMatchScheduler",
        "GuidedLangevinScheduler",
        "MixScheduler",
        "ScoreSDEScheduler",
        "SubsequenceDDIMScheduler",
    ],
    "pipelines": ["GenerationPipeline", "SignalPipeline"],
    "evaluation.classifier": ["ImageClassifier"],
    "evaluation.signal_classifier": ["SignalClassifier"],
}
_OTHERS = {
    "models": ["PRESETS", "build_model"],
    "schedulers": ["NoisePath", "PREDICTION_TYPES", "Prediction", "SCHEDULES"],
    "schedulers.registry": ["build_sampler"],
    "objectives.diffusion": ["DiffusionObjective"],
    "objectives.flow_map": ["FlowMapObjective"],
    "editing": ["EditingPipeline"],
    "training": ["Trainer", "TrainerCallback", "TrainingArguments", "train"],
    "experiments": ["ExperimentManager"],
    "hub.export": ["export"],
    "hub.push": ["push_to_hub"],
    "hub.model_card": ["write_card"],
}
_MODULE_OF = {name: module for table in (_CLASSES, _OTHERS) for module, names in table.items() for name in names}

__all__ = [*_MODULE_OF, *BASE_NAMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in BASE_NAMES:  # diffusers looks these up here to find how to load a component
        value = getattr(importlib.import_module("diffusers"), name)
    elif name in _MODULE_OF:
        value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    else:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register(name for names in _CLASSES.values() for name in names)
