"""The command lines and Python snippets of README and docs run, in the order in which a page prints them.

A page runs in a folder of its own. What it takes for granted lies there: pipelines, archives and checkpoints of the
names that it mentions, as small as can be. `ADDED` shortens commands by flags, and `SHORT` shortens trainings in
Python; nothing else is changed. `LEFT_OUT` and `LEFT_OUT_SNIPPETS` name what is not run here,
and why. `make docs` runs the tutorials, and test_documentation.py the commands of the scripts' docstrings.
"""

import io
import shutil
import textwrap
import wave
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from reference_models import RefAnnotated
from test_documentation import DEFAULTS, FENCE, PAGES, PYTHON, SHELLS, commands, script_and_flags

from diffusers_ext import (
    AnnotatedUNet2DModel,
    FlowMatchScheduler,
    GenerationPipeline,
    SignalPipeline,
    SignalUNet1DModel,
    SubsequenceDDIMScheduler,
    TrainingArguments,
)
from diffusers_ext.cli import main, run_script

pytestmark = pytest.mark.filterwarnings("ignore")

TINY = '{"base_channels": 8, "channel_multipliers": [1, 2], "norm_num_groups": 4}'
SHORT = {
    "max_train_steps": 1,
    "train_batch_size": 2,
    "validation_size": 2,
    "eval_batch_size": 1,
    "ddpm_num_inference_steps": 1,
    "logger": "none",
    "mixed_precision": "no",
    "save_figures": False,
    "overwrite_output_dir": True,
}
DIGITS = {"train_split": "train[:16]", "model_options": TINY}
SMALL = {"model_options": TINY}
FOLDER = {"dataset_name": "photos"}
# Flags that are added to a command: those beside each of its words.
ADDED = {
    "train": {
        "train": SHORT,
        "train_unconditional.py": SHORT,
        "mnist": {**DIGITS},
        "mnist-classes": {**DIGITS, "guidance_scale": 1},
        "mnist-flow-map": DIGITS,
        "mnist-likelihood": {**DIGITS, "dataset_name": "embedded"},
        "cifar10": {**DIGITS, "dataset_name": "embedded", "guidance_scale": 1},
        "images32": SMALL,
        "images64": SMALL,
        "ylecun/mnist": {**DIGITS, "dataset_name": "embedded"},
        "emoji-text": FOLDER,
        "user/measured": FOLDER,
        "user/images": {**FOLDER, **SMALL},
        "user/large": {**FOLDER, **SMALL},
    },
    "sample": {"sample": {"num_inference_steps": 1}},
    "compare": {"compare": {"lengths": [1, 2], "num_images": 1, "class_labels": [0, 1]}},
    "evaluate": {"evaluate": {"num_images": 4, "num_inference_steps": 1}},
    "sweep": {"sweep": {"num_images": 20, "num_inference_steps": 1}},
    "classifier": {"classifier": {"block_channels": [8], "num_epochs": 1, "max_train_seconds": 1}},
    "likelihood": {"likelihood": {"dataset_name": "embedded", "num_images": 2, "steps": 2, "bound_timesteps": 2}},
    "prove": {"prove": {"counts": [5, 10]}},
    "edit": {"edit": {"num_images": 2}, "inpaint": {"resamplings": 1}},
}
LEFT_OUT = {  # by how a command begins
    "make": "starts programs, such as this test",
    "pip ": "needs the network",
    "git ": "needs the network",
    "python benchmarks": "measures for minutes; the page names the figures",
    "diffusers-ext figure": "draws for minutes; test_figure_commands.py runs each name",
    "diffusers-ext demo": "serves until it is stopped; test_demo.py opens it",
    "accelerate": "starts processes; test_launching.py and test_many_machines.py do so",
    "torchrun": "starts processes; test_launching.py and test_many_machines.py do so",
    "diffusers-ext push": "needs an account; test_push.py pushes to a server of its own",
    "diffusers-ext prove all": "takes hours; docs/proofs.md holds its table",
    "diffusers-ext experiments": "trains many times; test_experiments.py does so",
}
LEFT_OUT_SNIPPETS = {  # by what they hold
    'from_pretrained("user/digits"': "needs the Hub; test_hub.py loads from a server of its own",
    "process_figures": "draws for minutes; test_figures.py calls each function",
    "ExperimentManager": "trains many times; test_experiments.py does so",
}


def blocks_of(page):
    """(language, code) of the fenced blocks of a page in order."""
    return [(language, code) for _, language, code in FENCE.findall(page.read_text(encoding="utf-8"))]


def is_left_out(text):
    return any(text.startswith(start) for start in LEFT_OUT) or any(part in text for part in LEFT_OUT_SNIPPETS)


