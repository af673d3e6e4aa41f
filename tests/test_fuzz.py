"""Wrong settings, recipes, files and calls, drawn from a seed: one sentence each, no traceback, no hang, no stray file.

Every case is a line of words for `diffusers-ext`, a recipe, or a call of Python. `SEED` and `CASES` change the draw:
DIFFUSERS_EXT_FUZZ_SEED=7 DIFFUSERS_EXT_FUZZ_CASES=5000 pytest tests/test_fuzz.py
"""

import contextlib
import inspect
import json
import os
import random
import shutil
import time
from collections import Counter

import pytest
import torch
from conftest import TINY_MODEL

import diffusers_ext
from diffusers_ext import AncestralDDPMScheduler, AnnotatedUNet2DModel, GenerationPipeline
from diffusers_ext.cli import main
from diffusers_ext.cli.program import COMMANDS
from diffusers_ext.schedulers.schedules import make_betas
from diffusers_ext.settings import settings_of
from diffusers_ext.training import TrainingArguments

SEED = int(os.environ.get("DIFFUSERS_EXT_FUZZ_SEED", "0"))
CASES = int(os.environ.get("DIFFUSERS_EXT_FUZZ_CASES", "60"))  # of each kind
LONGEST_SECONDS = 20
SCHEDULERS = [name for name in diffusers_ext.__all__ if name.endswith("Scheduler")]
TEXTS = [
    *("", " ", "x", "x" * 3000, "nan", "inf", "-inf", "-1", "0", "1", "3", "1.5", "1e999", "9" * 400, "true", "maybe"),
    *("None", "null", "{}", "[]", "{", '{"a": 1}', "[1", "../..", "/nowhere", "/dev/null", ".", "ünï→💥", "a b"),
    *("a\nb", "a\0b", "--", "-", "%s", "${HOME}", "embedded", "train[:4]", "train[999999:]", "train[", "all", "cuda"),
    *("cuda:99", "mps", "meta", "float64", "ddim", "linear", "cosine", "outputs/mnist", "file.txt", "folder", "model"),
    "owner/name",
]
OBJECTS = [
    *(None, True, False, 0, -1, 3, 2.5, float("nan"), float("inf"), 10**400, "", "x", b"x", [], [1], ["a"], (), {}),
    *({"a": 1}, {"a": {1}}, object(), int, 1j, torch.zeros(2), len),
]
LINES = [
    *(
        "model: small",
        "model: [small]",
        "model: {a: 1}",
        "seed: 1",
        "seed: one",
        "seed:",
        "speed: 3",
        "- a",
        "a",
        ": b",
    ),
    *("? [a]", "x: &x [1]", "model: *x", "<<: {seed: 1}", "model_options: {a: [[[[[[[[[[1]]]]]]]]]]}", "\t", "%YAML"),
    *("!!python/none x: 1", "---", "learning_rate: 1e-4", "learning_rate: .inf", "use_ema: on", "use_ema: 2020-01-01"),
    *(
        "about: 3",
        "about: {x: y}",
        "condition: class",
        "train_batch_size: 0x10",
        "\x07",
        "é: 1",
        '"',
        "'",
        "recipe: mnist",
    ),
    *("output_dir: /", "ema_sigma_rel: 1"),
]


pytestmark = pytest.mark.filterwarnings("ignore:This noise path")  # of four steps, to be quick


TRIED, RIGHT = Counter(), Counter()  # cases by kind


@contextlib.contextmanager
def case(kind):
    """One case, which `benchmarks/robustness.py` counts as right when nothing is raised."""
    TRIED[kind] += 1
    yield
    RIGHT[kind] += 1


