"""What a run says of how it used the machine."""

import time
from pathlib import Path

import pytest
import torch
from conftest import records_of

from diffusers_ext.training import Trainer
from diffusers_ext.training.efficiency import StepClock, flops_of, peak_flops, undisturbed
from diffusers_ext.training.precision import cpu_multiplies_bf16

CPU = torch.device("cpu")


def test_operations_of_a_product_and_its_gradients():
    layer = torch.nn.Linear(8, 4, bias=False)
    x = torch.ones(3, 8, requires_grad=True)
    layer.weight.register_post_accumulate_grad_hook(lambda *_: pytest.fail("a hook of the run was called"))
    assert flops_of(lambda: layer(x * 1).sum(), [*layer.parameters(), x]) == 3 * 2 * 3 * 8 * 4
    assert layer.weight.grad is None


def test_attention_counts_as_its_products():
    q = torch.ones(1, 2, 16, 8, requires_grad=True)
    flops = flops_of(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q).sum(), [q])
    assert flops == 3 * 2 * (2 * 2 * 16 * 16 * 8)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_peak_is_above_what_a_thin_product_reaches(precision):
    x = torch.ones(1, 512, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    matrix = torch.ones(512, 512, dtype=x.dtype)
    began = time.process_time()
    for _ in range(20):
        x @ matrix
    thin = 20 * 2 * 512**2 / (time.process_time() - began)
    # Where a CPU emulates bf16, both take the time of the conversions, and which is faster is chance.
    share = 1 if precision == "no" or cpu_multiplies_bf16() else 0.5
    assert peak_flops(CPU, precision, 1.0) > share * thin


def test_the_clock_counts_time_within_only():
    clock = StepClock(CPU)
    with clock.working():
        torch.ones(200, 200) @ torch.ones(200, 200)
    seconds = clock.seconds()
    torch.ones(2000, 2000) @ torch.ones(2000, 2000)
    assert clock.seconds() == seconds > 0


def test_a_run_says_how_it_used_the_machine(tiny_run, capsys):
    trainer = Trainer(tiny_run(validation_steps=2))
    trainer.train()
    (told,) = [record for record in records_of(trainer.output_dir) if "flops_over_peak" in record]
    assert 0 < told["flops_over_peak"] < 1
    assert 0 < told["time_outside_steps"] < 0.9
    assert told["peak_memory_bytes"] > 1e8
    rate = told["flops_per_image"] * told["mean_images_per_second"]
    assert rate == pytest.approx(told["flops_over_peak"] * told["peak_flops"])
    # Nearly all of it is the network's: forward once, and twice as much backward.
    network, batch = trainer.network, torch.zeros(1, 1, 28, 28, requires_grad=True)
    forward = flops_of(lambda: network(batch * 1, 0).sample.sum(), [batch])
    assert told["flops_per_image"] == pytest.approx(1.5 * forward, rel=0.15)
    assert "of the time outside forward, backward and optimizer" in capsys.readouterr().out


class OfManySamples(torch.nn.Module):
    """Its BatchNorm over vectors refuses a batch of one sample in training."""

    def __init__(self):
        super().__init__()
        self.norm, self.layer = torch.nn.BatchNorm1d(784), torch.nn.Linear(784, 784)

    def forward(self, sample, timestep):
        return self.layer(self.norm(sample.flatten(1))).view_as(sample)


def test_a_network_whose_operations_cannot_be_counted_is_saved(tiny_run, caplog):
    trainer = Trainer(tiny_run(), model=OfManySamples())
    trainer.train()
    assert "The operations of a step could not be counted (Expected more than 1 value per channel" in caplog.text
    assert Path(trainer.output_dir, "network.safetensors").is_file()


def test_counting_leaves_the_statistics_of_the_network(tiny_run):
    class OfChannels(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.layer = torch.nn.BatchNorm2d(1), torch.nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, sample, timestep):
            return self.layer(self.norm(sample))

    trainer = Trainer(tiny_run(use_ema=False), model=OfChannels())
    trainer.train()
    assert any("flops_per_image" in record for record in records_of(trainer.output_dir))
    assert int(trainer.network.norm.num_batches_tracked) == trainer.state.global_step


@pytest.mark.parametrize(
    ("wall", "processor", "threads", "expected"),
    [
        (1.0, 2.0, 2, 1.0),  # both at work
        (1.0, 1.0, 2, 1.0),  # one at work, or the other's time not counted yet
        (50.0, 1.0, 1, 1.0),  # interrupted for long
        (50.0, 2.0, 2, 2.0),  # interrupted, and nobody knows how many were at work
        (1.0, 1.96, 2, 0.98),
    ],
)
def test_time_without_other_work_is_never_told_too_short(wall, processor, threads, expected):
    assert undisturbed(wall, processor, threads) == pytest.approx(expected)
