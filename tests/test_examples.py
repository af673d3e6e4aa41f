"""Every file of examples/ runs to its end, and does what its first line says."""

import runpy
import sys

import pytest
import torch
from conftest import ROOT
from PIL import Image

from diffusers_ext.training import TrainerControl, TrainerState

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LONGEST = {"minimal.py": 80}  # lines; 60 for the others


@pytest.fixture
def run_example(monkeypatch, tmp_path):
    """Runs an example in this process, in a folder of its own, with the flag that shortens it."""

    def run(path):
        monkeypatch.setattr(sys, "argv", [str(path), "--fast"])
        monkeypatch.chdir(tmp_path)
        return runpy.run_path(str(path), run_name="__main__")

    return run


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_fits_on_a_page(path, run_example):
    run_example(path)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST.get(path.name, 60)


def test_the_minimal_example_leaves_a_picture_with_a_row_per_digit(run_example, tmp_path):
    names = run_example(ROOT / "examples" / "minimal.py")
    assert names["step"] == 3
    width, height = Image.open(tmp_path / "minimal.png").size
    assert height > 5 * width


def test_the_schedulers_own_errors_fall_with_second_order():
    from diffusers_ext.proofs import prove

    example = runpy.run_path(str(ROOT / "examples" / "own_scheduler.py"))
    errors = [m.error for m in prove(example["TwoStepScheduler"](), counts=(20, 80, 160)).measurements]
    assert errors[0] > 5 * errors[1] > 10 * errors[2]


def test_the_objective_of_ones_own_pairs_images_with_near_noise():
    objective = runpy.run_path(str(ROOT / "examples" / "own_objective.py"))["ImmiscibleFlow"]
    batch = {"samples": torch.rand(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))}
    squares = {
        candidates: objective(candidates)(lambda x, t: torch.zeros_like(x), batch, torch.Generator().manual_seed(1))
        for candidates in (1, 8)
    }
    assert squares[1].shape == (64,)
    assert squares[1].mean() == pytest.approx(1 + 1 / 3, rel=0.1)  # of a normal and a uniform variable
    assert squares[8].mean() < 0.8 * squares[1].mean()


def test_the_callback_of_ones_own_stops_on_a_plateau_and_remembers():
    callback = runpy.run_path(str(ROOT / "examples" / "callback.py"))["StopOnPlateau"]
    control, state = TrainerControl(), TrainerState()
    first = callback(patience=2)
    for loss in (4.0, 3.0, 2.0, 1.0, 2.0):
        first.on_log(None, state, control, logs={"loss": loss})
    assert not control.should_training_stop
    resumed = callback(patience=2)
    resumed.load_state_dict(first.state_dict())
    resumed.on_log(None, state, control, logs={"loss": 1.0})
    assert control.should_training_stop
    assert control.reason.startswith("Step 0: the loss no longer falls (1.5000, then 1.5000)")
