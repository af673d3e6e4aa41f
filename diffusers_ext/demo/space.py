"""The folder of a Space: the demo as a web application on the Hub."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
GRADIO = "6.31.0"  # the version that the tests ran with
OF_THE_EXTRA = ("matplotlib>=3.8", "scipy>=1.11")
MODEL = "model"

_APP = '''"""The demo of diffusers_ext."""

from diffusers_ext.cli.demo import run

run({models}, any_model=False, host=None)
'''
_CARD = """---
title: {title}
emoji: 🎲
colorFrom: blue
colorTo: gray
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
{models}license: apache-2.0
---

Sample step by step, two settings side by side, and samplers against the exact flow of a mixture of Gaussians.
Locally: `pip install "gradio=={gradio}" -r requirements.txt`, then `python app.py` in this folder.
"""


def write_space(folder: Path, hub_name: str | None, title: str) -> None:
    """Write the files of a Space beside the model: app, requirements, card, and the code of this package.

    Args:
        folder: that of the Space.
        hub_name: of the model; None where it lies in `MODEL` inside the folder.
        title: of the Space.

    Raises:
        ValueError: where the package isn't installed, so that its requirements are unknown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listed = f"models: [{json.dumps(hub_name)}]\n" if hub_name else ""
    files = {
        "app.py": _APP.format(models=json.dumps([hub_name or MODEL])),
        "requirements.txt": "\n".join(_requirements()) + "\n",
        "README.md": _CARD.format(title=json.dumps(title, ensure_ascii=False), gradio=GRADIO, models=listed),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    code = folder / PACKAGE.name
    shutil.rmtree(code, ignore_errors=True)
    shutil.copytree(PACKAGE, code, ignore=shutil.ignore_patterns("__pycache__", "*.parquet"))


def _requirements() -> list[str]:
    """What the package needs; Gradio comes with the Space."""
    try:
        needed = requires("diffusers_ext") or []
    except PackageNotFoundError:
        raise ValueError("A Space needs the package's list of requirements; install it: pip install -e .") from None
    return [line for line in needed if "extra ==" not in line] + list(OF_THE_EXTRA)
