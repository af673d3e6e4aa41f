"""The page: `build_app` makes it, `serve` shows it. Needs Gradio, the extra `demo`."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from ..figures import image_grid
from ..schedulers.registry import BETAS, samplers_on
from ..schedulers.scheduling_subsequence import SUBSEQUENCES
from .mixture import MixtureRuns, caption, draw_curves, draw_points, error_table, run_mixture
from .sampling import (
    DEFAULT,
    EVERY_CLASS,
    MOST_IMAGES,
    NO_CLASS,
    SAVED,
    Process,
    Setting,
    check_pipeline,
    check_seed,
    check_whole,
    class_labels,
    class_names,
    follow,
    pictures,
    sampler_names,
)

TITLE = "diffusers_ext"
MODELS_KEPT = 4
SIDE = 80  # pixels of a small image
AT_ONCE = 2  # runs at the same time
SESSION_SECONDS = 3600  # how long the pictures of a visitor are kept
ABOUT = "Sample step by step. Settings A and B start from the same noise, which the seed gives."


class Library:
    """Pipelines by name, loaded when they are first asked for; the latest few are kept.

    Args:
        models: folders or Hub names.
        load: name -> pipeline.
        any_model: whether a visitor may name others.
    """

    def __init__(self, models: Sequence[str], load: Callable[[str], Any], any_model: bool):
        self.models, self._load, self._any = tuple(models), load, any_model
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str | None) -> Any:
        """The pipeline. Raises ValueError for one that there is not."""
        name = (name or "").strip()
        if not name:
            raise ValueError("Choose a model first: a folder or a Hub name.")
        if name not in self.models and not self._any:
            raise ValueError(f"The model must be one of {', '.join(self.models)}, got '{name}'.")
        with self._lock:
            if name not in self._kept:
                pipeline = self._load(name)
                check_pipeline(pipeline)
                pipeline.set_progress_bar_config(disable=True)
                self._kept[name] = pipeline
            self._kept.move_to_end(name)
            if len(self._kept) > MODELS_KEPT:
                self._kept.popitem(last=False)
            return self._kept[name]


def build_app(
    models: Sequence[str],
    load: Callable[[str], Any],
    explain: Callable[[Exception], str],
    any_model: bool = True,
) -> gr.Blocks:
    """The page with the models, and the mixture, which needs none.

    Args:
        models: folders or Hub names to choose from; the first is loaded now.
        load: name -> pipeline.
        explain: an error as one sentence.
        any_model: whether visitors may name other models.

    Raises:
        ValueError, OSError: when the first model can't be loaded.
    """
    library = Library(models, load, any_model)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(SESSION_SECONDS, SESSION_SECONDS)) as app:
        gr.Markdown(f"# {TITLE}\n{ABOUT}")
        tabs = [lambda: _image_tab(library, explain, any_model), lambda: _mixture_tab(explain)]
        with gr.Tabs():
            for tab in tabs if models else reversed(tabs):
                tab()
    return app


def serve(app: gr.Blocks, host: str | None, port: int | None = None, open_browser: bool = False, **more: Any) -> Any:
    """Show the page until Ctrl-C. No share link, and no history of runs."""
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return app.launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=open_browser,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        theme=theme,
        footer_links=[],
        **more,
    )


def _explained(explain: Callable[[Exception], str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that turns every error into one sentence in the page."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def guarded(*values: Any) -> Any:
            try:
                return function(*values)
            except Exception as error:
                raise gr.Error(explain(error), print_exception=False) from None

        return guarded

    return decorate


def _setting_fields(letter: str, samplers: Sequence[str], chosen: Setting, guided: bool) -> list[Any]:
    """Fields of one setting, in the order of `Setting`."""
    with gr.Group():
        gr.Markdown(f"**&nbsp; Setting {letter}**")
        with gr.Row():
            fields = [
                gr.Dropdown(
                    list(samplers), value=chosen.sampler, label="Sampler", allow_custom_value=True, min_width=120
                ),
                gr.Number(chosen.steps, label="Steps", precision=0, min_width=80),
                gr.Dropdown(
                    [DEFAULT, *SUBSEQUENCES],
                    value=chosen.subsequence,
                    label="Subsequence",
                    allow_custom_value=True,
                    min_width=120,
                ),
            ]
            if guided:
                fields.append(gr.Number(chosen.guidance_scale, label="Guidance", min_width=80))
    return fields


# --- images -----------------------------------------------------------------------------------------------------------


def _image_tab(library: Library, explain: Callable[[Exception], str], any_model: bool) -> None:
    explained = _explained(explain)
    first = library.get(library.models[0]) if library.models else None
    classes, samplers = _choices(first)
    with gr.Tab("Images from a model"):
        if first is None:
            gr.Markdown("Name a model below, or start with one: `diffusers-ext demo --model outputs/digits`.")
        model, condition, *_ = fields = _request_fields(library, classes, any_model)
        with gr.Row():
            guidance = _usual_guidance(classes)
            a = _setting_fields("A", samplers, Setting("ddim", 5, guidance_scale=guidance), guided=True)
            b = _setting_fields("B", samplers, Setting("ddim", 25, guidance_scale=guidance), guided=True)
        button = gr.Button("Sample", variant="primary")
        percent = gr.Slider(0, 100, 100, step=1, label="Share of the sampling steps taken, %")
        state = gr.State(None, time_to_live=SESSION_SECONDS)
        shown = _compared_pictures()

    @explained
    def sample(name: str, condition: str, count: Any, seed: Any, percent: float, *fields: Any) -> Any:
        kept = _sampled(library, name, condition, count, seed, [Setting(*fields[:4]), Setting(*fields[4:])])
        return [kept, *_at(kept, percent)]

    @explained
    def show(kept: Any, percent: float) -> Any:
        return [gr.skip() for _ in shown] if kept is None else _at(kept, percent)

    @explained
    def choose(name: str) -> Any:
        return _fields_for(library.get(name))

    button.click(sample, [*fields, percent, *a, *b], [state, *shown], api_name="sample", concurrency_limit=AT_ONCE)
    percent.change(
        show, [state, percent], shown, api_name="show", show_progress="hidden", trigger_mode="always_last",
        concurrency_limit=None,
    )  # fmt: skip
    model.change(choose, [model], [condition, a[0], b[0], a[3], b[3]], api_name="choose", concurrency_limit=AT_ONCE)


def _request_fields(library: Library, classes: list[str], any_model: bool) -> list[Any]:
    """A row that asks for the model, the class, the number of images and the seed."""
    with gr.Row():
        return [
            gr.Dropdown(
                list(library.models),
                value=library.models[0] if library.models else None,
                label="Model (folder or Hub name)" if any_model else "Model",
                allow_custom_value=True,
            ),
            gr.Dropdown(classes, value=classes[-1], label="Class", allow_custom_value=True),
            gr.Number(8, label="Images", precision=0, min_width=80),
            gr.Number(0, label="Seed", precision=0, min_width=80),
        ]


def _compared_pictures() -> list[Any]:
    """Of each setting, side by side: a line of text, the noisy sample and the estimate of x0."""
    shown = []
    with gr.Row():
        for letter in "AB":
            with gr.Column():
                shown.append(gr.Markdown(f"**{letter}**"))
                shown.append(_picture(f"{letter}: noisy sample x_t"))
                shown.append(_picture(f"{letter}: the network's estimate of x0"))
    return shown


def _usual_guidance(classes: list[str]) -> float:
    return 2.0 if len(classes) > 1 else 1.0


def _fields_for(pipeline: Any) -> list[Any]:
    """Class, samplers and guidance scales to choose from, for a model that was chosen."""
    classes, samplers = _choices(pipeline)
    return [
        gr.Dropdown(classes, value=classes[-1]),
        *(gr.Dropdown(samplers, value="ddim") for _ in "AB"),
        *(gr.Number(_usual_guidance(classes)) for _ in "AB"),
    ]


def _sampled(library: Library, name: str, condition: str, count: Any, seed: Any, settings: list[Setting]) -> Any:
    """What a visitor's session keeps of a request, for each setting."""
    check_whole("images", count, 1, MOST_IMAGES)
    check_seed(seed)
    pipeline = library.get(name)
    labels = class_labels(pipeline, condition, count)
    runs = [follow(pipeline, each, count, seed, class_labels=labels) for each in settings]
    return [_frames(pipeline, run, setting) for run, setting in zip(runs, settings)]


