"""`diffusers-ext`: one file per command, and `program`, which runs them."""

from .program import main, run

__all__ = ["main", "run"]
