"""Every file of examples/ runs to its end, and does what its first line says."""

import runpy
import sys

import pytest
from conftest import ROOT
from PIL import Image

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
