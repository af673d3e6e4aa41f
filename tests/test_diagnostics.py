"""The diagnostics: silent on a healthy run, one sentence on a run broken on purpose, and no weight changed by it."""

import json
import os

import pytest
import torch
from accelerate import Accelerator
from conftest import TINY_MODEL, records_of
from local_processes import run_processes
from safetensors.torch import load_file

from diffusers_ext.objectives.diffusion import DiffusionObjective
from diffusers_ext.schedulers.noise_path import NoisePath
from diffusers_ext.training import Trainer, TrainingArguments
from diffusers_ext.training.callbacks import ConditionCheckCallback, DiagnosticsCallback
from diffusers_ext.training.diagnostics import LEAST_IMAGES, Diagnostics, early_share
from diffusers_ext.training.ema import ExponentialMovingAverage

STEPS = 120


@pytest.fixture
def warnings_of(tiny_run, corners_data, caplog):
    """Trains on four classes of 8x8 images, after `broken` had its way with the trainer; gives the warnings."""

    def run(broken=lambda trainer: None, **overrides):
        caplog.clear()
        settings = {
            **vars(tiny_run()),
            "train_data_dir": corners_data,
            "train_split": "train",
            "validation_split": "test",
            "resolution": 8,
            "model_options": json.dumps(TINY_MODEL),
            "train_batch_size": 16,
            "max_train_steps": STEPS,
            "learning_rate": 2e-3,
            "lr_warmup_steps": 10,
            "validation_steps": STEPS // 2,
            "checkpointing_steps": STEPS,
            "logging_steps": 5,
            "overwrite_output_dir": True,
        }
        trainer = Trainer(TrainingArguments(**{**settings, "condition": "class", **overrides}))
        broken(trainer)
        trainer.train()
        told = [record["warning"] for record in records_of(trainer.output_dir) if "warning" in record]
        assert told == [record.getMessage() for record in caplog.records if record.name.endswith("recording")]
        return told

    return run


def rescale_samples(data, factor):
    read = data.__getitems__
    data.__getitems__ = lambda keys: {k: v * factor if k == "samples" else v for k, v in read(keys).items()}


def weights(folder, steps=STEPS):
    return [load_file(os.path.join(folder, f"checkpoint-{steps}", f"{name}.safetensors")) for name in ("model", "ema")]


class Unwatched:
    """In the place of `Diagnostics`: looks at nothing."""

    def watch(self, samples, timesteps, losses):
        pass


def remove_diagnostics(trainer):
    run = trainer.run
    run.diagnostics = Unwatched()
    checks = DiagnosticsCallback, ConditionCheckCallback
    run.callbacks.callbacks = [callback for callback in run.callbacks.callbacks if not isinstance(callback, checks)]


def test_a_healthy_run_is_silent_and_the_same_without_diagnostics(warnings_of, tmp_path):
    assert warnings_of() == []
    assert warnings_of(remove_diagnostics, output_dir=str(tmp_path / "alone")) == []
    for watched, alone in zip(weights(tmp_path / "run"), weights(tmp_path / "alone"), strict=True):
        assert watched.keys() == alone.keys()
        assert all(torch.equal(watched[name], alone[name]) for name in alone)


def test_a_path_that_ends_with_signal_left(warnings_of):
    (told,) = warnings_of(schedule="linear", ddpm_num_steps=100, max_train_steps=2)
    assert "ends at alphas_cumprod = 0.364 after 100 steps" in told


def test_an_ema_near_its_start(warnings_of):
    (told,) = warnings_of(ema_power=100.0, ema_max_decay=0.9999, max_train_steps=10)
    assert "100% of the EMA's weight is on the first 10%" in told
    assert "--ema_max_decay 0" in told


def test_a_condition_that_never_reaches_the_network(warnings_of):
    def deafen(trainer):
        trainer.network.class_embedding.register_forward_hook(lambda module, given, output: torch.zeros_like(output))

    (told,) = warnings_of(deafen)
    assert told.startswith("The model ignores its condition: told another one, its prediction changes by 0 of its size")


@pytest.mark.parametrize(("factor", "sentence"), [(2.0, "outside [-1, 1]"), (0.25, "a small part of [-1, 1]")])
def test_data_out_of_range(warnings_of, factor, sentence):
    def rescale(trainer):
        rescale_samples(trainer.train_dataset, factor)

    (told,) = warnings_of(rescale, max_train_steps=20)
    assert told.startswith("The training samples reach from -")
    assert sentence in told


