"""A run is a function of its settings: killed anywhere, watched in any way, shared by processes, it learns the same."""

import json
import os
import random
import signal
import sys

import pytest
import torch
from conftest import TINY_MODEL, KillAt, Killed, records_of
from local_processes import run_processes
from safetensors.torch import load_file

from diffusers_ext import ImageClassifier
from diffusers_ext.objectives.timestep_sampling import HISTORY
from diffusers_ext.training import Trainer, TrainingArguments, train
from diffusers_ext.training.checkpoint import list_checkpoints, remove_partial
from diffusers_ext.training.ema import list_snapshots


class KillSwitch:
    """Counts what Python calls and returns from while a run goes on, and kills its process at one such event.

    Args:
        event: number of the fatal event, from 1; with 0 there is none.
    """

    def __init__(self, event):
        self.event, self.count = event, 0

    def __call__(self, *_):
        self.count += 1
        if self.count == self.event:
            os.kill(os.getpid(), signal.SIGKILL)


def train_alone(rank, arguments, *more):
    torch.set_num_threads(1)
    train(arguments)


def train_under(switch, arguments):
    torch.set_num_threads(1)
    trainer = Trainer(arguments)
    sys.setprofile(switch)
    try:
        trainer.train()
    finally:
        sys.setprofile(None)


def train_and_count(rank, arguments, folder):
    switch = KillSwitch(0)
    train_under(switch, arguments)
    (folder / f"count-{rank}.txt").write_text(str(switch.count))


def train_until_killed(rank, arguments, victim, event):
    train_under(KillSwitch(event if rank == victim else 0), arguments)


def states(folder):
    """Every tensor of a checkpoint, and its counters but the clock's."""
    found = {}
    for file in sorted(os.listdir(folder)):
        path = os.path.join(folder, file)
        if file.endswith(".safetensors"):
            found[file] = load_file(path)
        elif file == "trainer_state.json":
            with open(path) as stream:
                parts = json.load(stream)
            del parts["trainer"]["seconds"]
            found[file] = parts
    assert {"model.safetensors", "ema.safetensors", "optimizer.safetensors", "trainer_state.json"} <= found.keys()
    return found


