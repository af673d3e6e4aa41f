"""What the benchmarks stand on: peers called as they are meant to be, and verdicts that follow from the figures."""

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import time
import types

import colour
import corners
import flow_maps
import objective_trials
import peers
import pytest
import sampling_speed
import sampling_steps
import time_to_quality
import torch
import train_throughput
from conftest import ROOT, TINY_MODEL
from diffusers import AutoencoderTiny
from sampling_steps import Run
from time_to_quality import Result
from train_throughput import Turn

from diffusers_ext.cli import evaluate as evaluate_command
from diffusers_ext.models import build_model
from diffusers_ext.objectives.diffusion import DiffusionObjective
from diffusers_ext.objectives.network import ConditionedNetwork
from diffusers_ext.pipelines import GenerationPipeline
from diffusers_ext.schedulers import FlowMatchScheduler, RectifiedFlowPath


def load_or_skip(name):
    try:
        return peers.load(name)
    except ModuleNotFoundError:
        pytest.skip(f"{name} is not installed")


def test_the_stand_in_leaves_no_torchvision_behind():
    before = "torchvision" in sys.modules
    load_or_skip("denoising_diffusion_pytorch")
    assert ("torchvision" in sys.modules) == before


class Recorder(torch.nn.Module):
    """A network that notes what it is called with, and answers as `ForeignNetwork` wants."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.calls = []

    def forward(self, x, t):
        self.calls.append((x.detach().clone(), t.clone()))
        return x * self.weight


def test_smalldiffusion_gives_a_network_of_times_the_noisy_images_of_those_times():
    """Its noise levels are the DDPM's, so that images of zeros have the standard deviation sqrt(1 - a_bar_t)."""
    load_or_skip("smalldiffusion")
    inner = Recorder()
    loop = peers.smalldiffusion_loop(peers.ForeignNetwork.around(inner), torch.zeros(64, 1, 28, 28), 64, "no")
    next(loop)
    x, times = inner.calls[0]
    alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    expected = (1 - alphas_cumprod[times]).sqrt()
    assert times.unique().numel() > 10
    assert torch.allclose(x.flatten(1).std(dim=1), expected, rtol=0.15)


def test_diffusers_example_moves_the_weights_of_the_network_it_was_given(tmp_path):
    inner = Recorder()
    loop = peers.diffusers_example(
        peers.ForeignNetwork.around(inner), torch.zeros(8, 1, 28, 28), 4, "no", str(tmp_path)
    )
    for _ in range(3):
        next(loop)
    assert len(inner.calls) == 3
    assert inner.weight.item() != 0


def test_labels_come_through_a_trainer_that_knows_none():
    seen = []

    class Diffusion(torch.nn.Module):
        def forward(self, images, classes):
            seen.append((images, classes))

    images, labels = torch.rand(5, 1, 28, 28), torch.tensor([3, 1, 4, 1, 9])
    packed = time_to_quality.PackedImages(images, labels)
    time_to_quality.LabelledDiffusion(Diffusion())(torch.stack([packed[i] for i in range(5)]))
    assert torch.equal(seen[0][0], images)
    assert torch.equal(seen[0][1], labels)


def test_ratios_are_of_turns_beside_one_another():
    ours, theirs = (train_throughput.Worker.__new__(train_throughput.Worker) for _ in range(2))
    ours.turns = [Turn(64, seconds, 1.0, 1.0, 0, "") for seconds in (1.0, 4.0, 1.0)]
    theirs.turns = [Turn(64, 2 * seconds, 1.0, 1.0, 0, "") for seconds in (1.0, 4.0, 1.0)]
    assert train_throughput.ratio(ours, theirs, "seconds") == 2
    assert train_throughput.ratio(ours, theirs, "processor_seconds") == 1


def test_kept_memory_costs_no_page_faults():
    command = [sys.executable, str(ROOT / "benchmarks" / "freed_memory.py"), "--threads", "1", "--turns", "3"]
    done = subprocess.run([*command, "--turn_seconds", "0.1"], capture_output=True, text=True, check=True)
    faults = {line.split()[0]: int(line.split()[3].replace(",", "")) for line in done.stdout.splitlines()[2:4]}
    assert faults["kept"] < faults["returned"] / 10
    assert "kept / returned: " in done.stdout


