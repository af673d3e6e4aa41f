"""The model card of a pipeline's folder: what it is, how to load it, what it was trained on, what was measured.

Everything on the card is read from the folder: configurations, the sizes in the safetensors files, `recipe.yaml` and
`metrics.jsonl` of the training run, `average.json` of `diffusers-ext ema`, `evaluation.json` of `diffusers-ext evaluate
--output`, and the pictures. The text stands in `diffusers_ext/hub/model_card.md`, a template of Jinja2
(`model_cards/TEMPLATE.md` in the source tree).
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
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open

from .averages import RECIPE, Reconstruction
from .registration import LIBRARY, is_code_name

TEMPLATE = Path(__file__).parent / "model_card.md"
CARD = "README.md"
EVALUATION = "evaluation.json"
# Says that a card was made here and may be made anew; without it, it is its author's.
MARKER = "<!-- Written by `diffusers-ext card` for"

# The name, without its ending, of a file of code that `export` wrote.
CODE_FILE = re.compile(r"\w+_[0-9a-f]{12}")
TASK = "unconditional-image-generation"
TASKS = {"text": "text-to-image", "image": "image-to-image"}
SWAPPABLE_PREDICTIONS = ("epsilon", "sample", "v_prediction")
# Data sets that this package brings or whose recipes it has: name on the Hub, what the card says of it.
DATA_SETS = {
    "embedded": (
        "ylecun/mnist",
        "MNIST, the class-balanced subset inside diffusers_ext",
        "10,000 of MNIST's 60,000 training images of handwritten digits (28x28, greyscale), 1,000 of each digit; the "
        "validation loss is that of 1,000 of its test images. By Yann LeCun and Corinna Cortes, CC BY-SA 3.0.",
    ),
}


@dataclass
class CardFacts:
    """What a folder tells of the pipeline in it."""

    folder: Path
    index: dict[str, Any]
    network: dict[str, Any]
    scheduler: dict[str, Any]
    recipe: dict[str, Any]
    records: list[dict[str, Any]]
    evaluation: dict[str, Any]
    reconstruction: Reconstruction | None = None
    parameters: int = 0
    dtypes: list[str] = field(default_factory=list)
    variant: str = ""

    @classmethod
    def of(cls, folder: str | os.PathLike) -> CardFacts:
        """Read a folder.

        Raises:
            FileNotFoundError: when it holds no pipeline.
            ValueError: when one of its files is not what its name says.
        """
        folder = Path(folder)
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(f"There is no pipeline in '{folder}': model_index.json is missing.")
        recipe = folder / RECIPE
        facts = cls(
            folder,
            _json(folder / "model_index.json"),
            _json(folder / "unet" / "config.json"),
            _json(folder / "scheduler" / "scheduler_config.json"),
            yaml.safe_load(recipe.read_text()) if recipe.is_file() else {},
            list(_records(folder / "metrics.jsonl")),
            _json(folder / EVALUATION),
            Reconstruction.of(folder),
        )
        parts = ("measures", "samples", "real_images", "floor")
        if facts.evaluation and not all(isinstance(facts.evaluation.get(part), dict) for part in parts):
            raise ValueError(f"'{folder / EVALUATION}' is not a report of `diffusers-ext evaluate`.")
        facts.parameters, facts.dtypes, facts.variant = _weights(folder / "unet")
        return facts

    @property
    def condition(self) -> str | None:
        """`class`, `text`, `image`, or None."""
        if self.recipe.get("condition"):
            return self.recipe["condition"]
        if self.index.get("condition"):
            return "image"
        if (self.index.get("text_encoder") or [None])[0] is not None:
            return "text"
        return "class" if self.network.get("num_class_embeds") else None

    @property
    def brings_code(self) -> bool:
        """Whether the pipeline or a component is not of diffusers itself."""
        return self.pipeline_code is not None or any(n == LIBRARY or CODE_FILE.fullmatch(n) for n in self._libraries)

    @property
    def is_foreign(self) -> bool:
        """Whether it needs code of somebody else, which this package doesn't replace."""
        names = [self.pipeline_code or LIBRARY, *self._libraries]
        return any(CODE_FILE.fullmatch(name) and not is_code_name(name) for name in names)

    @property
    def _libraries(self) -> list[str]:
        return [value[0] for value in self.index.values() if isinstance(value, list) and value and value[0]]

    @property
    def pipeline_code(self) -> str | None:
        """The name that a loader without this package must be told, to find the pipeline's class."""
        known = (path.stem for path in sorted(self.folder.glob("*.py")) if CODE_FILE.fullmatch(path.stem))
        return next(known, None)

    def last(self, name: str) -> float | None:
        """The last value of a metric."""
        return next((record[name] for record in reversed(self.records) if name in record), None)

    def picture(self, *names: str) -> str | None:
        """The first of these pictures that is there."""
        return next((name for name in names if (self.folder / name).is_file()), None)


