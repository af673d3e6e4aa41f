"""The model card of a pipeline's folder: what the model is, how to load it, its training data, and its evaluation.

Everything on the card is read from the folder: the configurations, the sizes in the safetensors files, `recipe.yaml`
and `metrics.jsonl` of the training run, `average.json` of `diffusers-ext ema`, `evaluation.json` of `diffusers-ext
evaluate`, `provenance.json`, and the pictures in `PICTURES`. The folder may be a download, so every value is escaped,
links are not followed, and no other picture is shown or copied. The text is in `model_card.md`, a template of Jinja2.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import SafetensorError, safe_open

from ..conditions import CONDITIONS, Condition
from ..conditions.base import PythonCode
from ..files import atomic_write
from ..pipelines.latent_space import down_sampling
from ..settings.recipes import RECIPE_FILE, read_typed
from .averages import Reconstruction
from .markdown import Markdown, code, environment, escaped, markdown, plain, python
from .provenance import PROVENANCE
from .registration import LIBRARY, is_code_name

TEMPLATE = Path(__file__).parent / "model_card.md"
CARD = "README.md"
EVALUATION = "evaluation.json"
METRICS = "metrics.jsonl"
# The pictures that a card can have: a card shows the first of each kind that is there.
SAMPLES, LOSSES, REVERSE = (
    ("figures/samples.png", "samples.png"),
    ("figures/losses.png",),
    ("figures/reverse.gif", "figures/reverse.png"),
)
PICTURES = (*SAMPLES, *LOSSES, *REVERSE)
# Marks a card that was made here and may be written again; a card without it belongs to its author.
MARKER = "<!-- Written by `diffusers-ext card` for"
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)

# The name, without its ending, of a code file that `export` wrote.
CODE_FILE = re.compile(r"\w+_[0-9a-f]{12}")
TASK = "unconditional-image-generation"
SIGNAL_TASK = "other"  # of results; the Hub has no task, so no tag, of making signals from a class or from nothing
SWAPPABLE_PREDICTIONS = ("epsilon", "sample", "v_prediction")
# Data sets inside this package: name on the Hub, name for readers, description.
DATA_SETS = {
    "embedded": (
        "ylecun/mnist",
        "MNIST, the class-balanced subset inside diffusers_ext",
        "10,000 of MNIST's 60,000 training images of handwritten digits (28x28, greyscale), 1,000 of each digit. The "
        "validation loss is measured on 1,000 of its test images. By Yann LeCun and Corinna Cortes, CC BY-SA 3.0.",
    ),
}


@dataclass
class CardFacts:
    """What the files of a folder say about the pipeline in it."""

    folder: Path
    index: dict[str, Any]
    network: dict[str, Any]
    scheduler: dict[str, Any]
    recipe: dict[str, Any]
    records: list[dict[str, Any]]
    evaluation: dict[str, Any]
    versions: dict[str, Any]
    reconstruction: Reconstruction | None = None
    parameters: int = 0
    dtypes: list[str] = field(default_factory=list)
    variant: str = ""
    vae: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: str | os.PathLike) -> CardFacts:
        """Read a folder.

        Raises:
            FileNotFoundError: if there is no pipeline in it.
            ValueError: if one of its files has not the content that its name says.
        """
        folder = Path(folder)
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(f"There is no pipeline in '{folder}': model_index.json is missing.")
        index = _json(folder / "model_index.json")
        facts = cls(
            folder,
            index,
            _json(folder / "unet" / "config.json"),
            _json(folder / "scheduler" / "scheduler_config.json"),
            read_typed(folder / RECIPE_FILE),
            list(_records(folder / METRICS)),
            _json(folder / EVALUATION),
            _json(folder / PROVENANCE).get("versions") or {},
            Reconstruction.of(folder),
            vae=_json(folder / "vae" / "config.json") if "vae" in index else {},
        )
        parts = ("measures", "samples", "real_images", "baseline")
        if facts.evaluation and not all(isinstance(facts.evaluation.get(part), dict) for part in parts):
            raise ValueError(f"'{folder / EVALUATION}' is not a report of `diffusers-ext evaluate`.")
        facts.parameters, facts.dtypes, facts.variant = _weights(folder / "unet")
        return facts

    @property
    def condition(self) -> str | None:
        """The name of what the network is conditioned on, or None."""
        if self.recipe.get("condition"):
            return str(self.recipe["condition"])
        saved = (name for name, kind in reversed(CONDITIONS.items()) if kind.saved_in(self.network, self.index))
        return next(saved, None)

    @property
    def condition_class(self) -> type[Condition] | None:
        """What the network is conditioned on; None for nothing, and for a condition that is not registered here."""
        return CONDITIONS.get(self.condition or "")

    @property
    def brings_code(self) -> bool:
        """Whether the pipeline or a component has a class that is not diffusers' own."""
        return self.pipeline_code is not None or any(n == LIBRARY or CODE_FILE.fullmatch(n) for n in self._libraries)

    @property
    def is_foreign(self) -> bool:
        """Whether a class comes neither from diffusers nor from this package, so that its code must be run."""
        names = [self.pipeline_code or LIBRARY, *self._libraries]
        return any(CODE_FILE.fullmatch(name) and not is_code_name(name) for name in names)

    @property
    def _libraries(self) -> list[str]:
        lists = (value for value in self.index.values() if isinstance(value, list))
        return [value[0] for value in lists if value and isinstance(value[0], str) and value[0]]

    @property
    def pipeline_code(self) -> str | None:
        """The file, without its ending, with the code of the pipeline's class."""
        known = (path.stem for path in sorted(self.folder.glob("*.py")) if CODE_FILE.fullmatch(path.stem))
        return next(known, None)

    def last(self, name: str) -> float | None:
        """The last value of a metric."""
        return next((record[name] for record in reversed(self.records) if name in record), None)

    def picture(self, names: Sequence[str]) -> str | None:
        """The first of these pictures that is a regular file inside the folder."""
        return next((name for name in names if _is_inside(self.folder, name)), None)