def test_moments_of_peers_end_at_their_bound():
    found = time_to_quality.moments(60, 600, 8)
    assert found[0] == 60
    assert found[-1] == pytest.approx(600)
    assert all(b / a == pytest.approx(10 ** (1 / 7)) for a, b in itertools.pairwise(found))
    assert time_to_quality.moments(60, 30, 8) == [30]


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ([Result(100, True)], [Result(1000, False)], "at least 10, meets 10"),
        ([Result(100, True)], [Result(500, True)], "5, misses 10"),
        ([Result(180, True)], [Result(90, False)], "at least 0.5, too short to tell of 10"),
        ([Result(240, False)], [Result(500, True)], "not known"),
    ],
)
def test_time_to_quality_concludes_no_more_than_was_seen(ours, theirs, said, capsys):
    time_to_quality.report({"ours": ours, "peer": theirs})
    assert said in capsys.readouterr().out.splitlines()[-1]


def test_sampling_steps_measures_samples_of_a_pipeline(corners_data, corners_classifier, monkeypatch):
    monkeypatch.setattr(evaluate_command, "load_pipeline", lambda *_: corners.perfect_pipeline())
    settings = evaluate_command.SamplingArguments(
        model="perfect", classifier=corners_classifier, train_data_dir=corners_data, num_images=40, device="cpu"
    )
    bench = sampling_steps.prepare(settings)
    flags = argparse.Namespace(seeds=[0, 1], guidance_scale=1.0)
    run = sampling_steps.measure(bench, bench.pipeline.scheduler.config, "ddim-exp", 20, flags)
    assert (run.steps, run.calls) == (20, 20)
    assert 0 < run.frechet < 20
    assert run.seconds > 0


def test_the_fewest_network_calls_win(capsys):
    reference = Run("ddpm", 1000, 1000, 1.0, 100.0)
    sampling_steps.conclude([Run("heun", 9, 18, 1.0, 1.5), Run("ddim", 15, 15, 1.0, 2.5)], reference)
    told = capsys.readouterr().out
    assert "ddim at 15 steps, 15 network calls (meets 20)" in told
    assert "40.0 times less time (misses 50)" in told


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(("status", "fails"), [(0, False), (124, False), (1, True), (137, True)])
def test_make_bench_runs_every_part_and_fails_when_one_of_them_did(tmp_path, status, fails):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$1" in *model_speed.py) exit {status};; esac\n')
    python.chmod(0o755)
    for file in ("stamp", "config.json"):
        (tmp_path / file).touch()
    places = {"BIN": "", "STAMP": "stamp", "BENCH_CLASSIFIER": "", "BENCH_STATUS": "there/status", "BENCH_RUNS": "runs"}
    settings = [f"{name}={tmp_path / place}" for name, place in places.items()]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # not of `make test`
    run = subprocess.run(["make", "bench", *settings], cwd=ROOT, capture_output=True, text=True, env=alone)
    names = ["scheduler_step", "model_speed", "model_table", "freed_memory"]
    names += ["train_throughput", "time_to_quality", "sampling_steps", "sampling_speed"]
    told = [f"{name}.py {status if name == 'model_speed' else 0}" for name in names]
    assert run.stdout.splitlines()[-len(told) - 1 :] == [
        "Exit status of each part (124: stopped at the end of its time):",
        *told,
    ]
    assert (run.returncode != 0) == fails


def test_sampling_speed_counts_the_network_calls_of_each_sampler(capsys):
    network = build_model("small", **TINY_MODEL, sample_size=8, num_class_embeds=10)
    pipeline = GenerationPipeline(network, FlowMatchScheduler())
    pipeline.set_progress_bar_config(disable=True)
    flags = types.SimpleNamespace(sampler_images=3, batch_size=2, num_inference_steps=4)
    sampling_speed.every_sampler(pipeline, flags)
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[3:]]
    calls = {name.strip(): int(number) for _, name, number, *_ in rows}
    assert calls["ode-euler"] == calls["dpmsolver++"] == 4
    assert calls["ode-heun"] > 4


