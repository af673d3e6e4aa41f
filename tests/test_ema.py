"""Averages of weights: their profiles, their state, and averages of any length from snapshots."""

from __future__ import annotations

import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import StopAt, records_of
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from diffusers_ext.cli import main
from diffusers_ext.cli.ema import replace_weights
from diffusers_ext.hub.averages import Reconstruction, weights_of
from diffusers_ext.hub.model_card import make_card
from diffusers_ext.hub.push import files_to_push
from diffusers_ext.training import TrainerCallback, train
from diffusers_ext.training.checkpoint import CheckpointError
from diffusers_ext.training.ema import (
    ExponentialMovingAverage,
    PowerFunctionAverage,
    gamma_of,
    list_snapshots,
    posthoc_error,
    posthoc_weights,
    reconstruct,
)

POWER = {"ema_kind": "power", "ema_snapshots": 2}


def follow(average, steps: int) -> None:
    """Updates with weights whose k-th entry is 1 at step k only, so that the average shows what each step counts."""
    for step in range(steps):
        parameter = torch.nn.Parameter(torch.zeros(steps, dtype=torch.float64))
        parameter.data[step] = 1
        average.update([("w", parameter)])


def profile(average_class, steps: int, *settings) -> np.ndarray:
    average = average_class([("w", torch.nn.Parameter(torch.full((steps,), 9.0, dtype=torch.float64)))], *settings)
    follow(average, steps)
    return average.averages["w"].numpy()


@pytest.mark.parametrize("sigma_rel", [0.03, 0.1, 0.25])
def test_a_power_function_average_counts_step_tau_as_tau_to_the_gamma(sigma_rel):
    steps = 2000
    weights, gamma = profile(PowerFunctionAverage, steps, sigma_rel), gamma_of(sigma_rel)
    assert weights.sum() == pytest.approx(1)  # and nothing of the initial 9
    edges = np.arange(steps + 1) / steps
    np.testing.assert_allclose(weights, np.diff(edges ** (gamma + 1)), rtol=1e-9, atol=1e-15)
    t = (np.arange(steps) + 0.5) / steps
    mean = (weights * t).sum()
    assert math.sqrt((weights * (t - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=1e-3)


def test_exponents_of_the_lengths_that_the_paper_uses():
    """Karras et al. 2024, section 3.1: sigma_rel 0.05 and 0.10 are gamma 16.97 and 6.94."""
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.01)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.01)
    for wrong in (0.0, -0.1, 0.289, float("nan")):
        with pytest.raises(ValueError, match=r"sigma_rel must lie between 0 and 0\.289"):
            gamma_of(wrong)


def test_the_standard_average_warms_up_as_diffusers_does():
    from diffusers.training_utils import EMAModel

    ours = ExponentialMovingAverage([("w", torch.nn.Parameter(torch.zeros(1)))], 1.0, 0.75, 0.95)
    theirs = EMAModel([torch.nn.Parameter(torch.zeros(1))], decay=0.95, use_ema_warmup=True, power=0.75)
    for step in range(1, 200):
        parameter = torch.nn.Parameter(torch.tensor([math.sin(step)]))
        ours.update([("w", parameter)])
        theirs.step([parameter])
        assert ours.averages["w"].item() == pytest.approx(theirs.shadow_params[0].item(), abs=1e-6), step


