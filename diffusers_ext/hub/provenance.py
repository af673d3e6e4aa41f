"""Which versions of which packages made a file."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PROVENANCE = "provenance.json"
PACKAGES = ("diffusers_ext", "torch", "diffusers", "transformers", "accelerate", "datasets")


def versions() -> dict[str, str]:
    """Version by name: Python, this package and the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a source tree that is on the path but not installed
            continue
    return found


def write_provenance(folder: str | os.PathLike) -> None:
    """Write the versions beside the files that were made with them."""
    text = json.dumps({"versions": versions()}, indent=2) + "\n"
    Path(folder, PROVENANCE).write_text(text, encoding="utf-8")