def write_card(folder: str | os.PathLike, repo_id: str | None = None, **settings: Any) -> bool:
    """Write `README.md` for the pipeline in a folder, unless somebody took the card over by deleting its last line.

    Args:
        folder, repo_id, settings: the arguments of `make_card`.

    Returns:
        Whether the card was written.

    Raises what `make_card` raises.
    """
    path = Path(folder) / CARD
    if _is_inside(Path(folder), CARD) and is_taken_over(path.read_text(encoding="utf-8")):
        return False
    atomic_write(path, str(make_card(folder, repo_id, **settings)))
    return True


def is_taken_over(text: str) -> bool:
    """Whether a card belongs to its author: it has no mark of this module, and has text below its metadata."""
    below = re.sub(r"\A\s*---\n.*?^---\s*$", "", text, flags=re.DOTALL | re.MULTILINE)
    return MARKER not in text and below.strip() != ""


def copy_card(folder: str | os.PathLike, file: str | os.PathLike, repo_id: str | None = None, **settings: Any) -> None:
    """Write the card of a folder to another place, and copy its pictures to `pictures/` beside it.

    Args:
        folder: of an export or a training run.
        file: the card; overwritten.
        repo_id, settings: as in `make_card`.
    """
    file, pictures = Path(file), {}
    facts = CardFacts.of(folder)
    for name in filter(None, map(facts.picture, (SAMPLES, LOSSES, REVERSE))):
        pictures[name] = f"pictures/{_slug(file.stem)}-{Path(name).name}"
    card = make_card(folder, repo_id, pictures=pictures, **settings)
    (file.parent / "pictures" if pictures else file.parent).mkdir(parents=True, exist_ok=True)
    for name, copy in pictures.items():
        shutil.copyfile(facts.folder / name, file.parent / copy)
    atomic_write(file, str(card))


def card_text(folder: str | os.PathLike, repo_id: str) -> str:
    """The card in a folder, with `repo_id` in the examples of a card that was made here; made if there is none."""
    _check_repo_id(repo_id)
    if not _is_inside(Path(folder), CARD):
        return str(make_card(folder, repo_id))
    text = Path(folder, CARD).read_text(encoding="utf-8")
    made_for = re.search(rf"{re.escape(MARKER)} (\S+) ", text)
    if made_for is None:
        return text
    return re.sub(rf'(["\s]){re.escape(made_for[1])}(["\s])', rf"\g<1>{repo_id}\g<2>", text)