def test_sampling_speed_times_latents_in_the_shape_that_the_network_takes(capsys):
    network = build_model("small", **{**TINY_MODEL, "in_channels": 4}, sample_size=8)
    vae = AutoencoderTiny(encoder_block_out_channels=[8, 8], decoder_block_out_channels=[8, 8],
                          num_encoder_blocks=[1, 1], num_decoder_blocks=[1, 1])  # fmt: skip
    loaded, fastest = (GenerationPipeline(network, FlowMatchScheduler(), vae=vae) for _ in range(2))
    for pipeline in (loaded, fastest):
        pipeline.set_progress_bar_config(disable=True)
    flags = argparse.Namespace(num_images=2, batch_size=2, num_inference_steps=1, guidance_scale=1.0, turns=1)
    sampling_speed.beside_a_plain_loop(loaded, fastest, flags)
    assert f"{sampling_speed.PLAIN} " in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--num_images", "--batch_size", "--num_inference_steps", "--turns"])
def test_sampling_speed_wants_numbers_of_at_least_one(flag, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sampling_speed.py", "--model", "none", flag, "0"])
    with pytest.raises(SystemExit):
        sampling_speed.main()
    assert f"argument {flag}: must be at least 1, got 0" in capsys.readouterr().err


def test_flow_maps_says_which_targets_are_met(capsys):
    of_map = {"steps": 100, "seconds": 20.0, "batch": 32, "measures": [(0.96, 0.3, 0.1), (0.97, 0.2, 0.1)]}
    of_flow = {"steps": 200, "seconds": 20.0, "batch": 32, "measures": [(0.5, 2.0, 0.1), (0.99, 0.1, 0.1)]}
    rows = {"flow map": [of_map, of_map], "flow matching": [of_flow, of_flow]}
    flow_maps.report(rows, {"flow map": [1, 2], "flow matching": [1, 25]}, 2.5)
    shown = capsys.readouterr().out
    assert "| flow map | 1 | 96.0 % | 0.300 | 3.0 | 0.300, 0.300 |" in shown
    assert "flow matching: 100 ms a training step of 32 images; steps: 200, 200" in shown
    assert "3.00 times the Frechet distance of 25: misses the target" in shown
    assert "96.0 %: meets the target" in shown
    assert "2.50 s: meets the target" in shown


def _point(who, seconds, frechet):
    return colour.Point(who, seconds, steps=10, images=160, frechet=frechet)


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ([(300, 9.0), (720, 5.0)], "9.000 in 300 s: 10.0 times less, meets 5"),
        ([(300, 12.0), (720, 5.0)], "5.000 in 720 s: 4.2 times less, misses 5"),
        ([(300, 12.0), (720, 11.0)], "ours does not reach that in any of its budgets: misses 5"),
    ],
)
def test_colour_counts_the_smallest_budget_that_is_as_good_as_the_best_of_the_peer(ours, said):
    theirs = [_point("peer", 1000, 20.0), _point("peer", 3000, 10.0), _point("peer", 4000, 10.5)]
    conclusion = colour.conclusion("peer", theirs, [_point("ours", *each) for each in ours])
    assert conclusion.startswith("peer reaches 10.000 in 3,000 s; ")
    assert conclusion.endswith(said)


def test_colour_does_not_conclude_from_a_peer_that_was_stopped_within_the_hour():
    conclusion = colour.conclusion("peer", [_point("peer", 900, 20.0)], [_point("ours", 100, 9.0)])
    assert conclusion.endswith("9.0 times less, too short to tell of 5")


def _contest(folder, *flags):
    words = ["--classifier", "one", "--dataset_name", "data", "--output_dir", str(folder), *flags]
    contest = colour.Contest(colour.parser().parse_args(words))
    grade = types.SimpleNamespace(frechet=2.0, samples=contest.arguments.num_samples)
    contest.exam = types.SimpleNamespace(samples=grade.samples, measure=lambda *_: grade)
    contest.sampler = lambda *_: None
    return contest


