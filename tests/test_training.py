"""A training run: what it writes, what it survives, and that it is a function of its settings."""

import dataclasses
import io
import json
import math
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from typing import ClassVar

import psutil
import pytest
import torch
from conftest import ROOT, KillAt, Killed, StopAt, records_of
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler
from local_processes import run_processes, start_program
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffusers_ext.cli.train import run_script
from diffusers_ext.pipelines.guidance import GuidedNetwork
from diffusers_ext.settings import option
from diffusers_ext.training import (
    Trainer,
    TrainerCallback,
    TrainingArguments,
    TrainingDiverged,
    TrainingFailed,
    TrainingInterrupted,
    train,
)
from diffusers_ext.training.checkpoint import BRANCH, CheckpointError, list_checkpoints, mark_branch, own_checkpoints
from diffusers_ext.training.ema import list_snapshots
from diffusers_ext.training.folder import MARKER

TINY_UNET2D = json.dumps(
    {
        "block_out_channels": [8, 8],
        "down_block_types": ["DownBlock2D"] * 2,
        "up_block_types": ["UpBlock2D"] * 2,
        "norm_num_groups": 4,
        "layers_per_block": 1,
    }
)
SCRIPT = ROOT / "train" / "train_unconditional.py"


def flags(arguments):
    path = os.path.join(os.path.dirname(arguments.output_dir), "recipe.yaml")
    with open(path, "w") as file:
        file.write(arguments.to_yaml())
    return ["--recipe", path]


def train_alone(rank, arguments):
    torch.set_num_threads(1)
    train(arguments)


def weights(folder):
    return {
        name: value
        for file in ("model.safetensors", "ema.safetensors")
        for name, value in {f"{file}:{k}": v for k, v in load_file(os.path.join(folder, file)).items()}.items()
    }


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def images_of(pipeline, steps=3):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    return pipeline(batch_size=2, num_inference_steps=steps, generator=generator, output_type="pt").images


@pytest.mark.parametrize("channels_last", [False, True])
def test_trains_saves_and_loads_bit_for_bit(tiny_run, channels_last):
    arguments = tiny_run(channels_last=channels_last)
    pipeline = train(arguments)
    loaded = DiffusionPipeline.from_pretrained(arguments.output_dir)
    assert type(loaded).__name__ == "GenerationPipeline"
    assert torch.equal(images_of(pipeline), images_of(loaded))


def test_leaves_what_the_reader_looks_for(tiny_run):
    arguments = tiny_run(logger="tensorboard", validation_steps=3, save_figures=True)
    train(arguments)
    root = ROOT.joinpath(arguments.output_dir)
    for name in (
        "figures/samples.png",
        "figures/schedule.png",
        "figures/reverse.gif",
        "figures/losses.png",
        "recipe.yaml",
    ):
        assert (root / name).stat().st_size > 0, name
    assert len(list((root / "samples").glob("*.png"))) >= 2
    told = EventAccumulator(str(next(root.glob("logs/*/events.*"))), {"images": 0}).Reload()
    assert {"loss", "validation_loss", "learning_rate"} <= set(told.Tags()["scalars"])
    assert [event.step for event in told.Images("samples")] == [3, 6, 6]
    assert all(event.encoded_image_string.startswith(b"\x89PNG") for event in told.Images("samples"))
    records = records_of(arguments.output_dir)
    assert [r["step"] for r in records if "loss" in r] == [2, 4, 6]
    assert [r["step"] for r in records if "validation_loss" in r] == [3, 6]
    assert all(math.isfinite(r.get("loss", 0.0)) for r in records)


def test_a_run_without_figures_draws_none(tiny_run, tmp_path):
    train(tiny_run(max_train_steps=1, save_figures=False))
    assert not (tmp_path / "run" / "figures").exists()


def test_the_recipe_it_writes_runs_again(tiny_run):
    arguments = tiny_run()
    train(arguments)
    assert TrainingArguments.from_recipe(os.path.join(arguments.output_dir, "recipe.yaml")) == arguments


def test_loss_falls(tiny_run):
    train(arguments := tiny_run(max_train_steps=100, learning_rate=5e-3, logging_steps=20, checkpointing_steps=100))
    losses = [r["loss"] for r in records_of(arguments.output_dir) if "loss" in r]
    assert losses[-1] < 0.8 * losses[0]


def test_swaps_to_schedulers_of_diffusers_on_the_same_path(tiny_run):
    pipeline = train(tiny_run(schedule="exponential", beta_end=0.05))
    table = pipeline.scheduler.alphas_cumprod
    for scheduler_class in (DDIMScheduler, DPMSolverMultistepScheduler):
        pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config)
        assert torch.allclose(pipeline.scheduler.alphas_cumprod, table, atol=1e-6)
        assert images_of(pipeline).isfinite().all()


def test_resuming_equals_running_through_with_early_stopping_state(tiny_run, tmp_path):
    whole = tiny_run(validation_steps=2, early_stopping_patience=5)
    train(whole)
    half = tiny_run(validation_steps=2, early_stopping_patience=5, output_dir=str(tmp_path / "half"))
    train(half, callbacks=[StopAt(3)])
    half.resume_from_checkpoint = "latest"
    train(half)
    for name in ("ema.safetensors", "model.safetensors", "validation.safetensors"):
        first = load_file(os.path.join(whole.output_dir, "checkpoint-6", name))
        assert same(first, load_file(tmp_path / "half" / "checkpoint-6" / name)), name


def test_logging_validation_and_previews_change_no_weight(tiny_run, tmp_path):
    train(plain := tiny_run())
    train(watched := tiny_run(logging_steps=1, validation_steps=1, eval_batch_size=3, output_dir=str(tmp_path / "w")))
    first, second = (weights(os.path.join(a.output_dir, "checkpoint-6")) for a in (plain, watched))
    assert same(first, second)


def test_another_seed_gives_other_weights(tiny_run, tmp_path):
    train(first := tiny_run())
    train(second := tiny_run(seed=1, output_dir=str(tmp_path / "other")))
    assert not same(*(weights(os.path.join(a.output_dir, "checkpoint-6")) for a in (first, second)))