def make_card(
    folder: str | os.PathLike,
    repo_id: str | None = None,
    *,
    title: str | None = None,
    license: str = "apache-2.0",
    tags: Sequence[str] = (),
    limits: Sequence[str] = (),
    pictures: Mapping[str, str] | None = None,
) -> ModelCard:
    """The card of the pipeline in a folder, with metadata that huggingface_hub has checked.

    Args:
        folder: of an export or a training run.
        repo_id: "user/name" for the card's examples; "user/" and the folder's name when None.
        title: heading; when None the repository's name, or without `repo_id` what the model is.
        license: of the weights, an identifier of the Hub.
        tags: more tags for the Hub.
        limits: more sentences on what the model can't do.
        pictures: name of a picture in the folder -> its path on the card, where they differ.

    Raises:
        FileNotFoundError: if there is no pipeline in the folder.
        ValueError: if a file in it can't be read, or `repo_id` is not a name of a repository.
    """
    facts = CardFacts.of(folder)
    if title is None:
        title = repo_id.rpartition("/")[2] if repo_id else _description(facts).removeprefix("A ").capitalize()
    repo_id = repo_id or f"user/{_slug(facts.folder.resolve().name)}"
    _check_repo_id(repo_id)
    try:
        values = _values(facts, limits, pictures or {})
        metadata = _metadata(facts, repo_id, license, tags).to_yaml()
    except (TypeError, AttributeError, KeyError, IndexError, ArithmeticError) as error:
        raise ValueError(
            f"The card of '{folder}' can't be written: one of its files has a value of the wrong kind "
            f"({type(error).__name__}: {plain(error)[:200]})."
        ) from None
    template = environment().from_string(TEMPLATE.read_text(encoding="utf-8"))
    marker = f"{MARKER} {repo_id} from the files beside it; without this line it is left as it is. -->"
    card_data = Markdown(metadata)
    return ModelCard(
        template.render(card_data=card_data, repo_id=repo_id, title=title, marker=Markdown(marker), **values)
    )


def _values(facts: CardFacts, limits: Sequence[str], pictures: Mapping[str, str]) -> dict[str, Any]:
    """What the template shows, but for the title and the repository."""

    def shown(names: Sequence[str]) -> Markdown | None:
        name = facts.picture(names)
        return None if name is None else Markdown(pictures.get(name, name))

    return {
        "summary": _summary(facts),
        "plugin": facts.brings_code,
        "foreign": facts.is_foreign,
        "code": facts.pipeline_code,
        "variant": Markdown(f", variant={python(facts.variant)}" if facts.variant else ""),
        "swaps": _swaps(facts),
        "picture_import": facts.condition == "image" and not _is_signal(facts),
        "output": "audios" if _is_signal(facts) else "images",
        "noun": _noun(facts),
        "arguments": _arguments(facts, 50),
        "fewer_arguments": _arguments(facts, 20),
        "facts": list(_facts(facts)),
        "training_data": _training_data(facts),
        "training": _training(facts),
        "figures": list(_figures(facts)),
        "evaluation": _evaluation(facts),
        "limits": [*_limits(facts), *limits],
        "samples": shown(SAMPLES),
        "samples_note": _samples_note(facts),
        "losses": shown(LOSSES),
        "reverse": shown(REVERSE),
    }


def _check_repo_id(repo_id: str) -> None:
    if not _REPO_ID.fullmatch(repo_id):
        raise ValueError(f"repo_id must be 'user/name', of letters, digits, '-', '_' and '.', got {repo_id!r}.")