def write_card(
    folder: str | os.PathLike,
    repo_id: str | None = None,
    *,
    title: str | None = None,
    license: str = "apache-2.0",
    tags: Sequence[str] = (),
    limits: Sequence[str] = (),
) -> bool:
    """Write `README.md` for the pipeline in a folder, unless somebody took it over by deleting its last line.

    Args:
        folder: of an export or a training run.
        repo_id: "user/name" that the calls on the card name; "user/" and the folder's name when None.
        title: heading; the repository's name when None.
        license: of the weights, an identifier of the Hub.
        tags: more tags for the Hub.
        limits: more sentences on what the model can't do.

    Returns:
        Whether it was written.

    Raises:
        FileNotFoundError: when the folder holds no pipeline.
        ValueError: when a file in it can't be read.
    """
    path = Path(folder) / CARD
    if path.is_file() and is_taken_over(path.read_text(encoding="utf-8")):
        return False
    repo_id = repo_id or f"user/{Path(folder).resolve().name}"
    make_card(folder, repo_id, title=title, license=license, tags=tags, limits=limits).save(path)
    return True


def is_taken_over(text: str) -> bool:
    """Whether a card is its author's: it was not made here, and says something below its metadata."""
    below = re.sub(r"\A\s*---\n.*?^---\s*$", "", text, flags=re.DOTALL | re.MULTILINE)
    return MARKER not in text and below.strip() != ""


def copy_card(folder: str | os.PathLike, file: str | os.PathLike, repo_id: str | None = None, **settings: Any) -> None:
    """Write the card of a folder elsewhere, with its pictures in `pictures/` beside it, under the card's name.

    Args:
        folder: of an export or a training run.
        file: the card, overwritten.
        repo_id, settings: as in `write_card`.
    """
    file = Path(file)
    text = str(make_card(folder, repo_id or f"user/{file.stem}", **settings))
    pictures = file.parent / "pictures"
    file.parent.mkdir(parents=True, exist_ok=True)
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        copy = pictures / f"{file.stem}-{Path(name).name}"
        pictures.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(folder) / name, copy)
        text = text.replace(f"({name})", f"(pictures/{copy.name})")
    file.write_text(text, encoding="utf-8")


def card_text(folder: str | os.PathLike, repo_id: str) -> str:
    """The card in a folder for a repository: a made one names it in its calls, somebody's own is left as it is."""
    path = Path(folder) / CARD
    if not path.is_file():
        return str(make_card(folder, repo_id))
    text = path.read_text(encoding="utf-8")
    made_for = re.search(rf"{re.escape(MARKER)} (\S+) ", text)
    return (
        text if made_for is None else re.sub(rf'(["\s]){re.escape(made_for[1])}(["\s])', rf"\g<1>{repo_id}\g<2>", text)
    )


def make_card(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    title: str | None = None,
    license: str = "apache-2.0",
    tags: Sequence[str] = (),
    limits: Sequence[str] = (),
) -> ModelCard:
    """The card of the pipeline in a folder, its metadata checked by huggingface_hub; arguments as `write_card`."""
    facts = CardFacts.of(folder)
    return ModelCard.from_template(
        card_data=_metadata(facts, repo_id, license, tags),
        template_path=str(TEMPLATE),
        repo_id=repo_id,
        title=title or repo_id.rpartition("/")[2],
        summary=_summary(facts),
        plugin=facts.brings_code,
        foreign=facts.is_foreign,
        code=facts.pipeline_code,
        variant=f', variant="{facts.variant}"' if facts.variant else "",
        swaps=_swaps(facts),
        picture_import=facts.condition == "image",
        arguments=_arguments(facts, 50),
        fewer_arguments=_arguments(facts, 20),
        facts=list(_facts(facts)),
        training_data=_training_data(facts),
        training=_training(facts),
        figures=list(_figures(facts)),
        evaluation=_evaluation(facts),
        limits=[*_limits(facts), *limits],
        samples=facts.picture("figures/samples.png", "samples.png"),
        samples_note=_samples_note(facts),
        losses=facts.picture("figures/losses.png"),
        reverse=facts.picture("figures/reverse.gif"),
        marker=f"{MARKER} {repo_id} from the files beside it; without this line it is left as it is. -->",
    )