def test_a_damaged_newest_checkpoint_falls_back_and_says_so(tiny_run, caplog):
    train(arguments := tiny_run())
    newest = list_checkpoints(ROOT.joinpath(arguments.output_dir))[-1]
    data = (newest / "model.safetensors").read_bytes()
    (newest / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    arguments.resume_from_checkpoint = "latest"
    train(arguments)
    assert "damaged: model.safetensors" in caplog.text
    assert "Falling back" in caplog.text
    # it went on from step 4, and the checkpoint of step 6 is whole again
    assert (newest / "model.safetensors").read_bytes() == data


def test_checkpoints_are_limited_in_number(tiny_run):
    train(arguments := tiny_run(checkpoints_total_limit=2))
    assert [p.name for p in list_checkpoints(ROOT.joinpath(arguments.output_dir))] == ["checkpoint-4", "checkpoint-6"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_first(tiny_run, tmp_path, number):
    arguments = tiny_run(max_train_steps=100_000, num_epochs=100_000, checkpointing_steps=100_000)
    process = start_program(tmp_path / "log", run_script, flags(arguments))
    metrics_file = os.path.join(arguments.output_dir, "metrics.jsonl")
    while not os.path.exists(metrics_file) and process.is_alive():
        time.sleep(0.05)
    os.kill(process.pid, number)
    process.join()
    shown = (tmp_path / "log").read_text()
    assert process.exitcode == 128 + number, shown
    assert "go on with --resume_from_checkpoint latest" in shown
    assert "Traceback" not in shown
    assert len(list_checkpoints(ROOT.joinpath(arguments.output_dir))) == 1


class Sends(TrainerCallback):
    """Sends a signal to this process after step 2."""

    def __init__(self, number):
        self.number = number

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            os.kill(os.getpid(), self.number)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there are no terminals to lose")
def test_a_lost_terminal_saves_first_and_under_nohup_costs_nothing(tiny_run, tmp_path):
    arguments = tiny_run(checkpointing_steps=100, logging_steps=1)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with pytest.raises(TrainingInterrupted, match=r"Stopped by signal 1 after step 3; .* go on with --resume_from"):
        train(arguments, callbacks=[Sends(signal.SIGHUP)])
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-3"]
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        train(tiny_run(output_dir=str(tmp_path / "nohup")), callbacks=[Sends(signal.SIGHUP)])
    finally:
        signal.signal(signal.SIGHUP, before)


def train_and_note_process(rank, arguments, folder):
    torch.set_num_threads(1)
    (folder / f"rank-{rank}.pid").write_text(str(os.getpid()))
    with pytest.raises(TrainingInterrupted, match="Stopped by signal 15"):
        train(arguments)


def ended(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def wait_for(condition, seconds=240):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_when_the_launcher_is_killed_its_processes_save_and_stop(tiny_run, tmp_path):
    endless = {"max_train_steps": 100_000, "num_epochs": 100_000, "checkpointing_steps": 100_000, "logging_steps": 1}
    fork = multiprocessing.get_context("fork")
    launcher = fork.Process(target=run_processes, args=(2, train_and_note_process, tiny_run(**endless), tmp_path))
    launcher.start()
    wait_for((tmp_path / "run" / "metrics.jsonl").exists)
    ranks = [psutil.Process(int((tmp_path / f"rank-{rank}.pid").read_text())) for rank in range(2)]
    try:
        launcher.kill()
        launcher.join()
        wait_for(lambda: all(map(ended, ranks)))
        assert len(list_checkpoints(tmp_path / "run")) == 1
    finally:
        for rank in ranks:
            if rank.is_running():
                rank.kill()


def train_at_once(number, arguments, started, folder):
    torch.set_num_threads(1)
    trainer = Trainer(arguments)
    started.wait(240)
    try:
        trainer.train()
        outcome = "trained"
    except FileExistsError as error:
        outcome = str(error)
    (folder / f"outcome-{number}.txt").write_text(outcome)


def test_of_two_runs_that_start_in_one_folder_at_the_same_moment_one_is_refused(tiny_run, tmp_path):
    fork = multiprocessing.get_context("fork")
    started = fork.Barrier(2)
    runs = [fork.Process(target=train_at_once, args=(k, tiny_run(), started, tmp_path)) for k in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    outcomes = sorted((tmp_path / f"outcome-{k}.txt").read_text() for k in range(2))
    assert outcomes[1] == "trained"
    assert "is writing into" in outcomes[0] or "holds an earlier run" in outcomes[0]


def test_a_loss_that_is_no_number_stops_with_the_step(tiny_run):
    with pytest.raises(TrainingDiverged, match=r"loss became nan at step \d+; likely cause: learning_rate"):
        train(tiny_run(learning_rate=1e30, max_train_steps=50, max_grad_norm=1e30))


def test_time_budget_ends_the_run(tiny_run):
    train(arguments := tiny_run(max_train_steps=None, num_epochs=10_000, max_train_seconds=1.0, logging_steps=1))
    seconds = [r["seconds"] for r in records_of(arguments.output_dir) if "loss" in r]
    assert seconds[-1] >= 1.0
    # The file rounds to milliseconds: 0.9996 s reads 1.0.
    assert all(s <= 1.0 for s in seconds[:-1])


def test_learning_rate_decays_with_the_time_budget(tiny_run):
    trainer = Trainer(tiny_run(max_train_steps=None, num_epochs=10_000, max_train_seconds=60.0))
    rates = []
    for trainer.state.seconds in (0.0, 30.0, 60.0):
        trainer.state.global_step = 10
        rates.append(trainer.learning_rate())
    assert rates == pytest.approx([1e-4, 0.5e-4, 0.0], abs=1e-7)


def test_learning_rate_counts_optimizer_steps(tiny_run):
    train(arguments := tiny_run(max_train_steps=20, gradient_accumulation_steps=4, logging_steps=1))
    rates = [r["learning_rate"] for r in records_of(arguments.output_dir) if "loss" in r]
    assert rates[0] == 0.0
    assert max(rates) == pytest.approx(1e-4)
    assert rates[-1] < 0.02e-4


def test_early_stopping_keeps_the_best_weights_and_says_so(tiny_run, tmp_path, capsys):
    arguments = tiny_run(
        max_train_steps=200,
        validation_steps=1,
        early_stopping_patience=2,
        learning_rate=0.5,
        use_ema=False,
        max_grad_norm=1e9,
    )
    trainer = Trainer(arguments)
    pipeline = trainer.train()
    assert "Stopped early: the validation loss has not been below" in capsys.readouterr().out
    losses = [r["validation_loss"] for r in records_of(arguments.output_dir) if "validation_loss" in r]
    assert trainer.state.global_step < 200
    assert min(losses) == losses[-3]
    saved = DiffusionPipeline.from_pretrained(arguments.output_dir).unet.state_dict()
    best = load_file(list_checkpoints(tmp_path / "run")[-1] / "validation.safetensors")
    assert same(best, {k: v for k, v in saved.items() if k in best})
    assert same(dict(pipeline.unet.state_dict()), dict(saved))


def test_resuming_without_early_stopping_saves_what_was_trained_since(tiny_run):
    train(arguments := tiny_run(validation_steps=2, early_stopping_patience=5))
    assert (ROOT / arguments.output_dir / "checkpoint-6" / "validation.safetensors").is_file()
    arguments.resume_from_checkpoint, arguments.early_stopping_patience = "latest", None
    arguments.max_train_steps, arguments.use_ema = 12, False
    train(arguments)
    saved = DiffusionPipeline.from_pretrained(arguments.output_dir).unet.state_dict()
    assert same(saved, load_file(os.path.join(arguments.output_dir, "checkpoint-12", "model.safetensors")))
    assert not (ROOT / arguments.output_dir / "checkpoint-12" / "validation.safetensors").exists()


def test_resuming_with_another_accumulation_steps_at_the_last_batch(tiny_run):
    train(arguments := tiny_run(max_train_steps=2, gradient_accumulation_steps=2))
    arguments.resume_from_checkpoint, arguments.gradient_accumulation_steps, arguments.max_train_steps = "latest", 3, 4
    trainer, synced = Trainer(arguments, callbacks=[watch := TrainerCallback()]), []
    watch.on_step_end = lambda *_, **__: synced.append(trainer.accelerator.sync_gradients)
    trainer.train()
    assert synced == [True, True]


def test_unet2d_loads_without_this_package(tiny_run, environment):
    arguments = tiny_run(model="unet2d", model_options=TINY_UNET2D, sampler="ddpm", schedule="exponential")
    train(arguments)
    # Read with the package imported and without it: the same classes, the same images.
    expected = images_of(DiffusionPipeline.from_pretrained(arguments.output_dir))
    code = (
        "import sys, torch, diffusers\ntorch.set_num_threads(1)\n"
        f"pipeline = diffusers.DiffusionPipeline.from_pretrained({arguments.output_dir!r})\n"
        "pipeline.set_progress_bar_config(disable=True)\n"
        "options = {'batch_size': 2, 'num_inference_steps': 3, 'output_type': 'np'}\n"
        "images = pipeline(generator=torch.Generator().manual_seed(3), **options).images\n"
        "assert 'diffusers_ext' not in sys.modules\n"
        f"torch.save(torch.from_numpy(images), {arguments.output_dir + '/images.pt'!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**environment, "PYTHONPATH": ""}, cwd="/")
    images = torch.load(arguments.output_dir + "/images.pt")
    assert torch.equal(images.permute(0, 3, 1, 2), expected)


@pytest.mark.parametrize(
    ("settings", "scheduler", "entries"),
    [
        ({"sampler": "dpmsolver++"}, "DPMSolverMultistepScheduler", {}),
        ({"sampler": "ddim-original", "subsequence": "quadratic"}, "SubsequenceDDIMScheduler", {"clip_sample": False}),
        ({"sampler": "ddim", "subsequence": "exp"}, "SubsequenceDDIMScheduler", {"subsequence": "exp"}),
        ({"sampler": "langevin"}, "GuidedLangevinScheduler", {"inner_steps": 4}),
        (
            {"sampler": "heun", "schedule": "rectified_flow", "prediction_type": "flow"},
            "FlowMatchScheduler",
            {"predictor": "ode_heun"},
        ),
    ],
)
def test_the_pipeline_has_the_sampler_asked_for(tiny_run, tmp_path, caplog, settings, scheduler, entries):
    arguments = tiny_run(max_train_steps=2, save_figures=True, **settings)
    pipeline = train(arguments)
    loaded = DiffusionPipeline.from_pretrained(arguments.output_dir)
    assert type(loaded.scheduler).__name__ == scheduler
    assert entries.items() <= loaded.scheduler.config.items()
    assert "config attributes" not in caplog.text
    assert torch.equal(images_of(pipeline), images_of(loaded))
    assert (tmp_path / "run" / "figures" / "reverse.gif").is_file()


def test_the_sampler_does_not_change_what_is_learned(tiny_run, tmp_path):
    """The noise path belongs to the schedule, whatever the sampler."""
    one = tiny_run(max_train_steps=2, sampler="ddim")
    other = tiny_run(max_train_steps=2, sampler="unipc", output_dir=str(tmp_path / "other"))
    weights = [dict(train(arguments).unet.named_parameters()) for arguments in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"sampler": "magic"}, "sampler must be one of ddim, ddim-original, ddpm"),
        ({"subsequence": "magic"}, "subsequence must be one of uniform, quadratic, exp, comp exp, got 'magic'"),
        (
            {"subsequence": "exp", "ddpm_num_inference_steps": 1000},
            "sampler 'ddim' can't preview in ddpm_num_inference_steps 1000 .* a length between 2 and 999, got 1000",
        ),
        (
            {"sampler": "heun", "prediction_type": "score"},
            "HeunDiscreteScheduler .* got 'score'",
        ),
        ({"sampler": "dpmsolver++", "prediction_type": "score"}, "DPMSolverMultistepScheduler .* got 'score'"),
        ({"sampler": "langevin", "schedule": "rectified_flow", "prediction_type": "flow"}, "On a rectified flow the"),
        (
            {"subsequence": "exp", "schedule": "rectified_flow", "prediction_type": "flow"},
            "subsequence must be uniform",
        ),
        (
            {"model": "unet2d", "prediction_type": "epsilon", "ddpm_num_steps": 300, "ddpm_num_inference_steps": 200},
            "would begin far below the noise; take a number that divides 300",
        ),
        ({"model": "unet2d", "sampler": "unipc"}, "diffusers' own pipelines sample by ddpm or ddim at uniform times"),
        ({"model": "unet2d", "subsequence": "exp"}, "diffusers' own pipelines sample by ddpm or ddim at uniform times"),
    ],
)
def test_a_sampler_that_cannot_run_is_refused_before_the_training(tiny_run, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Trainer(tiny_run(**{"model_options": TINY_UNET2D} if "model" in settings else {}, **settings))


@pytest.mark.parametrize("option", ["model_config_name_or_path", "model"])
def test_a_configuration_takes_the_size_of_the_run(tiny_run, tmp_path, option):
    (tmp_path / "config.json").write_text(
        json.dumps({"_class_name": "UNet2DModel", "in_channels": 1, "out_channels": 1, **json.loads(TINY_UNET2D)})
    )
    settings = {"model_options": None, option: str(tmp_path / "config.json"), "resolution": 24}
    assert Trainer(tiny_run(**settings)).network.config.sample_size == 24


def test_a_variance_that_would_not_be_learned_is_refused(tiny_run):
    options = json.dumps({**json.loads(TINY_UNET2D), "out_channels": 2})
    with pytest.raises(ValueError, match="output has 2 channels, but must have 1 for images of 1; a learned variance"):
        Trainer(tiny_run(model="unet2d", model_options=options))


def test_an_average_asked_for_at_the_end_begins_with_the_weights_there(tiny_run):
    trained = dict(train(tiny_run(use_ema=False, max_train_steps=2)).unet.named_parameters())
    resumed = train(tiny_run(use_ema=True, max_train_steps=2, resume_from_checkpoint="latest"))
    assert all(torch.equal(p, trained[name]) for name, p in resumed.unet.named_parameters())


def test_early_stopping_asked_for_at_a_resume_waits_from_there(tiny_run):
    worse = {"validation_steps": 1, "checkpointing_steps": 1, "learning_rate": 1e-30, "max_train_steps": 3}
    train(tiny_run(**worse, use_ema=False))
    settings = {**worse, "max_train_steps": 8, "resume_from_checkpoint": "latest", "early_stopping_patience": 2}
    trainer = Trainer(tiny_run(**settings, use_ema=False))
    trainer.train()
    assert trainer.state.global_step == 6  # one that is better than none, and two that are not


def test_the_toy_denoiser_trains_and_samples(tiny_run):
    arguments = tiny_run(
        model="playground-toy", model_options=None, use_ema=False, prediction_type="sample", sampler="ddpm"
    )
    pipeline = train(arguments)
    loaded = DiffusionPipeline.from_pretrained(arguments.output_dir)
    assert type(loaded.scheduler).__name__ == "MixScheduler"
    assert torch.equal(images_of(pipeline, 5), images_of(loaded, 5))


@pytest.mark.slow
def test_two_processes_learn_the_importance_of_noise_levels_as_one_does(tiny_run, tmp_path):
    settings = {"max_train_steps": 10, "logging_steps": 1, "checkpointing_steps": 10, "timestep_sampling": "importance"}
    settings["ddpm_num_steps"] = 4  # few levels, so that their losses are many
    one = tiny_run(train_batch_size=16, **settings)
    train(one)
    two = tiny_run(train_batch_size=8, **settings, output_dir=str(tmp_path / "two"))
    assert run_processes(2, train_alone, two) == 0
    first, second = ([r["loss"] for r in records_of(a.output_dir) if "loss" in r] for a in (one, two))
    assert len(second) == 10
    assert second == pytest.approx(first, abs=1e-4)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"train_data_dir": "/nowhere"}, "/nowhere"),
        ({"model": "no-such-model"}, "model 'no-such-model' is neither a preset"),
        ({"schedule": "cosinus"}, "schedule must be one of linear"),
        ({"schedule_options": "{"}, "schedule_options must be a JSON object"),
        ({"prediction_type": "noise"}, "prediction_type must be one of epsilon"),
        ({"resume_from_checkpoint": "/nowhere/checkpoint-3"}, "There is no checkpoint"),
        ({"model": "unet2d", "model_options": None}, "needs a resolution divisible by 32, got 28"),
        ({"model": "unet2d", "model_options": '{"foo": 1}'}, "UNet2DModel takes no foo"),
        ({"model_options": '{"base_channels": "wide"}'}, "base_channels must be an integer"),
        ({"logging_dir": "/precious"}, "logging_dir names a folder inside output_dir"),
        ({"rescale_betas_zero_snr": True, "prediction_type": "epsilon"}, "zero terminal SNR"),
    ],
)
def test_bad_settings_are_one_sentence(tiny_run, overrides, sentence):
    with pytest.raises((ValueError, OSError)) as caught:
        train(tiny_run(**overrides))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overwriting_begins_only_when_the_new_run_can(tiny_run, tmp_path):
    train(arguments := tiny_run(max_train_steps=2))
    (tmp_path / "run" / "samples" / "mine.txt").write_text("not the run's")
    arguments.overwrite_output_dir, arguments.train_data_dir = True, "/nowhere"
    with pytest.raises(FileNotFoundError):
        train(arguments)
    assert [p.name for p in list_checkpoints(tmp_path / "run")] == ["checkpoint-2"]
    arguments.train_data_dir = None
    train(arguments)
    assert (tmp_path / "run" / "samples" / "mine.txt").exists()