def shortened(command, words):
    """The words of a command with those of `ADDED` behind them; a printed number of sampling steps stays."""
    added = {}
    for word in (command, *words):
        added |= ADDED.get(command, {}).get(word, {})
    if command == "sample" and "--num_inference_steps" in words:
        added = {}
    for name, value in added.items():
        words = [*words, f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def run_command(words):
    found = script_and_flags(words)
    if found is not None:
        return run_script(shortened("train", found[1]), **DEFAULTS.get(found[0], {}))
    return main(shortened(words[1], words[1:]) if len(words) > 1 else [])


# --- what pages take for granted --------------------------------------------------------------------------------------


def write_photos(folder):
    """Photographs of two classes in two splits, with captions and numbers."""
    for split in ("train", "test"):
        lines = []
        for number in range(6):
            name = f"{'ab'[number % 2]}/{number}.png"
            (folder / split / name).parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((64, 64), 60).convert("RGB").save(folder / split / name)
            lines.append(f'{{"file_name": "{name}", "text": "a photo", "angle": {number}, "scale": 0.5}}\n')
        (folder / split / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


def write_recordings(file):
    random = np.random.default_rng(0)
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(12):
            sound = io.BytesIO()
            with wave.open(sound, "wb") as recording:
                recording.setparams((1, 2, 8000, 0, "NONE", ""))
                recording.writeframes(random.bytes(8192))
            archive.writestr(f"{'train' if number < 8 else 'test'}/{'37'[number % 2]}/{number}.wav", sound.getvalue())


def write_archive(folder, file):
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder))


def digits_pipeline(**options):
    network = AnnotatedUNet2DModel(
        sample_size=28,
        in_channels=1,
        base_channels=8,
        channel_multipliers=(1, 2),
        level_attention=(None, None),
        **options,
    )
    scheduler = SubsequenceDDIMScheduler(beta_schedule="cosine", prediction_type="v_prediction", clip_sample=False)
    names = {number: str(number) for number in range(options.get("num_class_embeds") or 0)}
    return GenerationPipeline(network, scheduler, id2label=names or None)


def signal_pipeline(sample_rate):
    network = SignalUNet1DModel(
        32, 1, base_channels=8, channel_multipliers=(1,), attention_resolutions=(), norm_num_groups=4
    )
    signal = {"sample_rate": sample_rate, "scale": [1.0], "shift": [0.0]}
    return SignalPipeline(network, FlowMatchScheduler(), signal=signal)


NETWORK = """import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config


class SavedNetwork(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, width: int = 4):
        super().__init__()
        self.only = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, sample, timestep):
        return self.only(sample)
"""
SCHEDULER = "import diffusers\n\n\nclass MyScheduler(diffusers.DDIMScheduler):\n    pass\n"


@pytest.fixture(scope="module")
def granted(tmp_path_factory):
    """A folder with all of it."""
    folder = tmp_path_factory.mktemp("granted")
    write_photos(folder / "photos")
    write_archive(folder / "photos", folder / "photos.zip")
    write_recordings(folder / "recordings.zip")
    for name in ("digits", "mnist-classes"):
        digits_pipeline(num_class_embeds=10).save_pretrained(folder / "outputs" / name)
    for name in ("mnist", "mnist-likelihood"):
        digits_pipeline().save_pretrained(folder / "outputs" / name)
    for name, rate in (("series", None), ("spoken-digits", 8000)):
        signal_pipeline(rate).save_pretrained(folder / "outputs" / name)
    np.save(folder / "measured.npy", np.zeros((1, 32), np.float32))
    np.save(folder / "gap.npy", np.arange(32) % 4 == 0)
    signals = np.random.default_rng(0).normal(size=(12, 2, 256))
    np.savez(folder / "weather.npz", signals=signals, labels=np.arange(12) % 2)
    shutil.copytree(ROOT / "examples", folder / "examples")
    (folder / "my_file.py").write_text(SCHEDULER, encoding="utf-8")
    (folder / "my_network.py").write_text(NETWORK, encoding="utf-8")
    torch.save({"model": RefAnnotated(8, (1, 2), 1, lineage="package").state_dict()}, folder / "model-10.pt")
    return folder


@pytest.fixture
def place(granted, tmp_path, monkeypatch):
    """A copy of it for a page, in which trainings are short and the Hub is not asked."""
    shutil.copytree(granted, tmp_path / "page")
    monkeypatch.chdir(tmp_path / "page")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    made = TrainingArguments.__init__
    monkeypatch.setattr(TrainingArguments, "__init__", lambda self, *a, **k: made(self, *a, **{**k, **SHORT}))


RUN = [page for page in PAGES if any(language in (*SHELLS, *PYTHON) for language, _ in blocks_of(page))]
RUN = [page for page in RUN if page.parent.name != "tutorials"]


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_a_page_runs_as_printed(page, place, capsys):
    names = {"__name__": "page"}
    for language, code in blocks_of(page):
        if language in SHELLS:
            for words in commands(code):
                if not is_left_out(" ".join(words)):
                    status = run_command(words)
                    assert status == 0, f"{' '.join(words)}\n{capsys.readouterr().err}"
        elif language in PYTHON and not is_left_out(code):
            exec(compile(textwrap.dedent(code), page.name, "exec"), names)