@pytest.fixture(scope="module", autouse=True)
def _counts():
    yield
    for kind, count in TRIED.items():
        print(f"\ntried {count}, right {RIGHT[kind]}: {kind}")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small pipeline, a file, and a folder of what are no images."""
    folder = tmp_path_factory.mktemp("fuzz")
    unet = AnnotatedUNet2DModel(
        sample_size=8, in_channels=1, base_channels=8, channel_multipliers=(1,), level_attention=(None,)
    )
    GenerationPipeline(unet, AncestralDDPMScheduler(num_train_timesteps=4)).save_pretrained(folder / "model")
    (folder / "file.txt").write_text("no image", encoding="utf-8")
    (folder / "folder").mkdir()
    (folder / "folder" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    return folder


@pytest.fixture
def call(place, monkeypatch, capsys):
    """Run a command line in `place`; check what every one must keep."""
    monkeypatch.chdir(place)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def run(words):
        before = files(place)
        began = time.monotonic()
        status = main(words)
        seconds = time.monotonic() - began
        written = capsys.readouterr()
        shown = f"{words}\n{written.err}"
        assert seconds < LONGEST_SECONDS, shown
        assert "Traceback" not in written.err, shown
        assert "Unexpected" not in written.err, shown
        assert "usage:" not in written.err, shown
        if status != 0:
            errors = [line for line in written.err.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1, shown
            assert written.err.rstrip().endswith(errors[0]), shown
            assert len(errors[0]) < 1200, shown
        strays = {path for path in files(place) - before if not path.startswith("out")}
        assert not strays, f"{shown}{strays}"
        shutil.rmtree(place / "out", ignore_errors=True)

    return run


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def draws(kind):
    return random.Random(f"{SEED} {kind}")


# A run that is tiny in every setting, and that ends before its first step: there is no such checkpoint.
TINY = {
    "train_split": "train[:8]",
    "model_options": json.dumps(TINY_MODEL),
    "train_batch_size": "2",
    "max_train_steps": "1",
    "validation_size": "2",
    "eval_batch_size": "1",
    "ddpm_num_inference_steps": "1",
    "logger": "none",
    "output_dir": "out",
    "resume_from_checkpoint": "checkpoint-7",
}


def test_wrong_settings_of_training(call):
    draw = draws("settings")
    names = list(settings_of(TrainingArguments))
    for _ in range(CASES):
        chosen = {draw.choice(names): draw.choice(TEXTS) for _ in range(draw.randint(1, 2))}
        chosen.pop("output_dir", None)
        if "debug" in chosen:
            continue
        with case("wrong settings"):
            call(["train", *_as_flags({**TINY, **chosen})])


def test_wrong_words_of_every_command(call):
    draw = draws("commands")
    for number in range(CASES):
        name = list(COMMANDS)[number % len(COMMANDS)]
        words = name.split()
        if name not in ("train", "recipes"):
            words += _wrong_flags(draw, settings_of(COMMANDS[name].load()[1]))
        else:
            words += [draw.choice(TEXTS)] if draw.random() < 0.5 else ["--nope", draw.choice(TEXTS)]
        if draw.random() < 0.2:
            words[draw.randrange(len(words))] = draw.choice(["smaple", "--", "-x", "--no", "trian", "classifier", "💥"])
        with case("wrong words of every command"):
            call(words)


def _wrong_flags(draw, settings):
    """Flags that a command has, with values that are mostly wrong; what it writes goes into `out`."""
    flags = ["--model", draw.choice(["model", "model", *TEXTS])] if "model" in settings else []
    for name in draw.sample(list(settings), min(len(settings), draw.randint(1, 3))):
        if settings[name].writes is None and name not in ("model", "output", "token", "debug"):
            flags += [f"--{name}", *draw.sample(TEXTS, draw.randint(0, 2))]
    small = {
        "num_images": "1",
        "num_inference_steps": "1",
        "batch_size": "1",
        "counts": "2",
        "max_train_seconds": "0.1",
    }
    places = {"output_dir": "out"}
    if "output" in settings:
        places["output"] = f"out/a{(settings['output'].writes or ' ').split(' ')[0]}"
    open_ = {
        name: value for name, value in {**small, **places}.items() if name in settings and f"--{name}" not in flags
    }
    return flags + _as_flags(open_)


def _as_flags(values):
    return [f"--{name}={value}" for name, value in values.items()]


def test_wrong_recipes(place, call):
    draw = draws("recipes")
    for number in range(CASES):
        text = "\n".join(draw.choices(LINES, k=draw.randint(1, 4))).encode(
            draw.choice(["utf-8", "utf-16", "latin-1"]), "replace"
        )
        if draw.random() < 0.2:
            text = draw.randbytes(draw.randint(0, 200))
        file = place / "out" / f"{number}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(text)
        with case("wrong recipes"):
            call(["train", str(file), *_as_flags(TINY)])


def test_wrong_values_in_python():
    draw = draws("python")
    names = list(settings_of(TrainingArguments))
    for _ in range(10 * CASES):
        chosen = {draw.choice(names): draw.choice(OBJECTS) for _ in range(draw.randint(1, 3))}
        with case("wrong calls of Python"), contextlib.suppress(ValueError):
            TrainingArguments(**chosen)


@pytest.mark.filterwarnings("ignore:This noise path")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_wrong_values_for_schedulers(name):
    draw, scheduler_class = draws(f"scheduler {name}"), getattr(diffusers_ext, name)
    fields = list(inspect.signature(scheduler_class).parameters)
    for _ in range(3 * CASES):
        chosen = {draw.choice(fields): draw.choice(OBJECTS) for _ in range(draw.randint(1, 2))}
        with case("wrong calls of Python"), contextlib.suppress(ValueError):
            scheduler_class(**{"num_train_timesteps": 10, **chosen})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_wrong_values_for_methods_of_schedulers(name):
    draw, scheduler = draws(f"methods {name}"), getattr(diffusers_ext, name)(num_train_timesteps=10)
    scheduler.set_timesteps(3)
    x = torch.zeros(1, 1, 2, 2)
    calls = {
        "step": {"model_output": x, "timestep": scheduler.timesteps[0], "sample": x, "generator": None},
        "add_noise": {"original_samples": x, "noise": x, "timesteps": scheduler.timesteps[:1]},
        "set_timesteps": {"num_inference_steps": 3, "timesteps": None},
    }
    for _ in range(2 * CASES):
        method = draw.choice(list(calls))
        right = calls[method]
        given = {key: right[key] for key in right if key in inspect.signature(getattr(scheduler, method)).parameters}
        with case("wrong calls of Python"), contextlib.suppress(ValueError):
            getattr(scheduler, method)(**{**given, draw.choice(list(given)): draw.choice(OBJECTS)})


SAMPLE = ["sample", "--model=model", "--num_images=1", "--num_inference_steps=1", "--output=out/a.png"]


@pytest.mark.parametrize("kind", ["cut", "changed", "emptied", "replaced", "removed"])
def test_damaged_pipelines(place, call, kind):
    draw = draws(f"damage {kind}")
    paths = sorted(path for path in (place / "model").rglob("*") if path.is_file())
    for path in paths:
        whole = path.read_bytes()
        try:
            _damage(draw, kind, path, whole)
            with case("damaged pipelines"):
                call(SAMPLE)
        finally:
            path.write_bytes(whole)


def _damage(draw, kind, path, whole):
    if kind == "removed":
        path.unlink()
        return
    changed = bytearray(whole)
    for _ in range(3):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    versions = {"cut": whole[: len(whole) // 2], "changed": bytes(changed), "emptied": b"", "replaced": b"[1, 2]"}
    path.write_bytes(versions[kind])


ENTRIES = ("unet/config.json", "scheduler/scheduler_config.json", "model_index.json")
# Names of classes choose code; what may be chosen so is test_security.py's matter.
VALUES = [*(None, True, 0, -1, 3, 2.5, 10**9, "", "x", [], [0], [1], [1, 2], ["a", "b"], [None, None], {}, {"a": 1})]


@pytest.mark.parametrize("name", ENTRIES)
def test_configurations_edited_by_hand(place, call, name):
    draw, path = draws(f"entries {name}"), place / "model" / name
    whole = path.read_bytes()
    entries = [key for key in json.loads(whole) if key not in ("_class_name", "_diffusers_version")]
    try:
        for _ in range(CASES // 3):
            path.write_text(json.dumps({**json.loads(whole), draw.choice(entries): draw.choice(VALUES)}))
            with case("configurations edited by hand"):
                call(SAMPLE)
    finally:
        path.write_bytes(whole)


NETWORKS = [name for name in diffusers_ext.__all__ if name.endswith("DModel")]


@pytest.mark.parametrize("name", NETWORKS)
def test_wrong_options_of_networks(name):
    draw, network = draws(f"network {name}"), getattr(diffusers_ext, name)
    fields = list(inspect.signature(network).parameters)
    for _ in range(CASES // 3):
        wrong = {draw.choice(fields): draw.choice(VALUES)}
        with case("wrong options of networks and schedules"), contextlib.suppress(ValueError), torch.device("meta"):
            network(**wrong)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of a division by an option
@pytest.mark.parametrize("schedule", ["cosine", "sigmoid_alpha_bar", "laplace", "linear_log_snr"])
def test_wrong_options_of_schedules(schedule):
    draw = draws(f"options of {schedule}")
    for _ in range(CASES // 3):
        options = {draw.choice(["s", "clip", "start", "end", "tau", "mean", "scale"]): draw.choice(VALUES)}
        with case("wrong options of networks and schedules"), contextlib.suppress(ValueError):
            make_betas(schedule, 10, options=options)


def test_a_right_call_passes(call):
    call(SAMPLE)
    call(["recipes"])
    call(["train", *_as_flags(TINY)])