# --- metadata ---------------------------------------------------------------------------------------------------------


def _metadata(facts: CardFacts, repo_id: str, license: str, tags: Sequence[str]) -> ModelCardData:
    condition = facts.condition
    found = [LIBRARY, "diffusion", f"{condition}-conditional" if condition else "unconditional", *tags]
    results = [
        EvalResult(
            task_type=TASKS.get(condition or "", TASK),
            dataset_type=_data_set(facts)[0] or "custom",
            dataset_name=_data_set(facts)[1],
            dataset_split=figure["split"],
            metric_type=figure["type"],
            metric_name=figure["name"],
            metric_value=figure["number"],
        )
        for figure in _figures(facts)
    ]
    data_set = _data_set(facts)[0]
    return ModelCardData(
        license=license,
        library_name="diffusers",
        pipeline_tag=TASKS.get(condition or "", TASK),
        tags=list(dict.fromkeys(found)),
        datasets=[data_set] if data_set else None,
        metrics=sorted({figure["type"] for figure in _figures(facts)}) or None,
        model_name=repo_id.rpartition("/")[2],
        eval_results=results or None,
    )


def _data_set(facts: CardFacts) -> tuple[str | None, str, str]:
    """(name on the Hub or None, name to read, sentence) of what the run trained on."""
    recipe = facts.recipe
    name = recipe.get("dataset_name")
    if not recipe:
        return None, "unknown data", "This folder does not tell what the model was trained on."
    if name is None and recipe.get("train_data_dir") is None:
        name = "embedded"
    if name in DATA_SETS:
        return DATA_SETS[name]
    split = recipe.get("train_split", "train")
    if name is None or Path(name).exists() or name.startswith(("/", ".", "~")):
        # A path says where this machine keeps its data: its last part is enough.
        local = Path(name or recipe["train_data_dir"]).name
        return None, local, f"The images of `{local}`, a local copy, split `{split}`."
    return (
        name,
        name,
        f"[{name}](https://huggingface.co/datasets/{name}), split `{split}`; its own card gives its licence.",
    )


# --- text -------------------------------------------------------------------------------------------------------------


def _summary(facts: CardFacts) -> str:
    condition = {
        None: "An unconditional",
        "class": "A class-conditional",
        "text": "A text-to-image",
        "image": "An image-to-image",
    }
    return (
        f"{condition[facts.condition]} diffusion model of {_images(facts)}, {facts.parameters:,} parameters, trained "
        f"from scratch on {_data_set(facts)[1]} with diffusers_ext."
    )


def _images(facts: CardFacts) -> str:
    height, width = _size(facts)
    channels = facts.network.get("out_channels") or facts.network.get("in_channels")
    kinds = {1: "greyscale", 3: "colour"}
    kind = kinds.get(int(channels or 0), f"{channels}-channel")
    return f"{kind} images of {height}x{width} pixels"


def _arguments(facts: CardFacts, steps: int) -> str:
    """Arguments of a call that makes a few images, as Python; conditions stand for the reader's own."""
    steps = min(steps, facts.scheduler.get("num_train_timesteps") or steps)
    return ", ".join([*_conditions(facts), *_guidance(facts), f"num_inference_steps={steps}"])


def _conditions(facts: CardFacts) -> Iterator[str]:
    if facts.condition == "class":
        names = [*(facts.index.get("id2label") or {}).values()] or list(range(facts.network["num_class_embeds"]))
        yield f"class_labels={json.dumps(names[:4], ensure_ascii=False)}"
    elif facts.condition == "text":
        yield 'prompt="a red heart"'
    elif facts.condition == "image":
        yield f"image={_blank(facts)}"
        if facts.index.get("condition") == "inpainting":
            yield f"mask_image={_blank(facts, mask=True)}"
    else:
        yield "batch_size=4"


def _guidance(facts: CardFacts) -> Iterator[str]:
    scale = facts.recipe.get("guidance_scale", 1.0)
    if facts.condition and scale != 1.0:
        yield f"guidance_scale={scale}"


def _blank(facts: CardFacts, mask: bool = False) -> str:
    """A plain image in the size and mode that the network's image condition takes, as Python."""
    condition, (height, width) = facts.index.get("condition") or "", _size(facts)
    name, _, factor = condition.rpartition("_")
    if name == "super_resolution":
        height, width = height // int(factor), width // int(factor)
    grey = mask or condition == "colorization" or facts.network.get("in_channels") == 1
    return f'Image.new("{"L" if grey else "RGB"}", ({width}, {height}), "{"white" if mask else "grey"}")'