def test_resuming_drops_the_checkpoints_after_the_one_it_resumes_from(tiny_run, tmp_path):
    train(arguments := tiny_run())
    (tmp_path / "run" / "checkpoint-6" / "model.safetensors").write_bytes(b"")
    arguments.resume_from_checkpoint, arguments.checkpoints_total_limit, arguments.max_train_steps = "latest", 1, 5
    train(arguments)
    assert [p.name for p in list_checkpoints(tmp_path / "run")] == ["checkpoint-5"]


def test_a_mistaken_resume_loses_nothing_before_its_first_checkpoint(tiny_run, tmp_path, capsys):
    train(arguments := tiny_run(ema_snapshots=2))
    arguments.resume_from_checkpoint, arguments.max_train_steps = "checkpoint-2", 5

    def kept():
        return [path.name for path in (*list_checkpoints(tmp_path / "run"), *list_snapshots(tmp_path / "run"))]

    before = kept(), records_of(arguments.output_dir)
    begin(arguments)
    assert (kept(), records_of(arguments.output_dir)) == before
    assert "Deleted" not in capsys.readouterr().out
    train(arguments)
    assert kept() == [
        *(f"checkpoint-{step}" for step in (2, 4, 5)),
        *(f"step-{step:08d}.safetensors" for step in (2, 4, 5)),
    ]
    assert [r["step"] for r in records_of(arguments.output_dir) if "loss" in r] == [2, 4, 5]
    assert capsys.readouterr().out.count("Deleted checkpoint-4, checkpoint-6: later than step 2") == 1


