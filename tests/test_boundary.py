"""Whatever goes wrong in a program ends in one sentence and an exit status."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from conftest import ROOT
from local_processes import run_program, start_program
from PIL import Image

from diffusers_ext import __version__
from diffusers_ext.cli import main
from diffusers_ext.cli.boundary import explained, guarded
from diffusers_ext.cli.shared import best_device
from diffusers_ext.cli.train import run_script
from diffusers_ext.training import TrainingInterrupted, train


def raising(error):
    def body():
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (ValueError("a\n  b"), 1, "error: a b"),
        (KeyboardInterrupt(), 130, "Stopped by Ctrl-C."),
        (TrainingInterrupted("Saved.", signal.SIGTERM), 143, "Saved."),
        (OSError(errno.ENOSPC, "No space left on device", "a.png"), 1, "error: The disk is full ("),
        (RuntimeError("PytorchStreamWriter failed writing file"), 1, "error: The disk is full ("),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 1, "error: Out of memory (CUDA out of memory. Tried)."),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 1, "error: Out of memory ("),
        (MemoryError(), 1, "error: Out of memory (MemoryError)."),
        (FileNotFoundError(2, "No such file or directory", "x"), 1, "error: No such file or directory: 'x'."),
        (KeyError("x"), 1, "error: Unexpected KeyError in test_boundary.py, line "),
    ],
)
def test_an_error_is_one_sentence(capsys, error, status, sentence):
    assert guarded(raising(error)) == status
    shown = capsys.readouterr().err
    assert shown.startswith(sentence)
    assert shown.count("\n") == 1


def test_debug_shows_the_traceback_too(capsys):
    assert guarded(raising(ValueError("wrong")), debug=True) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith("error: wrong\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["edit", "fix"], "edit takes one of invert, interpolate, vary, inpaint, restore, got 'fix'."),
        (["smaple"], "Unknown command 'smaple'; did you mean sample?"),
        (["frobnicate"], "Unknown command 'frobnicate'; diffusers-ext --help lists them."),
        (["sample", "--foo", "1"], "Unknown flag --foo; --help-all lists all of them."),
        (["sample", "--modle", "x"], "Unknown flag --modle; did you mean --model?"),
        (["sample"], "Give a model, by folder, Hub name or recipe, or a --checkpoint"),
        (["sample", "--model", "x", "y"], "'y' belongs to no flag"),
        (["sample", "--model", "outputs/mnist"], "There is no pipeline 'outputs/mnist'; `diffusers-ext train` makes"),
        (["sample", "--model", "outputs/mnist/checkpoint-3"], "There is no pipeline 'outputs/mnist/checkpoint-3'"),
        (["sample", "--model", "x", "--output", "a.doc"], "output must end in .png or .jpg"),
        (["compare", "--model", "mixture", "--output_dir", __file__], "output_dir must be a folder, and"),
        (["compare", "--model", "mixture", "--lengths", "many"], "lengths must be a whole number, got 'many'."),
        (["train", "mnits"], "There is no recipe 'mnits'; did you mean mnist?"),
        (["train", "--dataset_name", ""], "dataset_name must not be empty"),
        (["train", "--learning_rate"], "learning_rate needs a value: NUMBER."),
        (["recipes", "mnits"], "There is no recipe 'mnits'; did you mean mnist?"),
        (["recipes", "mnist", "images32"], "'images32' belongs to no flag"),
    ],
)
def test_wrong_words_are_one_sentence(capsys, monkeypatch, tmp_path, words, sentence):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {sentence}")
    assert shown.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="device 'cuda' is not available here; the best there is: "):
        best_device("cuda")


def test_what_draws_asks_for_matplotlib_before_it_computes(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    assert main(["compare", "--model", "mixture", "--output_dir", str(tmp_path / "out")]) == 1
    assert "compare draws with matplotlib, which is not installed: pip install" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_version_and_recipes(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(("diffusers_ext", "python"))
    assert main(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert "mnist-classes" in shown
    assert "5 minutes on 2 CPU cores; data: embedded digits" in shown
    assert main(["recipes", "mnist-flow-map"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert (settings["objective"], settings["optimizer"]) == ("flow_map", "muon")  # its own, its base's
    assert __version__


TINY = """--train_split train[:16] --train_batch_size 8 --max_train_steps 1 --validation_size 2 --eval_batch_size 1
--ddpm_num_inference_steps 1 --logger none --mixed_precision no
--model_options {"base_channels":8,"norm_num_groups":4}"""


@pytest.mark.parametrize(
    ("program", "words"), [(main, ["train", "mnist-classes"]), (run_script, ["--recipe", "mnist-classes"])]
)
def test_a_recipe_with_a_condition_trains_by_name(tmp_path, monkeypatch, program, words):
    monkeypatch.chdir(tmp_path)
    assert program([*words, *TINY.split(), "--output_dir", "out", "--num_epochs", "1", "--save_figures", "False"]) == 0
    assert (tmp_path / "out" / "model_index.json").is_file()
    assert "condition: class" in (tmp_path / "out" / "recipe.yaml").read_text(encoding="utf-8")


def test_ctrl_c_in_a_command_is_one_sentence(tmp_path):
    log = tmp_path / "log"
    words = ["classifier", "train", "--max_train_seconds", "60", "--output_dir", str(tmp_path / "out")]
    process = start_program(log, main, words)
    while process.is_alive() and (not log.exists() or log.stat().st_size < 20):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)  # the work has begun
    process.join()
    shown = log.read_text()
    assert "Traceback" not in shown
    assert process.exitcode == 130, shown
    assert shown.rstrip().endswith("Stopped by Ctrl-C.")


PROGRAMS = {
    "a command": ["-m", "diffusers_ext.cli", "sample", "--model", "x"],
    "training": ["-m", "diffusers_ext.cli", "train", "mnist"],
    "a script": [str(ROOT / "train" / "train_unconditional.py"), "--recipe", "mnist"],
}


@pytest.mark.parametrize("module", ["yaml", "torch"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c_while_libraries_are_imported_is_one_sentence(environment, tmp_path, program, module):
    (tmp_path / f"{module}.py").write_text("raise KeyboardInterrupt", encoding="utf-8")
    environment = {**environment, "PYTHONPATH": os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])}
    words = [sys.executable, *PROGRAMS[program]]
    ran = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "Stopped by Ctrl-C.\n")


def test_a_ctrl_c_that_a_library_turned_into_another_error_is_one():
    error = ImportError("numpy's C extensions failed")
    error.__context__ = KeyboardInterrupt()
    assert explained(error) == ("Stopped by Ctrl-C.", 130)


def draw_on_a_full_disk(folder):
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    return main(["schedules", "--schedules", "linear", "--output", str(folder / "schedule.png")])


def test_a_full_disk_is_one_sentence(tmp_path):
    status, shown = run_program(tmp_path / "log", draw_on_a_full_disk, tmp_path)
    assert status == 1, shown
    assert shown.splitlines()[-1].startswith("error: The disk is full (")
    assert "Traceback" not in shown


def test_a_batch_that_fills_the_memory_is_refused_at_once(capsys, tmp_path):
    words = ["train", *TINY.split(), "--train_batch_size", "10000000", "--output_dir", str(tmp_path / "out")]
    assert main(words) == 1
    assert "error: train_batch_size 10,000,000 is too large: " in capsys.readouterr().err


@pytest.mark.parametrize(("split", "sentence"), [("train[999999:]", "train[999999:]"), ("train[", "train[")])
def test_a_split_without_images_is_named(capsys, tmp_path, split, sentence):
    words = ["train", *TINY.split(), "--train_split", split, "--output_dir", str(tmp_path / "out")]
    assert main(words) == 1
    shown = capsys.readouterr().err.rstrip().splitlines()[-1]
    assert shown.startswith("error: ")
    assert sentence in shown


@pytest.mark.parametrize(
    ("sizes", "trained_at"),
    [([(20, 20)] * 4, 20), ([(20, 20), (20, 22)], 64), ([(20, 30)] * 4, 64), ([(100, 100)] * 4, 64)],
)
def test_the_resolution_is_that_of_small_images_of_one_size(tiny_run, tmp_path, caplog, sizes, trained_at):
    (tmp_path / "images").mkdir()
    for number, size in enumerate(sizes):
        Image.new("L", size, number).save(tmp_path / "images" / f"{number}.png")
    settings = {"train_data_dir": str(tmp_path / "images"), "train_split": "train", "train_batch_size": 2}
    pipeline = train(tiny_run(**settings, max_train_steps=1, ddpm_num_inference_steps=1))
    assert pipeline.unet.config.sample_size == trained_at
    assert ("resolution is 20, the size of the images" in caplog.text) == (trained_at == 20)