def test_posthoc_weights_give_back_the_given_profiles_and_come_close_to_others():
    """Against profiles written out step by step, which the closed form of their inner products knows nothing of."""
    steps, given = 4000, [gamma_of(sigma) for sigma in (0.05, 0.1)]
    ends = np.arange(1, 33) * steps // 32
    times, gammas = np.repeat(ends, 2), np.tile(given, len(ends))
    grid = (np.arange(steps) + 0.5)[None]

    def written_out(t, gamma):
        t, gamma = np.reshape(t, (-1, 1)), np.reshape(gamma, (-1, 1))
        return np.where(grid < t, (gamma + 1) * grid**gamma / t ** (gamma + 1.0), 0)

    one = posthoc_weights(times, gammas, ends[9], given[1])
    assert np.argmax(one) == 19
    assert one[19] == pytest.approx(1, abs=1e-4)
    for sigma_rel in (0.04, 0.07, 0.13, 0.2):
        wanted = written_out(steps, gamma_of(sigma_rel))
        weights = posthoc_weights(times, gammas, steps, gamma_of(sigma_rel))
        got = weights @ written_out(times, gammas)
        assert weights.sum() == pytest.approx(1)
        error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
        assert error < 0.05, sigma_rel
        assert posthoc_error(weights, times, gammas, steps, gamma_of(sigma_rel)) == pytest.approx(error, rel=0.02)
    assert posthoc_error(one, times, gammas, ends[9], given[1]) < 1e-5


def distance(first, second) -> float:
    return math.sqrt(sum((first[name] - second[name]).double().square().sum().item() for name in first))


def test_an_average_from_snapshots_is_the_one_that_was_tracked(tiny_run, tmp_path, capsys):
    """On a real run: the error is measured against how far averaging moves the weights at all."""
    more = {"learning_rate": 3e-3, "lr_scheduler": "constant", "max_train_steps": 96, "checkpointing_steps": 96}
    tracked = {}

    class Tracks(TrainerCallback):
        def on_train_begin(self, args, state, control, model, **kwargs):
            tracked.update({sigma: PowerFunctionAverage(model.named_parameters(), sigma) for sigma in (0.07, 0.15)})

        def on_step_end(self, args, state, control, model, **kwargs):
            for average in tracked.values():
                average.update(model.named_parameters())

    train(arguments := tiny_run(**{**POWER, **more, "ema_snapshots": 6}), callbacks=[Tracks()])
    last = load_file(os.path.join(arguments.output_dir, "checkpoint-96", "model.safetensors"))
    for sigma, average in tracked.items():
        averages = {name: value.detach() for name, value in average.averages.items()}
        rebuilt, found = reconstruct(tmp_path / "run", sigma)
        assert found == Reconstruction(sigma, 96, found.error, 16, [0.05, 0.1])
        assert distance(averages, rebuilt) < 5e-3 * distance(averages, last), sigma
        assert distance(averages, rebuilt) < 2e-4 * distance(averages, {k: 0 * v for k, v in averages.items()})
    folder = str(tmp_path / "averaged")
    flags = ["--run", arguments.output_dir, "--sigma_rel", "0.15", "--output_dir", folder]
    assert main(["ema", *flags]) == 0
    weights, found = reconstruct(tmp_path / "run", 0.15)
    assert 0 < found.error < 0.05
    assert f"sigma_rel 0.15 at step 96, reconstructed from 16 snapshots with an error of {found.error:.2g}" in (
        capsys.readouterr().out
    )
    assert weights_of(folder) == str(found)
    assert f"| weights | {found} |" in make_card(folder, "somebody/average").text
    pipeline = DiffusionPipeline.from_pretrained(folder)
    state = pipeline.unet.state_dict()
    assert all(torch.equal(state[name], value) for name, value in weights.items())
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(num_inference_steps=2, output_type="pt").images.isfinite().all()
    assert main(["ema", *flags[:2], "--sigma_rel", "0.15", "--output_dir", arguments.output_dir]) == 1
    assert main(["export", "--model", folder, "--output_dir", f"{folder}-export"]) == 0
    assert weights_of(f"{folder}-export") == str(found)
    assert main(["ema", *flags, "--step", "7"]) == 1
    assert "step must be one that has a snapshot, 6 to 96, got 7" in capsys.readouterr().err