def begin(arguments):
    """Resume a run and kill it before its first step."""
    with pytest.raises(Killed):
        train(arguments, callbacks=[KillAt("on_step_begin")])


def test_latest_stays_with_the_branch_that_was_chosen(tiny_run, tmp_path, capsys):
    train(arguments := tiny_run())
    run = tmp_path / "run"
    for chosen, latest in (
        ("checkpoint-2", 2),
        ("checkpoint-4", 4),
        ("checkpoint-6", 6),
        (str(run / "checkpoint-2"), 2),
    ):
        for wanted in (chosen, "latest", "latest"):
            arguments.resume_from_checkpoint, arguments.max_train_steps = wanted, 8
            begin(arguments)
            assert f"checkpoint-{latest}' at step {latest}." in capsys.readouterr().out
    assert [path.name for path in list_checkpoints(run)] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    begin(arguments)
    assert "checkpoint-4, checkpoint-6 will be deleted once the first new" in capsys.readouterr().out
    arguments.max_train_steps = 3
    train(arguments)
    assert [path.name for path in own_checkpoints(run)] == ["checkpoint-2", "checkpoint-3"]
    assert not (run / BRANCH).exists()


def test_latest_stays_with_a_checkpoint_from_elsewhere(tiny_run, tmp_path, capsys):
    train(tiny_run(output_dir=str(tmp_path / "elsewhere"), max_train_steps=4))
    arguments = tiny_run(resume_from_checkpoint=str(tmp_path / "elsewhere" / "checkpoint-4"))
    begin(arguments)
    arguments.resume_from_checkpoint = "latest"
    begin(arguments)
    assert capsys.readouterr().out.count("elsewhere/checkpoint-4' at step 4") == 2
    train(arguments)
    assert [path.name for path in own_checkpoints(tmp_path / "run")] == ["checkpoint-6"]