def _picture(label: str) -> Any:
    gr.Markdown(label)  # not in the picture, which it would cover
    return gr.Image(label=label, show_label=False, type="pil", format="png", interactive=False, buttons=["download"])


def _choices(pipeline: Any) -> tuple[list[str], list[str]]:
    """(classes, samplers) to choose from; of any path while there is no pipeline."""
    if pipeline is None:
        return [NO_CLASS], [SAVED, *samplers_on(BETAS)]
    names = class_names(pipeline)
    return [NO_CLASS, *names, *([EVERY_CLASS] if names else [])], sampler_names(pipeline)


def _frames(pipeline: Any, run: Process, setting: Setting) -> list[tuple[Any, ...]]:
    """What a visitor's session keeps of a run: words and small pictures."""
    grids = []
    for noisy, x0 in pictures(pipeline, run.frames, run.scheduler):
        scale = max(1, round(SIDE / noisy.shape[-2]))
        grids.append(tuple(image_grid(each, min(4, len(each)), scale=scale, clip=True) for each in (noisy, x0)))
    summary = f"{setting.label}, {run.calls} network calls, {run.seconds:.1f} s"
    captions = [caption(run, 100 * place / max(1, len(run.frames) - 1)) for place in range(len(run.frames))]
    return [(summary, words, *pair) for words, pair in zip(captions, grids)]


