"""Versions of the packages that a result depends on, for the records beside it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("diffusers_ext", "torch", "diffusers", "transformers", "accelerate")


def versions() -> dict[str, str]:
    """The installed version of this package and of those that it computes with."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a checkout on the path
            found[name] = "unknown"
    return found