def test_a_branch_whose_checkpoint_is_gone_or_that_cannot_be_read_is_none(tmp_path):
    for step in (2, 4, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
    mark_branch(tmp_path, tmp_path / "checkpoint-4", 4)
    assert [path.name for path in own_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    (tmp_path / "checkpoint-4").rmdir()
    assert own_checkpoints(tmp_path) == list_checkpoints(tmp_path)
    for text in ("", "[]", '{"path": "checkpoint-2"}', '{"path": 3, "step": "2"}'):
        (tmp_path / BRANCH).write_text(text)
        assert own_checkpoints(tmp_path) == list_checkpoints(tmp_path)


@pytest.mark.parametrize("resumed", [None, "latest"])
def test_a_first_start_forgets_a_run_that_was_killed_before_its_first_checkpoint(tiny_run, tmp_path, resumed):
    snapshots = tmp_path / "run" / "ema-snapshots"
    snapshots.mkdir(parents=True)
    for name in ("step-00000001.safetensors", "step-00000003.safetensors", ".step-00000004.safetensors.partial"):
        (snapshots / name).touch()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 0, "warning": "old"}\n{"step": 2, "loss": 9.0}\n')
    (tmp_path / "run" / MARKER).write_text("{}")  # which every run leaves
    train(arguments := tiny_run(max_train_steps=2, ema_snapshots=2, resume_from_checkpoint=resumed))
    assert [path.name for path in snapshots.iterdir()] == ["step-00000002.safetensors"]
    assert [r["step"] for r in records_of(arguments.output_dir) if "loss" in r] == [2]
    assert all(r.get("warning") != "old" for r in records_of(arguments.output_dir))


def test_a_short_run_on_a_folder_without_validation_leaves_its_pictures(tiny_run, tmp_path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.new("L", (28, 28), 60 * i).save(tmp_path / "images" / f"{i}.png")
    arguments = tiny_run(
        train_data_dir=str(tmp_path / "images"),
        train_split="train",
        max_train_steps=1,
        train_batch_size=2,
        resolution=28,
        save_figures=True,
    )
    train(arguments)
    assert (tmp_path / "run" / "figures" / "losses.png").exists()
    assert [r["step"] for r in records_of(arguments.output_dir) if "loss" in r] == [1]


@pytest.mark.slow
def test_guided_network_trains_on_two_processes_though_its_class_blocks_are_unused(tiny_run):
    arguments = tiny_run(
        model="usurf-guided-unet", model_options='{"base_channels": 8}', resolution=32, max_train_steps=2
    )
    assert run_processes(2, train_alone, arguments) == 0


def test_an_earlier_run_is_not_overwritten_unasked(tiny_run):
    train(arguments := tiny_run(max_train_steps=2))
    with pytest.raises(FileExistsError, match="holds an earlier run"):
        train(arguments)
    arguments.overwrite_output_dir = True
    arguments.checkpointing_steps = 1
    train(arguments)
    assert [p.name for p in list_checkpoints(ROOT.joinpath(arguments.output_dir))] == ["checkpoint-1", "checkpoint-2"]


def test_the_script_reports_an_error_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--lerning_rate", "1"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: Unknown flag --lerning_rate; did you mean --learning_rate?\n"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left")])
def test_a_checkpoint_that_cannot_be_written_does_not_stop_the_run(tiny_run, monkeypatch, caplog, error):
    from diffusers_ext.training import checkpoint

    def full(*_):
        raise error

    monkeypatch.setattr(checkpoint, "seal", full)
    train(arguments := tiny_run())
    assert f"could not be saved ({error}); training goes on" in caplog.text
    assert not list(ROOT.joinpath(arguments.output_dir).glob(".*.partial"))
    assert list_checkpoints(ROOT.joinpath(arguments.output_dir)) == []
    assert DiffusionPipeline.from_pretrained(arguments.output_dir)


class Blocks(TrainerCallback):
    """Puts a file where the run will need a folder, once it has begun, and counts the pipelines that were saved."""

    def __init__(self, *paths):
        self.paths, self.exports = paths, 0

    def on_train_begin(self, args, state, control, **kwargs):
        for path in self.paths:
            path.touch()

    def on_export(self, args, state, control, **kwargs):
        self.exports += 1


def test_a_pipeline_that_cannot_be_saved_stops_only_a_finished_run(tiny_run, tmp_path, caplog):
    arguments = tiny_run(num_epochs=3, max_train_steps=None, train_split="train[:16]", save_model_epochs=1)
    obstacle = tmp_path / "run" / ".export.partial"
    with pytest.raises(OSError, match=r"could not be saved \(.*\); make room, then go on from '.*checkpoint-6' with"):
        train(arguments, callbacks=[blocks := Blocks(obstacle)])
    assert blocks.exports == 0
    assert "The pipeline of step 2 could not be saved (" in caplog.text
    obstacle.unlink()
    arguments.resume_from_checkpoint = "latest"
    train(arguments)
    assert DiffusionPipeline.from_pretrained(arguments.output_dir)


def test_steps_of_several_epochs_miss_no_epoch(tiny_run):
    class Exports(TrainerCallback):
        steps: ClassVar[list[int]] = []

        def on_export(self, args, state, control, **kwargs):
            self.steps.append(state.global_step)

    few = {"train_split": "train[:8]", "gradient_accumulation_steps": 2, "max_train_steps": None, "num_epochs": 8}
    train(tiny_run(**few, save_model_epochs=2), callbacks=[Exports()])  # epochs 0 and 1 end with the first step
    assert Exports.steps == [1, 2, 3, 4]


@pytest.mark.parametrize("logger", ["none", "tensorboard"])
def test_metrics_and_previews_that_cannot_be_written_do_not_stop_the_run(tiny_run, tmp_path, caplog, logger):
    class Obstructs(TrainerCallback):
        def on_train_begin(self, *_, **__):
            (tmp_path / "run" / "metrics.jsonl").mkdir()
            (tmp_path / "run" / "samples").touch()

    train(arguments := tiny_run(logger=logger), callbacks=[Obstructs()])
    assert "step-000006.png' could not be saved" in caplog.text
    assert caplog.text.count("Metrics can't be written") == 1
    assert DiffusionPipeline.from_pretrained(arguments.output_dir)


def test_a_preview_of_what_is_no_number_is_grey_and_does_not_stop_the_run(tiny_run, monkeypatch, caplog):
    def broken(self, noise, *_, **__):
        return torch.full_like(noise, torch.nan)

    monkeypatch.setattr(GuidedNetwork, "__call__", broken)
    train(arguments := tiny_run())
    assert "2 of 2 sampled images hold values that are no numbers" in caplog.text
    with Image.open(os.path.join(arguments.output_dir, "samples", "step-000006.png")) as grid:
        assert set(grid.convert("L").tobytes()) == {128, 255}  # grey, the middle of the range, on white
    assert DiffusionPipeline.from_pretrained(arguments.output_dir)


def test_a_resumed_run_names_settings_that_have_changed(tiny_run, caplog):
    train(arguments := tiny_run(max_train_steps=2, timestep_sampling="stratified"))
    arguments.resume_from_checkpoint, arguments.max_train_steps = "latest", 3
    train(arguments)
    assert "other settings" not in caplog.text
    arguments.timestep_sampling, arguments.logit_normal_mean, arguments.max_train_steps = "logit_normal", 0.5, 4
    arguments.learning_rate, arguments.random_flip, arguments.seed = 1e-3, True, 7
    train(arguments)
    for change in (
        "timestep_sampling was stratified and is logit_normal",
        "logit_normal_mean was 0 and is 0.5",
        "learning_rate was 0.0001 and is 0.001",
        "random_flip was False and is True",
        "seed was 0 and is 7",
    ):
        assert change in caplog.text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prediction_type": "epsilon"}, "with prediction_type v_prediction, and this run has epsilon"),
        ({"schedule": "linear"}, "with schedule cosine, and this run has linear"),
        ({"ddpm_num_steps": 500}, "with ddpm_num_steps 1000, and this run has 500"),
        ({"resolution": 16}, r"with the training data '.* 28x28.*, and this run has '.* 16x16"),
        ({"train_split": "train[64:192]"}, "with the training data '.*train.:128.*, and this run has '.*train.64:192"),
        ({"optimizer": "muon"}, "with optimizer adamw, and this run has muon"),
        ({"model_options": '{"base_channels": 16, "norm_num_groups": 4}'}, "is of another model"),
        ({"condition": "class"}, "with condition None, and this run has class"),
    ],
)
def test_a_run_of_another_meaning_is_not_resumed(tiny_run, changes, sentence):
    train(tiny_run(max_train_steps=2))
    with pytest.raises(CheckpointError, match=sentence) as caught:
        train(tiny_run(max_train_steps=4, resume_from_checkpoint="latest", **changes))
    assert "\n" not in str(caught.value)