class Ascending:
    """Unlearns the noise levels from t = 900 on, as a wrong sign would."""

    def __init__(self, objective):
        self._objective = objective

    def __getattr__(self, name):
        return getattr(self._objective, name)

    def __call__(self, net, batch, generator):
        losses = self._objective(net, batch, generator)
        return torch.where(net.timestep >= 900, 6 * losses.detach() - 5 * losses, losses)


def test_a_level_without_weight_does_not_diverge(warnings_of):
    five = {"ddpm_num_steps": 5, "rescale_betas_zero_snr": True, "prediction_type": "sample"}  # snr is 0 at the end
    assert not [warning for warning in warnings_of(**five) if "diverges" in warning]


def test_a_noise_level_whose_loss_diverges(warnings_of):
    def ascend(trainer):
        trainer.run.step.losses.objective = Ascending(trainer.objective)

    (told,) = warnings_of(ascend, train_batch_size=64, learning_rate=5e-3)
    assert "diverges" in told
    # Neighbours in time share the network and are dragged along, so one of them may be the worst.
    assert 700 <= float(told.split("t = ")[1].split()[0]) <= 900
    assert "times its lowest" in told


def train_on_bad_data_of_one(rank, arguments, watched):
    torch.set_num_threads(1)
    trainer = Trainer(arguments)
    if not watched:
        remove_diagnostics(trainer)
    if rank == 1:
        rescale_samples(trainer.train_dataset, 2)
    trainer.train()


def test_bad_data_of_the_second_process_are_told_of_once_and_change_no_weight(tiny_run, tmp_path):
    folders = {True: tmp_path / "watched", False: tmp_path / "alone"}
    for watched, folder in folders.items():
        arguments = tiny_run(train_batch_size=4, output_dir=str(folder))
        assert run_processes(2, train_on_bad_data_of_one, arguments, watched) == 0
    told = {}
    for watched, folder in folders.items():
        told[watched] = [record["warning"] for record in records_of(folder) if "warning" in record]
    assert told[False] == []
    assert len(told[True]) == 1
    assert told[True][0].startswith("The training samples reach from -2 to 2, outside [-1, 1]")
    for first, second in zip(*(weights(folder, steps=6) for folder in folders.values()), strict=True):
        assert all(torch.equal(first[name], second[name]) for name in second)


def diagnostics_on_shares(rank, shares, folder):
    """A process's diagnostics after two batches, each given by its range and its losses at the level of t = 500."""
    torch.set_num_threads(1)
    told = []
    diagnostics = Diagnostics(DiffusionObjective(NoisePath.from_schedule("cosine")), Accelerator(cpu=True), told.append)
    for (low, high), loss in shares[rank]:
        count = LEAST_IMAGES // 2  # too few of one process alone
        images = torch.linspace(low, high, count).reshape(count, 1, 1, 1)
        diagnostics.watch(images, torch.full((count,), 500), torch.full((count,), loss))
        diagnostics.check(1)
    (folder / f"{rank}.json").write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("shares", "sentence"),
    [
        ([[((-1, 0), 1.0)], [((0, 1), 1.0)]], None),  # each has a half of the range, both together all of it
        ([[((0, 1), 1.0)], [((0, 0.5), 1.0)]], "use a small part of [-1, 1]"),
        ([[((-1, 1), 1.0)] * 3, [((-1, 1), loss) for loss in (1.0, 9.0, 9.0)]], "5 at step 1, 5.0 times its lowest"),
        ([[((-1, 1), 1.0)] * 3, [((-1, 1), loss) for loss in (1.0, 4.0, 4.0)]], None),  # 2.5 times of both together
    ],
)
def test_what_two_processes_saw_is_judged_together(shares, sentence, tmp_path):
    assert run_processes(2, diagnostics_on_shares, shares, tmp_path) == 0
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert len(first) == (sentence is not None)
    assert sentence is None or sentence in first[0]


@pytest.mark.parametrize("steps", [1, 7, 400, 30_000])
@pytest.mark.parametrize(("power", "max_decay"), [(0.75, 0.9999), (0.75, 0.99), (100.0, 0.999), (1.0, 1.0)])
def test_the_early_share_is_the_weight_of_the_early_part(steps, power, max_decay):
    if steps > 400 and max_decay == 1.0:
        pytest.skip("the average of all weights needs no long run")
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    ema = ExponentialMovingAverage([("weight", weight)], power=power, max_decay=max_decay)
    early = int(0.1 * steps)
    for step in range(steps):
        weight.data.fill_(1.0 if step < early else 0.0)
        ema.update([("weight", weight)])
    assert early_share(ema, steps) == pytest.approx(ema.averages["weight"].item(), rel=0.02, abs=1e-6)