def test_colour_goes_on_with_no_run_of_another_seed(tmp_path):
    contest = _contest(tmp_path)
    contest.keep(60, colour.Point("ours", 60, steps=10, images=160, trained_with=contest.trained_with("ours")))
    assert _contest(tmp_path).kept("ours", 60).seconds == 60
    with pytest.raises(SystemExit, match="trained with --seed 0; choose another --output_dir"):
        _contest(tmp_path, "--seed", "1").kept("ours", 60)


def test_colour_measures_again_with_another_classifier_and_only_then(tmp_path):
    _contest(tmp_path).keep(60, _point("diffusers", 60, None))
    first = _contest(tmp_path).measured("diffusers", 60)
    again = _contest(tmp_path).measured("diffusers", 60)
    assert (first.frechet, again) == (2.0, first)
    changed = _contest(tmp_path, "--classifier", "another")
    changed.exam.measure = lambda *_: types.SimpleNamespace(frechet=3.0, samples=first.samples)
    assert changed.measured("diffusers", 60).frechet == 3.0


def test_colour_stops_ours_when_its_processor_seconds_are_spent():
    control, limit = types.SimpleNamespace(should_training_stop=False), colour.ProcessorLimit(0.05)
    limit.on_train_begin(None, None, control)
    limit.on_step_end(None, None, control)
    assert not control.should_training_stop
    began = time.process_time()
    while time.process_time() - began < 0.06:
        pass
    limit.on_step_end(None, None, control)
    assert control.should_training_stop


def test_colour_flips_about_half_of_the_images():
    image = torch.tensor([[[-1.0, 1.0]]])
    flipped = [colour.FlippedImages(image[None])[0][0, 0, 0].item() for _ in range(100)]
    assert 20 < sum(flipped) < 80
    assert set(flipped) == {0.0, 1.0}


def seen_by(objective, labels, samples):
    """(conditions and further arguments of the network's call, clean images, noise) of one batch of an objective."""
    seen = []
    objective.objective.losses = lambda net, x0, noise, times, **extra: seen.extend((extra, x0, noise)) or times
    net = ConditionedNetwork(torch.nn.Identity().train(), {"class_labels": labels})
    objective(net, {"samples": samples}, torch.Generator().manual_seed(0))
    return seen


@pytest.mark.parametrize("in_class", [False, True])
def test_paired_noise_is_the_same_noise_nearer_to_the_images(in_class):
    labels, samples = torch.arange(32) % 2, torch.rand(32, 1, 2, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    inner = DiffusionObjective(RectifiedFlowPath(), "flow")
    _, x0, noise = seen_by(objective_trials.Paired(inner, in_class), labels, samples)
    plain = torch.randn(samples.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(noise.flatten(1).sum(1).sort()[0], plain.flatten(1).sum(1).sort()[0])
    assert (noise - x0).square().sum() < 0.7 * (plain - x0).square().sum()
    mine = [sorted(n[labels == 0].flatten(1).sum(1).tolist()) for n in (noise, plain)]
    assert (mine[0] == pytest.approx(mine[1])) == in_class


def test_the_network_is_told_of_augmentation_and_of_nothing_else():
    samples = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    inner = DiffusionObjective(RectifiedFlowPath(), "flow")
    extra, x0, _ = seen_by(objective_trials.Augmented(inner, 0.5), torch.zeros(64).long(), samples)
    changed = (x0 - samples).flatten(1).abs().amax(1) > 0
    assert torch.equal(changed, ~extra["vector"].isnan().any(1))
    assert 10 < changed.sum() < 54


def test_a_network_without_the_numbers_predicts_as_if_there_were_none():
    torch.manual_seed(0)
    told = build_model("small", **TINY_MODEL, num_class_embeds=3, vector_dim=5)
    torch.nn.init.normal_(told.conv_out.weight)
    sample, times, labels = torch.randn(4, 1, 8, 8), torch.tensor([1, 300, 700, 999]), torch.tensor([0, 1, 2, 3])
    plain = objective_trials.without_numbers(told)
    assert plain.config.vector_dim is None
    torch.testing.assert_close(plain(sample, times, labels).sample, told(sample, times, labels).sample)