@dataclasses.dataclass
class WithMoreSettings(TrainingArguments):
    """Settings that somebody adds."""

    flavour: str = option("sweet", "Changes what the weights mean.", on_resume="refused")
    spice: int = option(0, "Changes how training goes on.", on_resume="named")
    colour: str = option("red", "Changes nothing.")


def test_a_new_setting_is_refused_or_named_by_its_declaration_alone(tiny_run, caplog):
    arguments = WithMoreSettings(**vars(tiny_run(max_train_steps=1)))
    train(arguments)
    arguments.resume_from_checkpoint, arguments.max_train_steps = "latest", 2
    arguments.spice, arguments.colour = 3, "blue"
    train(arguments)
    assert "The run goes on with other settings: spice was 0 and is 3." in caplog.text
    arguments.flavour = "sour"
    with pytest.raises(CheckpointError, match="with flavour sweet, and this run has sour"):
        train(arguments)


def test_data_that_moved_are_the_same_data(tiny_run, tmp_path):
    settings = {"max_train_steps": 1, "train_batch_size": 2, "resolution": 28, "train_split": "train"}
    for i in range(4):
        (tmp_path / "here").mkdir(exist_ok=True)
        Image.new("L", (28, 28), 60 * i).save(tmp_path / "here" / f"{i}.png")
    train(tiny_run(train_data_dir=str(tmp_path / "here"), **settings))
    (tmp_path / "here").rename(tmp_path / "there")
    settings["max_train_steps"] = 2
    train(arguments := tiny_run(train_data_dir=str(tmp_path / "there"), resume_from_checkpoint="latest", **settings))
    assert list_checkpoints(tmp_path / "run")[-1].name == "checkpoint-2"
    assert arguments.output_dir == str(tmp_path / "run")


