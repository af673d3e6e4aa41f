"""Conditions by name: what `--condition` takes. A new condition is its file and a line here."""

from __future__ import annotations

from typing import Any

from .base import ClassCondition, PictureCondition, TextCondition

CONDITIONS: dict[str, type[Any]] = {
    "class": ClassCondition,
    "text": TextCondition,
    "image": PictureCondition,
}
