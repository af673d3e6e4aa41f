"""The condition of a run: the user's, or the one that the settings ask for."""

from __future__ import annotations

from ...conditions import Condition, condition_class, register
from ...data.base import TrainingData
from ...objectives.randomness import seed_of
from ..arguments import TrainingArguments
from ..conditioning import Conditioning


def make_condition(args: TrainingArguments, condition: Condition | None = None) -> Condition | None:
    """The condition, not yet prepared for any data; None for a run without one.

    The user's is registered under its name, so that the pipeline of the run knows it. Raises ValueError for settings
    that the condition of the settings can't have.
    """
    if condition is not None:
        register(type(condition))
        return condition
    if args.condition is None:
        return None
    asked = condition_class(args.condition)
    return asked(**{name: getattr(args, name) for name in asked.settings if hasattr(args, name)})


def make_conditioning(
    args: TrainingArguments, condition: Condition | None, data: TrainingData, held_out: TrainingData | None
) -> Conditioning:
    """How the run uses its condition, prepared for the data. Raises ValueError, in one sentence, for what they lack."""
    if condition is not None:
        condition.prepare(data, seed_of(args.seed, "text encoder"), args.hub_token)
        if held_out is not None:
            condition.adopt(held_out)
    label_free_from = args.num_epochs - args.label_free_epochs if args.label_free_epochs else None
    return Conditioning(condition, data, args.seed, args.condition_dropout, label_free_from, args.guidance_scale)