class AtTheEnd(TrainerCallback):
    """Does something after the last validation."""

    def __init__(self, what):
        self.what = what

    def on_train_end(self, args, state, control, **kwargs):
        self.what()


def test_a_signal_during_the_last_validation_saves_first(tiny_run):
    arguments = tiny_run(checkpointing_steps=100)
    interrupts = AtTheEnd(lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(TrainingInterrupted, match="Stopped by signal 15 after step 6; everything is in"):
        train(arguments, callbacks=[interrupts])
    assert [p.name for p in list_checkpoints(ROOT.joinpath(arguments.output_dir))] == ["checkpoint-6"]


def test_ctrl_c_after_the_last_step_is_one_sentence(tiny_run):
    class Interrupts(TrainerCallback):
        def on_export(self, *_, **__):
            raise KeyboardInterrupt

    with pytest.raises(TrainingInterrupted, match=r"at once by Ctrl-C; the newest checkpoint is '.*-6'") as stop:
        train(arguments := tiny_run(), callbacks=[Interrupts()])
    assert stop.value.signal_number == signal.SIGINT
    assert DiffusionPipeline.from_pretrained(arguments.output_dir)


@pytest.mark.parametrize("error", [MemoryError("no memory"), torch.OutOfMemoryError("out of memory")])
def test_a_preview_without_memory_loses_no_step(tiny_run, tmp_path, monkeypatch, error):
    def fail(self, *_, **__):
        raise error

    arguments = tiny_run(validation_steps=3, checkpointing_steps=100)
    with monkeypatch.context() as patched:
        patched.setattr(GuidedNetwork, "__call__", fail)
        with pytest.raises(TrainingFailed) as stop:
            train(arguments)
    assert str(stop.value) == (
        f"The preview failed ({error}); everything is in '{tmp_path / 'run' / 'checkpoint-3'}', go on with "
        "--resume_from_checkpoint latest."
    )
    arguments.resume_from_checkpoint = "latest"
    train(arguments)
    whole = tiny_run(validation_steps=3, checkpointing_steps=100, output_dir=str(tmp_path / "whole"))
    train(whole)
    assert same(*(weights(os.path.join(a.output_dir, "checkpoint-6")) for a in (arguments, whole)))


class KillsWorkers(torch.utils.data.Dataset):
    """Digits that kill the first worker process that reads one of them."""

    def __init__(self, marker):
        self.marker = marker

    def __len__(self):
        return 64

    def __getitem__(self, index):
        if torch.utils.data.get_worker_info() is not None and self.marker.exists():
            self.marker.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"samples": torch.full((1, 28, 28), index / 64)}


def test_a_killed_worker_costs_no_batch(tiny_run, tmp_path, caplog):
    runs = {}
    for name, killed in (("killed", True), ("whole", False)):
        marker = tmp_path / "kill"
        if killed:
            marker.touch()
        arguments = tiny_run(dataloader_num_workers=1, output_dir=str(tmp_path / name), use_ema=True)
        train(arguments, train_dataset=KillsWorkers(marker))
        runs[name] = weights(tmp_path / name / "checkpoint-6")
        assert not marker.exists()
    assert caplog.text.count("Training goes on without such processes") == 1
    assert same(runs["killed"], runs["whole"])


def test_two_runs_in_one_folder(tiny_run, tmp_path):
    class Second(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                with pytest.raises(FileExistsError, match=r"Another run, process .*, is writing into") as self.refused:
                    train(tiny_run(resume_from_checkpoint="latest"))

    train(tiny_run(), callbacks=[second := Second()])
    assert "\n" not in str(second.refused.value)
    train(tiny_run(resume_from_checkpoint="latest"))  # the folder is free again
    owner = {"host": socket.gethostname(), "pid": 2**22 + 5, "started": 0.0}  # a process that is no more
    (tmp_path / "run" / MARKER).write_text(json.dumps(owner))
    train(tiny_run(resume_from_checkpoint="latest"))
    owner = {"host": "another machine", "pid": 1, "started": 0.0}
    (tmp_path / "run" / MARKER).write_text(json.dumps(owner))
    with pytest.raises(FileExistsError, match="process 1 on another machine"):
        train(tiny_run(resume_from_checkpoint="latest"))
    os.utime(tmp_path / "run" / MARKER, (0, 0))  # no sign of life for long
    train(tiny_run(resume_from_checkpoint="latest"))


@pytest.mark.parametrize("name", ["pipeline.py", "recipe.yaml", "metrics.jsonl", "unet/config.json"])
def test_files_that_no_run_wrote_are_not_replaced(tiny_run, tmp_path, name):
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=f"holds {name}, which no run wrote"):
            Trainer(tiny_run(overwrite_output_dir=overwrite))
    assert file.read_text() == "mine"
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [name.split("/")[0]]