def _size(facts: CardFacts) -> tuple[int, int]:
    size = facts.network.get("sample_size")
    return (size[0], size[1]) if isinstance(size, list) else (size or 0, size or 0)


def _swaps(facts: CardFacts) -> bool:
    """Whether diffusers' own samplers run on this path, and in this pipeline."""
    scheduler = facts.scheduler
    known = scheduler.get("prediction_type") in SWAPPABLE_PREDICTIONS and "beta_schedule" in scheduler
    discrete = scheduler.get("_class_name") in ("AncestralDDPMScheduler", "SubsequenceDDIMScheduler")
    return facts.pipeline_code is not None and not facts.is_foreign and known and discrete


def _facts(facts: CardFacts) -> Iterator[tuple[str, str]]:
    scheduler = facts.scheduler
    yield "pipeline", f"`{facts.index['_class_name']}`"
    yield "network", f"`{facts.network.get('_class_name')}`, {facts.parameters:,} parameters, {', '.join(facts.dtypes)}"
    yield "images", _images(facts)
    if facts.condition == "class":
        yield "classes", str(facts.network.get("num_class_embeds"))
    yield "scheduler", f"`{scheduler.get('_class_name')}`"
    yield "the network predicts", str(scheduler.get("prediction_type"))
    if "beta_schedule" in scheduler:
        yield "noise schedule", f"{scheduler['beta_schedule']}, T = {scheduler.get('num_train_timesteps')}"
    if facts.reconstruction or facts.recipe:
        yield "weights", _kind_of_weights(facts)


def _kind_of_weights(facts: CardFacts) -> str:
    if facts.reconstruction:
        return str(facts.reconstruction)
    if not facts.recipe.get("use_ema"):
        return "as trained, without averaging"
    return "power-function average" if facts.recipe.get("ema_kind") == "power" else "exponential moving average"


def _training_data(facts: CardFacts) -> str:
    recipe, sentences = facts.recipe, [_data_set(facts)[2]]
    split = recipe.get("train_split", "train")
    if recipe and split != "train" and f"`{split}`" not in sentences[0]:
        sentences.append(f"Of these, the split `{split}`.")
    if recipe.get("random_flip"):
        sentences.append("Images were mirrored at random.")
    return " ".join(sentences)


def _training(facts: CardFacts) -> str:
    if not facts.records:
        return "This folder holds no records of a training run."
    recipe, last = facts.recipe, facts.records[-1]
    text = (
        f"{last['step']:,} steps of {recipe.get('train_batch_size', 16)} images a process, {last['epoch']:.1f} passes "
    )
    text += f"through the data, in {last['seconds'] / 60:.1f} minutes"
    speeds = sorted(record["images_per_second"] for record in facts.records if "images_per_second" in record)
    text += f" ({speeds[len(speeds) // 2]:.0f} images/s)." if speeds else "."
    used = next((record for record in reversed(facts.records) if "flops_over_peak" in record), None)
    if used:
        text += (
            f" In {used['mode']}, the steps reached {used['flops_over_peak']:.0%} of the "
            f"{used['peak_flops'] / 1e9:,.0f} GFLOP/s that a product of matrices reached on that machine, and "
            f"{used['time_outside_steps']:.1%} of their time was "
            f"outside forward, backward and optimizer; they took at most {used['peak_memory_bytes'] / 2**30:.2f} GiB."
        )
    shown = ("learning_rate", "lr_scheduler", "mixed_precision", "loss", "loss_weighting", "timestep_sampling", "seed")
    settings = [f"{name} {recipe[name]}" for name in shown if name in recipe]
    if settings:
        text += f" Settings that differ from the defaults: {', '.join(settings)}."
    if (facts.folder / RECIPE).is_file():
        text += " All of them are in `recipe.yaml`; the losses at every step are in `metrics.jsonl`."
    return text