def _slug(name: str) -> str:
    """A name with only the characters that a repository may have."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-._") or "model"


# --- metadata ---------------------------------------------------------------------------------------------------------


def _metadata(facts: CardFacts, repo_id: str, license: str, tags: Sequence[str]) -> ModelCardData:
    condition = facts.condition
    found = [LIBRARY, "diffusion", f"{_slug(condition)}-conditional" if condition else "unconditional", *tags]
    hub_name, data_set, _ = _data_set(facts)
    results = [
        EvalResult(
            task_type=_task(facts),
            dataset_type=hub_name or "custom",
            dataset_name=plain(data_set),
            dataset_split=plain(figure.split),
            metric_type=plain(figure.type),
            metric_name=plain(figure.name),
            metric_value=figure.number,
        )
        for figure in _figures(facts)
    ]
    return ModelCardData(
        license=license,
        library_name="diffusers",
        pipeline_tag=None if _is_signal(facts) else _task(facts),
        tags=list(dict.fromkeys(map(plain, found))),
        datasets=[hub_name] if hub_name else None,
        metrics=sorted({plain(figure.type) for figure in _figures(facts)}) or None,
        model_name=repo_id.rpartition("/")[2],
        eval_results=results or None,
    )


def _data_set(facts: CardFacts) -> tuple[str | None, str, str]:
    """(name on the Hub or None, name for readers, sentence) of the training data."""
    recipe = facts.recipe
    name = recipe.get("dataset_name")
    if not recipe:
        return None, "unknown data", "The files of this folder don't say what the model was trained on."
    if name is None and recipe.get("train_data_dir") is None:
        name = "embedded"
    if name in DATA_SETS:
        return DATA_SETS[name]
    split = code(recipe.get("train_split", "train"))
    if name is None or not _REPO_ID.fullmatch(str(name)) or Path(name).exists():
        # A path says where this machine keeps its data: its last part is enough.
        local = re.split(r"[/\\]", str(name or recipe["train_data_dir"]).rstrip("/\\"))[-1]
        return (
            None,
            local,
            markdown("The data of {local}, a local copy, split {split}.", local=code(local), split=split),
        )
    link = f"[{escaped(name)}](https://huggingface.co/datasets/{name})"
    sentence = "{link}, split {split}. Its own card gives its licence."
    return name, name, markdown(sentence, link=Markdown(link), split=split)


def _task(facts: CardFacts) -> str:
    if _is_signal(facts):
        return SIGNAL_TASK
    return TASK if facts.condition_class is None else facts.condition_class.task


# --- text -------------------------------------------------------------------------------------------------------------


def _summary(facts: CardFacts) -> str:
    start: Any = "from scratch"
    if facts.recipe.get("init_from"):
        start = markdown("from the weights of {name}", name=code(facts.recipe["init_from"]))
    return markdown(
        "{model}, with {parameters:,} parameters. It was trained {start} with diffusers_ext on {data}.",
        model=_description(facts),
        parameters=facts.parameters,
        start=start,
        data=_data_set(facts)[1],
    )


def _description(facts: CardFacts) -> str:
    kind = facts.condition_class
    other = "An unconditional" if facts.condition is None else f"A {facts.condition}-conditional"
    model = "flow map" if _is_flow_map(facts) else "diffusion model"
    return f"{other if kind is None else kind.adjective} {model} of {_images(facts)}"


def _is_flow_map(facts: CardFacts) -> bool:
    return bool(facts.network.get("second_time"))


def _is_signal(facts: CardFacts) -> bool:
    return facts.index.get("_class_name") == "SignalPipeline"


def _noun(facts: CardFacts) -> str:
    return "signals" if _is_signal(facts) else "images"


def _signals(facts: CardFacts) -> str:
    """What the signals are: "signals of 4,608 frames at 8,000 Hz, 1 channel"."""
    channels, rate = int(facts.network.get("in_channels") or 0), (facts.index.get("signal") or {}).get("sample_rate")
    length, at = int(facts.network.get("sample_size") or 0), f" at {int(rate):,} Hz" if rate else ""
    return f"signals of {length:,} frames{at}, {channels} channel{'s' if channels != 1 else ''}"


def _images(facts: CardFacts) -> str:
    if _is_signal(facts):
        return _signals(facts)
    height, width = _size(facts)
    channels = int(facts.network.get("out_channels") or facts.network.get("in_channels") or 0)
    if facts.vae:
        channels = int(facts.vae.get("out_channels") or facts.vae.get("in_channels") or 3)
    elif str(facts.scheduler.get("variance_type")).startswith("learned"):
        channels //= 2  # the other half is the variance
    kind = {1: "greyscale", 3: "colour"}.get(channels, f"{channels}-channel")
    return f"{kind} images of {height}x{width} pixels"


def _arguments(facts: CardFacts, steps: int) -> Markdown:
    """Arguments of a call that makes a few images, as Python, with an example of the condition."""
    steps = min(steps, int(facts.scheduler.get("num_train_timesteps") or steps))
    if _is_flow_map(facts):
        steps = min(steps, int(facts.recipe.get("ddpm_num_inference_steps", 4)))
    return Markdown(", ".join([*_conditions(facts), *_guidance(facts), f"num_inference_steps={steps}"]))


def _conditions(facts: CardFacts) -> Iterator[str]:
    if facts.condition_class is None:
        yield "batch_size=4"
        return
    for argument, value in facts.condition_class.call_example(facts.network, facts.index).items():
        yield f"{argument}={value if isinstance(value, PythonCode) else python(value)}"


def _guidance(facts: CardFacts) -> Iterator[str]:
    scale = float(facts.recipe.get("guidance_scale", 1.0))
    if facts.condition and scale != 1.0:
        yield f"guidance_scale={scale}"


def _size(facts: CardFacts) -> tuple[int, int]:
    """(height, width) of an image."""
    size = facts.network.get("sample_size")
    factor = down_sampling(facts.vae) if facts.vae else 1
    height, width = (int(size[0]), int(size[1])) if isinstance(size, list) else (int(size or 0), int(size or 0))
    return height * factor, width * factor


def _swaps(facts: CardFacts) -> bool:
    """Whether diffusers' own samplers work on this noise path, and in this pipeline."""
    scheduler = facts.scheduler
    known = scheduler.get("prediction_type") in SWAPPABLE_PREDICTIONS and "beta_schedule" in scheduler
    discrete = scheduler.get("_class_name") in ("AncestralDDPMScheduler", "SubsequenceDDIMScheduler")
    return facts.pipeline_code is not None and not facts.is_foreign and known and discrete