def differences(first, second, where=""):
    """Where two nested states differ by a bit."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = {*first, *second}
        return [d for k in keys for d in differences(first.get(k), second.get(k), f"{where}/{k}")]
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        return [d for k, pair in enumerate(zip(first, second)) for d in differences(*pair, f"{where}/{k}")]
    equal = torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
    return [] if equal else [where]


def last_checkpoint(arguments):
    return os.path.join(arguments.output_dir, f"checkpoint-{arguments.max_train_steps}")


@pytest.fixture
def random_run(tiny_run):
    """As `tiny_run`, told classes, with everything that a run can draw: order, flips, noise, times, dropout."""

    def make(**overrides):
        options = json.dumps({**TINY_MODEL, "dropout": 0.1})
        drawn = {"random_flip": True, "timestep_sampling": "stratified", "model_options": options}
        return TrainingArguments(**{**vars(tiny_run()), "condition": "class", **drawn, **overrides})

    return make


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 3), (2, 2)])
def test_killed_anywhere_and_resumed_ends_bit_for_bit_as_unbroken(random_run, tmp_path, processes, accumulation):
    seed = int(os.environ.get("KILL_SEED", random.randrange(10**6)))
    print(f"to repeat: KILL_SEED={seed}")
    draws = random.Random(seed)
    settings = {
        "train_split": "train[:52]",  # at 4 images a batch, epochs end within the batches of a step
        "train_batch_size": 4 // processes,
        "gradient_accumulation_steps": accumulation,
        "max_train_steps": 9,
        "logging_steps": 1,
        "validation_steps": 5,
        # State beside the weights: losses of noise levels, few enough to be learned from soon, and averages kept.
        "timestep_sampling": "importance",
        "ddpm_num_steps": 3,
        "ema_snapshots": 2,
        "checkpointing_steps": 1,
    }
    whole = random_run(**settings)
    assert run_processes(processes, train_and_count, whole, tmp_path) == 0
    counts = [int((tmp_path / f"count-{rank}.txt").read_text()) for rank in range(processes)]
    broken = random_run(**settings, output_dir=str(tmp_path / "broken"), resume_from_checkpoint="latest")
    codes = []
    # Soon after the start, in a third of the run, and late: a resumed run is shorter and may end before.
    for most in (3000, *[counts[0] // 3] * 3, counts[0]):
        victim = draws.randrange(processes)
        event = draws.randint(1, most)
        codes.append(run_processes(processes, train_until_killed, broken, victim, event))
        print(f"process {victim}: event {event}, exit code {codes[-1]}")
    assert set(codes) <= {0, -signal.SIGKILL}
    assert codes.count(-signal.SIGKILL) >= 3
    assert run_processes(processes, train_alone, broken) == 0
    assert not differences(states(last_checkpoint(whole)), states(last_checkpoint(broken)))
    saved = (os.path.join(a.output_dir, "unet", "diffusion_pytorch_model.safetensors") for a in (whole, broken))
    assert not differences(*map(load_file, saved))
    assert [record["step"] for record in records_of(broken.output_dir) if "loss" in record] == list(range(1, 10))
    assert not list((tmp_path / "broken").glob(".*.partial"))
    kept = [{path.name: load_file(path) for path in list_snapshots(tmp_path / name)} for name in ("run", "broken")]
    assert len(kept[0]) == 5
    assert not differences(*kept)
    assert states(last_checkpoint(whole))["objective.safetensors"]["seen"].min() > HISTORY  # and so it was learned from


def test_killed_before_the_last_validation_and_resumed_ends_as_unbroken(tiny_run, tmp_path):
    settings = {"validation_steps": 4, "early_stopping_patience": 5, "learning_rate": 1e-3}
    train(whole := tiny_run(**settings))

    broken = tiny_run(**settings, output_dir=str(tmp_path / "broken"), resume_from_checkpoint="latest")
    with pytest.raises(Killed):
        train(broken, callbacks=[KillAt("on_save", 6)])
    train(broken)
    assert not differences(states(last_checkpoint(whole)), states(last_checkpoint(broken)))
    first, second = ([r["step"] for r in records_of(a.output_dir) if "validation_loss" in r] for a in (whole, broken))
    assert first == second == [4, 6]
    saved = (os.path.join(a.output_dir, "unet", "diffusion_pytorch_model.safetensors") for a in (whole, broken))
    assert not differences(*map(load_file, saved))


@pytest.mark.parametrize("killed_in", ["on_train_end", "on_export"])
def test_killed_after_the_last_measures_and_resumed_records_them_once(random_run, tmp_path, killed_in):
    ImageClassifier(in_channels=1, num_classes=10, block_channels=[4, 8]).save_pretrained(tmp_path / "classifier")
    measured = {
        "classifier": str(tmp_path / "classifier"),
        "evaluation_steps": 4,
        "evaluation_size": 20,
        "validation_steps": 4,
    }
    train(whole := random_run(**measured))

    broken = random_run(**measured, output_dir=str(tmp_path / "broken"), resume_from_checkpoint="latest")
    with pytest.raises(Killed):
        train(broken, callbacks=[KillAt(killed_in, 6)])
    assert [r["step"] for r in records_of(broken.output_dir) if "validation_loss" in r] == [
        4,
        6,
    ]  # the last ones had been recorded
    train(broken)
    told = [
        [{k: v for k, v in r.items() if "second" not in k} for r in records_of(a.output_dir) if "mode" not in r]
        for a in (whole, broken)
    ]
    assert told[0] == told[1]
    for name in ("loss", "validation_loss", "evaluation_samples"):
        assert len({r["step"] for r in told[1] if name in r}) == sum(name in r for r in told[1]) >= 2


def test_a_checkpoint_that_a_kill_left_half_replaced_is_put_back(tiny_run, tmp_path):
    train(arguments := tiny_run(max_train_steps=2))
    checkpoint = tmp_path / "run" / "checkpoint-2"
    checkpoint.rename(tmp_path / "run" / ".checkpoint-2.old.partial")
    remove_partial(tmp_path / "run")
    assert list_checkpoints(tmp_path / "run") == [checkpoint]
    assert not list((tmp_path / "run").glob(".*.partial"))
    assert states(last_checkpoint(arguments))["trainer_state.json"]["trainer"]["global_step"] == 2


def test_what_only_watches_the_training_changes_no_bit(random_run, tmp_path):
    ImageClassifier(in_channels=1, num_classes=10, block_channels=[4, 8]).save_pretrained(tmp_path / "classifier")
    train(plain := random_run(logging_steps=100, validation_steps=100, checkpointing_steps=100))
    watched = random_run(
        logger="tensorboard",
        logging_steps=1,
        validation_steps=1,
        validation_size=7,
        eval_batch_size=10,
        sampler="ddpm",
        ddpm_num_inference_steps=3,
        guidance_scale=2.0,
        classifier=str(tmp_path / "classifier"),
        evaluation_steps=2,
        evaluation_size=20,
        early_stopping_patience=100,
        save_images_epochs=1,
        save_model_epochs=1,
        checkpointing_steps=1,
        checkpoints_total_limit=2,
        dataloader_num_workers=1,
        output_dir=str(tmp_path / "watched"),
    )
    train(watched)
    first, second = (states(last_checkpoint(arguments)) for arguments in (plain, watched))
    for state in (first, second):
        del state["trainer_state.json"]
    assert second.pop("validation.safetensors")  # the best weights
    assert not differences(first, second)


def test_two_processes_follow_one_of_the_same_global_batch_for_40_steps(random_run, tmp_path):
    settings = {
        "max_train_steps": 40,
        "checkpointing_steps": 40,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "model_options": json.dumps(TINY_MODEL),  # dropout's masks are drawn by each process for itself
    }
    one = random_run(**settings, train_batch_size=4)
    assert run_processes(1, train_alone, one) == 0
    two = random_run(**settings, train_batch_size=2, output_dir=str(tmp_path / "two"))
    assert run_processes(2, train_alone, two) == 0
    first, second = ([r["loss"] for r in records_of(arguments.output_dir) if "loss" in r] for arguments in (one, two))
    assert len(first) == 40
    assert sum(first[-10:]) < 0.9 * sum(first[:10])  # the weights did move
    assert second == pytest.approx(first, abs=1e-4)