def test_a_file_of_a_run_that_somebody_edited_is_not_replaced(tiny_run, tmp_path):
    train(tiny_run(max_train_steps=1))
    Trainer(tiny_run(resume_from_checkpoint="latest"))  # as the run left it
    for name in ("pipeline.py", "recipe.yaml"):
        file = tmp_path / "run" / name
        before = file.read_text()
        file.write_text(before + "# mine\n")
        for again in ({"resume_from_checkpoint": "latest"}, {"overwrite_output_dir": True}):
            with pytest.raises(FileExistsError, match=f"{name}' is not as a run wrote it, .* rename it"):
                Trainer(tiny_run(**again))
        assert file.read_text() == before + "# mine\n"
        file.write_text(before)


def test_an_output_folder_is_checked_before_anything_else(tiny_run, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="output_dir must not be empty"):
        Trainer(tiny_run(output_dir=""))
    (tmp_path / "file").touch()
    for name in ("file", "file/below"):
        with pytest.raises(FileExistsError, match="is a file"):
            Trainer(tiny_run(output_dir=str(tmp_path / name)))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "figures").touch()
    with pytest.raises(FileExistsError, match="figures' is a file, and the run needs a folder of that name"):
        Trainer(tiny_run())
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # tests may run as root, who may write anywhere
    with pytest.raises(PermissionError, match="is read-only"):
        Trainer(tiny_run(output_dir=str(tmp_path / "other")))


def test_a_malformed_repository_is_refused_before_the_training(tiny_run):
    with pytest.raises(ValueError, match="hub_model_id must be 'name' or 'user/name'"):
        Trainer(tiny_run(push_to_hub=True, hub_model_id="user/my model/x"))


def test_when_all_checkpoints_are_damaged_nothing_is_deleted(tiny_run, tmp_path):
    train(arguments := tiny_run())
    for path in list_checkpoints(tmp_path / "run"):
        (path / "model.safetensors").write_bytes(b"")
    before = sorted(p.name for p in (tmp_path / "run").rglob("*"))
    arguments.resume_from_checkpoint = "latest"
    with pytest.raises(CheckpointError, match=r"No checkpoint in .* can be used"):
        train(arguments)
    assert sorted(p.name for p in (tmp_path / "run").rglob("*")) == before


def test_more_steps_than_epochs_have_is_said(tiny_run, caplog):
    train(tiny_run(num_epochs=1, max_train_steps=100))
    assert "num_epochs 1 ends the run after 16 steps, before max_train_steps 100" in caplog.text


@pytest.mark.parametrize(("own", "launcher", "expected"), [(1, "4", 4), (4, "1", 4), (2, "2", 2)])
def test_accumulation_by_the_launcher_is_taken_over(tiny_run, monkeypatch, own, launcher, expected):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", launcher)
    arguments = tiny_run(gradient_accumulation_steps=own, max_train_steps=2, train_batch_size=2, logging_steps=1)
    trainer = Trainer(arguments)
    assert trainer.accelerator.gradient_accumulation_steps == expected
    trainer.train()
    assert [r["epoch"] for r in records_of(arguments.output_dir) if "loss" in r] == [
        pytest.approx(s * expected / 64, abs=1e-4) for s in (1, 2)
    ]
    weights_before = trainer.network.state_dict()
    assert all(value.isfinite().all() for value in weights_before.values())


def test_two_answers_on_accumulation_are_refused(tiny_run, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps is 2, but .* says 4"):
        Trainer(tiny_run(gradient_accumulation_steps=2))


def test_names_are_clean_under_a_compiler_and_a_run_resumes_without_it(tiny_run, tmp_path, monkeypatch):
    train(plain := tiny_run(output_dir=str(tmp_path / "plain")))
    arguments = tiny_run(max_train_steps=6)
    with monkeypatch.context() as compiled:
        compiled.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
        train(arguments, callbacks=[StopAt(4)])
    first, second = (weights(os.path.join(a.output_dir, "checkpoint-4")) for a in (plain, arguments))
    assert first.keys() == second.keys()
    arguments.resume_from_checkpoint = "latest"
    train(arguments)
    assert DiffusionPipeline.from_pretrained(arguments.output_dir)
    assert same(*(weights(os.path.join(a.output_dir, "checkpoint-6")) for a in (plain, arguments)))


class Resets(TrainerCallback):
    """Undoes what was learned, so that the validation is of the same network."""

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.before = {name: value.clone() for name, value in model.state_dict().items()}

    def on_log(self, args, state, control, model, **kwargs):
        model.load_state_dict(self.before)


def test_a_validation_loss_does_not_depend_on_the_batches_of_training(tiny_run, tmp_path):
    losses = []
    for batch in (4, 8):
        folder = str(tmp_path / str(batch))
        arguments = tiny_run(train_batch_size=batch, validation_size=40, max_train_steps=1, output_dir=folder)
        train(arguments, callbacks=[Resets()])
        losses.append(next(r["validation_loss"] for r in records_of(arguments.output_dir) if "validation_loss" in r))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_what_takes_long_beside_the_training_shows_a_bar(tiny_run, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("diffusers_ext.training.bars.SHOWN_AFTER", 0.0)
    train(tiny_run(max_train_steps=1, save_figures=True))
    assert "Validating" in terminal.getvalue()
    assert "Sampling" in terminal.getvalue()