def _facts(facts: CardFacts) -> Iterator[tuple[str, str]]:
    scheduler = facts.scheduler
    yield "pipeline", code(facts.index["_class_name"])
    network = "{name}, {parameters:,} parameters, {dtypes}"
    name, dtypes = code(facts.network.get("_class_name")), ", ".join(facts.dtypes)
    yield "network", markdown(network, name=name, parameters=facts.parameters, dtypes=dtypes)
    yield _noun(facts), _images(facts)
    if facts.vae:
        factor, channels = down_sampling(facts.vae), int(facts.vae.get("latent_channels") or 0)
        shape = f"{channels}x{_size(facts)[0] // factor}x{_size(facts)[1] // factor}"
        name = code(facts.vae.get("_class_name"))
        yield "autoencoder", markdown("{name}, latents of {shape}", name=name, shape=shape)
    if facts.condition_class is not None:
        yield from facts.condition_class.card_facts(facts.network, facts.index)
    yield "scheduler", code(scheduler.get("_class_name"))
    if _is_flow_map(facts):
        yield "prediction of the network", "flow, averaged over a sampling step of any length"
    else:
        yield "prediction of the network", str(scheduler.get("prediction_type"))
    if facts.network.get("max_guidance"):
        yield "guidance", f"an input of the network: scales up to {facts.network['max_guidance']} take no second call"
    if "beta_schedule" in scheduler:
        yield "noise schedule", f"{scheduler['beta_schedule']}, T = {scheduler.get('num_train_timesteps')}"
    if facts.reconstruction or facts.recipe:
        yield "weights", _kind_of_weights(facts)
    if facts.versions:
        yield "made with", ", ".join(f"{name} {version}" for name, version in facts.versions.items())


def _kind_of_weights(facts: CardFacts) -> str:
    if facts.reconstruction:
        return str(facts.reconstruction)
    if not facts.recipe.get("use_ema"):
        return "as trained, without averaging"
    return "power-function average" if facts.recipe.get("ema_kind") == "power" else "exponential moving average"


def _training_data(facts: CardFacts) -> str:
    recipe, text = facts.recipe, escaped(_data_set(facts)[2])
    split = code(recipe.get("train_split", "train"))
    if recipe and split not in ("`train`", text) and split not in text:
        text = markdown("{text} Of these, the split {split}.", text=text, split=split)
    return Markdown(f"{text} Images were mirrored at random.") if recipe.get("random_flip") else text


def _training(facts: CardFacts) -> str:
    if not facts.records:
        return "This folder has no records of a training run."
    return Markdown(" ".join(filter(None, [_duration(facts), _efficiency(facts), _settings(facts), _where(facts)])))


def _duration(facts: CardFacts) -> str:
    last, speeds = facts.records[-1], sorted(r["images_per_second"] for r in facts.records if "images_per_second" in r)
    text = (
        f"{int(last['step']):,} steps of {int(facts.recipe.get('train_batch_size', 16))} {_noun(facts)} per process, "
        f"{float(last['epoch']):.1f} passes through the data, in {float(last['seconds']) / 60:.1f} minutes"
    )
    return text + (f" ({float(speeds[len(speeds) // 2]):.0f} {_noun(facts)}/s)." if speeds else ".")