def test_a_run_into_the_folder_of_a_reconstruction_leaves_nothing_of_it(tiny_run, tmp_path):
    (tmp_path / "run").mkdir()
    Reconstruction(0.15, 96, 0.001, 16, [0.05, 0.1]).write(tmp_path / "run")
    train(arguments := tiny_run(max_train_steps=1))
    assert weights_of(arguments.output_dir) == "EMA"


def test_the_first_length_is_what_is_saved(tiny_run):
    train(arguments := tiny_run(**{**POWER, "ema_sigma_rel": [0.1, 0.05]}))
    saved = DiffusionPipeline.from_pretrained(arguments.output_dir).unet.state_dict()
    average = load_file(os.path.join(arguments.output_dir, "checkpoint-6", "ema-0.1.safetensors"))
    assert all(torch.equal(saved[name], value) for name, value in average.items())
    decays = [record["ema_decay"] for record in records_of(arguments.output_dir) if "ema_decay" in record]
    assert decays == pytest.approx([(1 - 1 / (step + 1)) ** (gamma_of(0.1) + 1) for step in (2, 4, 6)])


def test_power_functions_and_snapshots_resume_bit_for_bit(tiny_run, tmp_path):
    train(whole := tiny_run(**POWER))
    half = tiny_run(**POWER, output_dir=str(tmp_path / "half"))
    train(half, callbacks=[StopAt(4)])
    stale = tmp_path / "half" / "ema-snapshots" / "step-00000005.safetensors"
    stale.write_bytes(b"of steps that a kill undid")
    half.resume_from_checkpoint = "latest"
    train(half)
    assert not stale.exists()
    names = [path.relative_to(tmp_path / "run") for path in list_snapshots(tmp_path / "run")]
    assert len(names) == 3
    names += [f"checkpoint-6/ema-{sigma}.safetensors" for sigma in ("0.05", "0.1")]
    for name in names:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "half" / name).read_bytes(), name
    half.ema_sigma_rel = [0.05, 0.2]
    with pytest.raises(CheckpointError, match="power-function average can't begin in the middle"):
        train(half)
    assert whole.output_dir != half.output_dir


def test_snapshots_need_no_average_to_be_sampled_and_cost_the_weights_nothing(tiny_run, tmp_path):
    train(plain := tiny_run())
    train(watched := tiny_run(ema_snapshots=4, output_dir=str(tmp_path / "watched")))
    for name in ("model.safetensors", "ema.safetensors"):
        first, second = (load_file(os.path.join(a.output_dir, "checkpoint-6", name)) for a in (plain, watched))
        assert all(torch.equal(first[key], second[key]) for key in first)
    names = ["step-00000004.safetensors", "step-00000006.safetensors"]
    assert [path.name for path in list_snapshots(tmp_path / "watched")] == names
    assert not any(name.startswith("ema-snapshots") for name in files_to_push(tmp_path / "watched"))


def test_averages_reach_a_text_encoder_that_was_trained_along_and_no_other_network():
    pipeline = SimpleNamespace(unet=torch.nn.Linear(2, 1), text_encoder=torch.nn.Linear(3, 1))
    trained = torch.nn.ModuleDict({"unet": torch.nn.Linear(2, 1), "text_encoder": torch.nn.Linear(3, 1)})
    replace_weights(pipeline, dict(trained.named_parameters()))
    for name, network in trained.items():
        assert torch.equal(getattr(pipeline, name).weight, network.weight)
    with pytest.raises(ValueError, match=r"different networks: unet\.weight does not fit"):
        replace_weights(pipeline, {"unet.weight": torch.zeros(5, 5)})


def test_what_cannot_be_reconstructed_is_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no snapshots; train it with ema_snapshots"):
        reconstruct(tmp_path, 0.1)
    (tmp_path / "ema-snapshots").mkdir()
    (tmp_path / "ema-snapshots" / "step-00000002.safetensors").write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"step-00000002\.safetensors' can't be read"):
        reconstruct(tmp_path, 0.1)
