"""`diffusers-ext`: one file per command, and `program`, which runs them.

Nothing heavy is imported here, so that a Ctrl-C at any moment ends in one sentence.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["main", "run", "run_script"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit status."""

    def body() -> int:
        from .program import main

        return main(argv)

    return _stoppable(body)


def run() -> int:
    """`main` as a program of its own; its exit status."""

    def body() -> int:
        from .program import run

        return run()

    return _stoppable(body)


def run_script(argv: Sequence[str], **defaults: Any) -> int:
    """The body of a training script; its exit status.

    Args:
        argv: the flags.
        defaults: values of settings that neither the recipe nor a flag names.
    """

    def body() -> int:
        from .train import run_script

        return run_script(argv, **defaults)

    return _stoppable(body)


def _stoppable(body: Callable[[], int]) -> int:
    try:
        return body()
    except KeyboardInterrupt:  # while the program itself was imported; from then on, `boundary` says it
        print("Stopped by Ctrl-C.", file=sys.stderr)
        return 130