def _efficiency(facts: CardFacts) -> str:
    used = next((record for record in reversed(facts.records) if "flops_over_peak" in record), None)
    if used is None:
        return ""
    return markdown(
        "In {mode}, the steps reached {share:.0%} of the {peak:,.0f} GFLOP/s that a product of matrices reached on "
        "that machine. {outside:.1%} of their time was spent outside forward, backward and optimizer, and they "
        "took at most {memory:.2f} GiB.",
        mode=used["mode"],
        share=float(used["flops_over_peak"]),
        peak=float(used["peak_flops"]) / 1e9,
        outside=float(used["time_outside_steps"]),
        memory=float(used["peak_memory_bytes"]) / 2**30,
    )


# Settings that the card states elsewhere, or that say nothing about the model.
_STATED = {
    *("dataset_name", "dataset_config_name", "train_data_dir", "train_split", "train_batch_size", "condition"),
    *("output_dir", "cache_dir", "logging_dir", "logger", "push_to_hub", "hub_model_id", "hub_private_repo"),
}


def _settings(facts: CardFacts) -> str:
    """All settings of the recipe, which holds those that differ from the defaults."""
    settings = {name: value for name, value in facts.recipe.items() if name not in _STATED and "token" not in name}
    if not settings:
        return ""
    shown = ", ".join(f"{escaped(name)} {escaped(_short(value))}" for name, value in settings.items())
    return f"Settings that differ from the defaults: {shown}."


def _short(value: Any) -> str:
    """A setting on the card: of a path the last part, of a long text the beginning."""
    text = plain(value)
    if isinstance(value, str) and (re.match(r"[/~.]|[A-Za-z]:\\", text) or re.search(r"[/\\].*[/\\]", text)):
        text = re.split(r"[/\\]", text.rstrip("/\\"))[-1]
    return text if len(text) <= 80 else f"{text[:80]}..."


def _where(facts: CardFacts) -> str:
    if not facts.recipe:
        return ""
    every = int(facts.recipe.get("logging_steps", 10))
    steps = "every step" if every == 1 else f"every {every} steps"
    return f"The settings are in `{RECIPE_FILE}`, the losses of {steps} in `{METRICS}`."


class Measure(NamedTuple):
    """A number of the run or of an evaluation: as the Hub takes it, and as the card shows it."""

    name: str
    type: str
    number: float
    value: str
    on: str
    split: Any


def _figures(facts: CardFacts) -> Iterator[Measure]:
    """The measurements: the losses of the training run, and the results of an evaluation."""
    weights = "EMA weights" if facts.recipe.get("use_ema") else "weights as trained"
    if facts.reconstruction:
        weights = f"the run's own {weights}"
    size = int(facts.recipe.get("validation_size", 1000))
    for name, split, on in (
        ("loss", "train", f"training {_noun(facts)}, mean of the last {facts.recipe.get('logging_steps', 10)} steps"),
        ("validation_loss", "validation", f"at most {size:,} held-out {_noun(facts)} with fixed noise, {weights}"),
    ):
        value = facts.last(name)
        if name == "validation_loss" and facts.recipe.get("early_stopping_patience"):  # the best weights were kept
            value = min((record[name] for record in facts.records if name in record), default=None)
        if value is not None and math.isfinite(value):
            label = f"{name.replace('_', ' ')} ({_kind_of_loss(facts, name)})"
            yield Measure(label, "loss", round(value, 4), f"{value:.4f}", on, split)
    yield from _evaluated(facts)


def _kind_of_loss(facts: CardFacts, name: str) -> str:
    if facts.recipe.get("objective") == "flow_map":
        return "flow map, weighted to be near 1" if name == "loss" else "flow map, mean squared error of the velocity"
    return f"{facts.recipe.get('loss', 'l2')}, {facts.scheduler.get('prediction_type')}"


def _evaluated(facts: CardFacts) -> Iterator[Measure]:
    """The measures of `diffusers-ext evaluate`, each with its real-data baseline."""
    report = facts.evaluation
    if not report:
        return
    samples, real = report["measures"]["samples"], report["measures"]["real_images"]
    on, split = f"{int(report['samples']['num_images']):,} samples, see below", report["real_images"]["split"]
    for name, value in samples.items():
        if not name.endswith("standard_error"):
            baseline = f" (real {_noun(facts)}: {real[name]:.4g})" if name in real else ""
            yield Measure(name.replace("_", " "), name, round(value, 5), f"{value:.4g}{baseline}", on, split)


