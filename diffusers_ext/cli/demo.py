"""`diffusers-ext demo`: a page in the browser that samples step by step."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..settings import CheckedSettings, option
from .boundary import explained
from .shared import check_folder, load_pipeline, run_folder


@dataclass
class DemoArguments(CheckedSettings):
    """Show a page that samples step by step, two settings side by side, and samplers against an exact flow."""

    POSITIONAL: ClassVar[str] = "model"

    model: list[str] = option(
        [], "Folders, Hub names or recipes of models to choose from; without any, the exact mixture still works."
    )
    host: str = option("127.0.0.1", "Address to listen on; 0.0.0.0 lets other machines in.")
    port: int | None = option(None, "Port; the first free one from 7860 if not given.", at_least=1, at_most=65535)
    open_browser: bool = option(False, "Open the page in the browser.")
    device: str | None = option(None, "cpu, cuda, mps; the best there is if not given.")


def demo(arguments: DemoArguments) -> None:
    """Serve the page until Ctrl-C."""
    run(arguments.model, True, arguments.host, arguments.port, arguments.open_browser, arguments.device)


def run(
    models: Sequence[str],
    any_model: bool,
    host: str | None,
    port: int | None = None,
    open_browser: bool = False,
    device: str | None = None,
) -> None:
    """Serve the page; a Space calls this.

    Args:
        models: folders, Hub names or recipes.
        any_model: whether visitors may name other models.
        host: address to listen on; None for Gradio's own, which a Space sets.
        port: None for the first free one from 7860.
        open_browser: open the page in the browser.
        device: of the models; the best there is when None.

    Raises:
        ImportError: without Gradio.
        ValueError, OSError: for a folder that holds no model, or a port that is taken.
    """
    need_gradio()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    folders = [run_folder(name) for name in models]
    for folder in folders:
        check_folder("pipeline", folder, "model_index.json", "`diffusers-ext train` makes one")
    from ..demo.app import serve

    serve(app_of(folders, any_model, device), host, port, open_browser)


def app_of(models: Sequence[str], any_model: bool = True, device: str | None = None) -> Any:
    """The page, with this package's way to load models and to explain errors."""
    from ..demo.app import build_app

    def load(name: str) -> Any:
        return load_pipeline(run_folder(name), device)

    return build_app(models, load, lambda error: explained(error)[0], any_model)


def need_gradio() -> None:
    """Raise ImportError when Gradio, or what draws the figures, is missing."""
    for name in ("gradio", "matplotlib", "scipy"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"demo needs {name}, which is not installed: pip install 'diffusers_ext[demo]'.")