def _at(kept: Any, percent: float) -> list[Any]:
    found: list[Any] = []
    for letter, frames in zip("AB", kept):
        summary, words, noisy, x0 = frames[round(percent / 100 * (len(frames) - 1))]
        found += [f"**{letter}** {summary}: {words}", noisy, x0]
    return found


# --- the mixture ------------------------------------------------------------------------------------------------------


def _mixture_tab(explain: Callable[[Exception], str]) -> None:
    explained = _explained(explain)
    with gr.Tab("A perfect network"):
        gr.Markdown(
            "Data are three Gaussians in the plane, so the best possible network is known in closed form, and so is "
            "the exact probability flow. All error that is left is the sampler's."
        )
        samplers = samplers_on(BETAS)
        with gr.Row():
            a = _setting_fields("A", samplers, Setting("ddim", 10), guided=False)
            b = _setting_fields("B", samplers, Setting("heun", 10), guided=False)
        with gr.Row():
            seed = gr.Number(0, label="Seed", precision=0, min_width=80)
            button = gr.Button("Sample the mixture", variant="primary")
        percent = gr.Slider(0, 100, 100, step=1, label="Share of the sampling steps taken, %")
        state = gr.State(None, time_to_live=SESSION_SECONDS)
        table = gr.Markdown()
        with gr.Row():
            points = _picture("Samples over the exact ones (grey)")
            curves = _picture("Error against network calls")

    @explained
    def sample(seed: Any, percent: float, *fields: Any) -> Any:
        runs = run_mixture([Setting(*fields[:3]), Setting(*fields[3:])], seed)
        return [runs, error_table(runs), draw_points(runs, percent), draw_curves(runs)]

    @explained
    def show(runs: MixtureRuns | None, percent: float) -> Any:
        return gr.skip() if runs is None else draw_points(runs, percent)

    button.click(
        sample, [seed, percent, *a, *b], [state, table, points, curves], api_name="mixture", concurrency_limit=AT_ONCE
    )
    percent.change(
        show, [state, percent], points, api_name="show_mixture", show_progress="hidden", trigger_mode="always_last",
        concurrency_limit=None,
    )  # fmt: skip