def _evaluation(facts: CardFacts) -> str:
    """How the samples were made, with what they were compared, and by which networks."""
    report = facts.evaluation
    if not report:
        return ""
    samples, real, baseline = report["samples"], report["real_images"], report["baseline"]
    networks = f" Classifier: {report['classifier']['description']}." if report.get("classifier") else ""
    if isinstance(report.get("features"), dict):
        networks += f" Features: {report['features']['name']}."
    noun = _noun(facts)
    text = (
        f"{int(samples['num_images']):,} samples (weights: {samples['weights']}, {sampler_of(samples)}, "
        f"{samples['num_inference_steps']} steps{guidance_of(samples)}, seed {samples['seed']}) against "
        f"{int(real['num_images']):,} real {noun} ({real['split']}). In brackets the real-data baseline: "
        f"{int(baseline['num_images']):,} other real {noun} ({baseline['split']}) against the same ones.{networks}"
    )
    return markdown("{text} Measured with `diffusers-ext evaluate`; `evaluation.json` has all of it.", text=text)


def sampler_of(samples: Mapping[str, Any]) -> str:
    """The sampler of a report's samples in words; reports of earlier versions name no scheduler."""
    scheduler = f" ({samples['scheduler']})" if samples.get("scheduler") else ""
    subsequence = f", subsequence {samples['subsequence']}" if samples.get("subsequence") else ""
    return f"sampler: {samples['sampler']}{scheduler}{subsequence}"


def guidance_of(samples: Mapping[str, Any]) -> str:
    """The guidance of a report's samples in words, after a comma; empty where there is none."""
    if "guidance_scale" not in samples:
        return ""
    start, stop = samples.get("guidance_interval") or (0, 1)
    part = "" if (start, stop) == (0, 1) else f" from {100 * start:g} % to {100 * stop:g} % of the steps"
    return f", guidance {samples['guidance_scale']}{part}"


def _samples_note(facts: CardFacts) -> str:
    if not facts.recipe:
        return ""
    steps = min(int(facts.recipe.get("ddpm_num_inference_steps", 1000)), 100)
    scheduler = code(facts.scheduler.get("_class_name"))
    return markdown("{steps} steps of {scheduler}, one seed, not selected.", steps=steps, scheduler=scheduler)


def _limits(facts: CardFacts) -> Iterator[str]:
    yield f"It makes {_images(facts)} like those of its training data, with their biases, and nothing else."
    if facts.records or facts.evaluation:
        yield "The measurements are of one run with one seed."
    yield f"Nobody has looked for copies of training {_noun(facts)} among the samples."
    if facts.last("loss") is not None and facts.records[-1]["seconds"] < 3600:
        yield f"It was trained for less than an hour, as a demonstration: expect malformed {_noun(facts)}."


# --- files ------------------------------------------------------------------------------------------------------------


def _is_inside(folder: Path, name: str) -> bool:
    """Whether a file is a regular one of this folder, and no link on the way to it leads elsewhere."""
    file = folder / name
    return file.is_file() and file.resolve() == folder.resolve() / name


def _text(path: Path) -> str:
    """The content of a file of the folder; empty if it is missing or a link."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() and not path.is_symlink() else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path) or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"'{path}' must hold a JSON object.")
    return value


def _records(path: Path) -> Iterator[dict[str, Any]]:
    for line in _text(path).splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # the last line of a killed run
            continue
        if isinstance(record, dict):
            yield record


def _weights(folder: Path) -> tuple[int, list[str], str]:
    """(number of parameters, data types, name) of the first variant's files, without reading the weights.

    Raises:
        ValueError: if one of them is not a whole safetensors file.
    """
    files = sorted(file for file in folder.glob("*.safetensors") if not file.is_symlink())
    variants = {file.name.split("-0")[0].removesuffix(".safetensors") for file in files}
    first = min(variants, default="", key=len)
    count, dtypes = 0, set()
    for file in files:
        if file.name.split("-0")[0].removesuffix(".safetensors") == first:
            try:
                with safe_open(file, framework="pt") as weights:
                    for key in weights.keys():  # noqa: SIM118
                        tensor = weights.get_slice(key)
                        count += math.prod(tensor.get_shape())
                        dtypes.add(tensor.get_dtype())
            except SafetensorError as error:
                raise ValueError(f"'{file}' is not a whole safetensors file ({error}).") from None
    return count, sorted(_DTYPES.get(dtype, dtype) for dtype in dtypes), first.partition(".")[2]


_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