def _figures(facts: CardFacts) -> Iterator[dict[str, Any]]:
    """What was measured: the losses of the training run, and what an evaluation found."""
    predicted = facts.scheduler.get("prediction_type")
    weights = "EMA weights" if facts.recipe.get("use_ema") else "weights as trained"
    if facts.reconstruction:
        weights = f"the run's own {weights}"
    size = facts.recipe.get("validation_size", 1000)
    for name, split, on in (
        ("loss", "train", f"training images, mean of the last {facts.recipe.get('logging_steps', 10)} steps"),
        ("validation_loss", "validation", f"at most {size:,} held-out images with fixed noise, {weights}"),
    ):
        value = facts.last(name)
        if name == "validation_loss" and facts.recipe.get("early_stopping_patience"):  # the best weights were kept
            value = min((record[name] for record in facts.records if name in record), default=None)
        if value is not None and math.isfinite(value):
            label = f"{name.replace('_', ' ')} ({facts.recipe.get('loss', 'l2')}, {predicted})"
            yield {
                "name": label,
                "type": "loss",
                "number": round(value, 4),
                "value": f"{value:.4f}",
                "on": on,
                "split": split,
            }
    yield from _evaluated(facts)


def _evaluated(facts: CardFacts) -> Iterator[dict[str, Any]]:
    """The measures of `diffusers-ext evaluate`, each beside what real images get in the samples' place."""
    report = facts.evaluation
    if not report:
        return
    samples, real = report["measures"]["samples"], report["measures"]["real_images"]
    for name, value in samples.items():
        if name.endswith("standard_error"):
            continue
        floor = f" (real images: {real[name]:.4g})" if name in real else ""
        yield {
            "name": name.replace("_", " "),
            "type": name,
            "number": round(value, 5),
            "value": f"{value:.4g}{floor}",
            "on": f"{report['samples']['num_images']:,} samples, as said below",
            "split": report["real_images"]["split"],
        }


def _evaluation(facts: CardFacts) -> str:
    """What the measures of samples were taken of and with."""
    report = facts.evaluation
    if not report:
        return ""
    samples, real, floor = report["samples"], report["real_images"], report["floor"]
    scale = f", guidance {samples['guidance_scale']}" if "guidance_scale" in samples else ""
    classifier = f" The classifier: {report['classifier']['description']}." if report.get("classifier") else ""
    if isinstance(report.get("features"), dict):
        classifier += f" The features: {report['features']['name']}."
    return (
        f"{samples['num_images']:,} samples (weights: {samples['weights']}, {walk_of(samples)}, "
        f"{samples['num_inference_steps']} steps{scale}, seed {samples['seed']}) against {real['num_images']:,} real "
        f"images ({real['split']}). In brackets: {floor['num_images']:,} other real images ({floor['split']}) in the "
        f"samples' place.{classifier} Measured with `diffusers-ext evaluate`; all of it is in `{EVALUATION}`."
    )


def walk_of(samples: Mapping[str, Any]) -> str:
    """The sampler of a report's samples in words; reports of earlier versions name no scheduler."""
    scheduler = f" ({samples['scheduler']})" if samples.get("scheduler") else ""
    subsequence = f", subsequence {samples['subsequence']}" if samples.get("subsequence") else ""
    return f"sampler: {samples['sampler']}{scheduler}{subsequence}"


def _samples_note(facts: CardFacts) -> str:
    steps = facts.recipe.get("ddpm_num_inference_steps", 1000)
    return (
        f"{min(steps, 100)} steps of `{facts.scheduler.get('_class_name')}`, one seed, not selected."
        if facts.recipe
        else ""
    )


def _limits(facts: CardFacts) -> Iterator[str]:
    yield f"It makes {_images(facts)} like those of its training data, with their biases, and nothing else."
    if facts.records or facts.evaluation:
        yield "The figures are of one run with one seed."
    yield "Nobody has looked for copies of training images among the samples."
    if facts.last("loss") is not None and facts.records[-1]["seconds"] < 3600:
        yield "It was trained for minutes, to show the way and not to reach the best quality: expect malformed images."


# --- files ------------------------------------------------------------------------------------------------------------


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text()) if path.is_file() else {}
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"'{path}' must hold a JSON object.")
    return value


def _records(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # the last line of a killed run
            continue


def _weights(folder: Path) -> tuple[int, list[str], str]:
    """(number of parameters, kinds of number, name) of the first variant's files, without reading the weights."""
    files = sorted(folder.glob("*.safetensors"))
    variants = {file.name.split("-0")[0].removesuffix(".safetensors") for file in files}
    first = min(variants, default="", key=len)
    count, dtypes = 0, set()
    for file in files:
        if file.name.split("-0")[0].removesuffix(".safetensors") == first:
            with safe_open(file, framework="pt") as weights:
                for key in weights.keys():  # noqa: SIM118
                    tensor = weights.get_slice(key)
                    count += math.prod(tensor.get_shape())
                    dtypes.add(tensor.get_dtype())
    return count, sorted(_DTYPES.get(dtype, dtype) for dtype in dtypes), first.partition(".")[2]


_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
