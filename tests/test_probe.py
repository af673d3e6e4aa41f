"""`--mixed_precision auto`: what is measured, what is chosen, and that a resumed run keeps to it."""

import copy
import json

import pytest
import torch
from conftest import TINY_MODEL, StopAt
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, SlicedAttnProcessor
from local_processes import run_processes
from torch.overrides import TorchFunctionMode

from diffusers_ext.models import build_model
from diffusers_ext.objectives.diffusion import DiffusionObjective
from diffusers_ext.schedulers.noise_path import NoisePath
from diffusers_ext.training import Trainer
from diffusers_ext.training.building import machine
from diffusers_ext.training.precision import Mode, as_loaded, attentions_of, set_attention
from diffusers_ext.training.probe import ModeProbe, TrainingSteps


@pytest.fixture
def tiny():
    """A network, an objective, and a batch for it."""
    torch.manual_seed(0)
    network = build_model("small", **{**TINY_MODEL, "dropout": 0.1})
    batch = {"samples": torch.randn(8, 1, 28, 28), "index": torch.arange(8)}
    return network, DiffusionObjective(NoisePath.from_schedule("cosine")), batch


def plain_attention_of(network):
    """The bounds of the network's attention modules, up to which attention is a plain product."""
    return {part.plain_attention_tokens for part in network.modules() if hasattr(part, "plain_attention_tokens")}


class Clock:
    """Time in which a step takes `costs(mode)` seconds for the whole batch.

    A step takes `overhead(mode)` seconds more, whatever its batch. Other work makes the step of number n (from 0) take
    `others(n)` times as long to pass; a mode's threads together spend `threads(mode)` times as much processor time as
    passes. Called as `TrainingSteps` are, it makes such steps.
    """

    def __init__(self, costs, others=lambda number: 1.0, threads=lambda mode: 1.0, overhead=lambda mode: 0.0):
        self.now, self.spent, self.more, self.costs, self.modes, self.steps = 0.0, 0.0, 0.0, costs, [], 0
        self.others, self.threads, self.overhead = others, threads, overhead
        self.batch_size, self.device = 8, torch.device("cpu")

    def monotonic(self):
        return self.now

    perf_counter = monotonic

    def process_time(self):
        return self.spent

    def __call__(self, network, mode, batch_size):
        self.modes.append(mode)

        def step():
            seconds = self.more + self.overhead(mode) + self.costs(mode) * batch_size / self.batch_size
            self.now += seconds * self.others(self.steps)
            self.spent += seconds * self.threads(mode)
            self.steps += 1

        return step

    def probe(self, run_seconds=60.0, network=None):
        """A probe in this time, of a machine whose CPU multiplies bf16, and where compiling may take two minutes."""
        network = build_model("small", **TINY_MODEL) if network is None else network
        return ModeProbe(network, self, lambda step: run_seconds, ["bf16"], 120.0, self)


class Ticks:
    """A clock that goes on at every look at it, and never else."""

    def __init__(self, seconds):
        self.seconds, self.now = seconds, 0.0

    def monotonic(self):
        self.now += self.seconds
        return self.now

    perf_counter = process_time = monotonic


def cost(bf16=1.0, channels_last=1.0, plain=1.0, fused=1.0, compiled=1.0, step=0.02):
    """Seconds of a step as a product of what each choice multiplies them by."""

    def of(mode):
        factors = {"bf16": bf16 if mode.precision == "bf16" else 1, "last": channels_last if mode.channels_last else 1}
        attention = {"": 1, "plain": plain, "fused": fused}[mode.attention]
        return step * factors["bf16"] * factors["last"] * attention * (compiled if mode.compiled else 1)

    return of


@pytest.mark.parametrize(
    ("costs", "chosen"),
    [
        (cost(bf16=0.5, channels_last=0.8, plain=0.9), Mode("bf16", True, "plain")),
        (cost(bf16=2.0, channels_last=2.0, plain=2.0, fused=2.0), Mode()),
        (cost(bf16=0.99, channels_last=0.99, fused=0.99), Mode()),  # too little to leave float32 for
        (cost(bf16=1.5, channels_last=0.7), Mode("no", True)),
        (lambda mode: 0.01 if mode == Mode("bf16", True) else 0.02, Mode("bf16", True)),  # only both together help
        (lambda mode: 0.01 if mode == Mode("bf16", attention="plain") else 0.02, Mode("bf16", attention="plain")),
    ],
)
def test_the_fastest_mode_is_chosen_and_plain_float32_when_none_is_faster(costs, chosen):
    assert Clock(costs).probe().choose() == chosen


def bf16(mode):
    return mode.precision == "bf16"


@pytest.mark.parametrize(
    ("others", "costs", "threads", "chosen", "clock"),
    [
        # What passes decides, however much processor time the threads spend in it.
        (lambda n: 1.0, cost(bf16=0.7), lambda mode: 2 if bf16(mode) else 1, "bf16", " a second:"),
        (lambda n: 1.0, cost(bf16=1.3), lambda mode: 1 if bf16(mode) else 2, "no", " a second:"),
        (lambda n: 3.0 if n == 5 else 1.0, cost(bf16=0.7), lambda mode: 2 if bf16(mode) else 1, "bf16", " a second:"),
        # Work that begins after the first turn of float32, and works that come and go: processor time decides.
        (lambda n: 1.0 if n < 8 else 2.0, cost(bf16=0.7), lambda mode: 1, "bf16", " a second of processor time:"),
        (lambda n: 1.3 if n < 8 else 1.0, cost(bf16=0.99), lambda mode: 1, "no", " a second of processor time:"),
        # Less of it is spent, but more time passes than in float32 with other work beside it: never slower than that.
        (lambda n: 1.05 if n > 11 else 1.0, cost(bf16=1.1), lambda mode: 0.5 if bf16(mode) else 1, "no", " of proc"),
    ],
)
def test_the_time_that_passes_decides_on_a_quiet_machine(others, costs, threads, chosen, clock):
    measured = Clock(costs, others, threads).probe(200.0)
    assert measured.choose(channels_last=False).precision == chosen
    assert clock in str(measured)


def test_without_time_to_listen_for_other_work_processor_time_decides():
    measured = Clock(cost(bf16=0.5, step=30.0)).probe(600.0)
    measured.choose()
    assert not measured.quiet


def test_without_time_to_listen_no_mode_is_slower_than_float32_was():
    clock = Clock(cost(bf16=1.1, step=30.0), threads=lambda mode: 0.5 if bf16(mode) else 1)
    assert clock.probe(600.0).choose().precision == "no"


@pytest.mark.parametrize("run_seconds", [12.0, 30.0])
def test_a_short_run_is_not_probed_with_a_batch_too_small_to_tell(run_seconds):
    clock = Clock(cost(bf16=0.5, step=0.2), overhead=lambda mode: 0.02 if bf16(mode) else 0.0)
    assert clock.probe(run_seconds).choose().precision == "bf16"


def test_a_run_too_short_to_try_anything_names_no_speed():
    measured = Clock(cost(step=100.0)).probe(20.0)
    assert measured.choose() == Mode()
    assert str(measured) == "No other mode was tried: there is none, or the run is too short."


def test_a_memory_format_that_was_asked_for_is_kept():
    clock = Clock(cost(channels_last=3.0))
    assert clock.probe().choose(channels_last=True).channels_last
    assert all(mode.channels_last for mode in clock.modes)


@pytest.mark.parametrize(("step", "run_seconds"), [(0.02, 60), (5.0, 600), (0.001, 2), (100.0, 1e6)])
def test_the_probe_keeps_to_its_share_of_the_run(step, run_seconds):
    clock = Clock(cost(bf16=0.5, step=step))
    measured = clock.probe(run_seconds)
    assert measured.choose().precision == ("bf16" if step < 100 else "no")
    # Two steps of the whole batch tell how long the others may be; they and the last one begun may run over.
    assert clock.now <= min(max(0.05 * run_seconds, 1.0), 20.0) + 3 * step
    assert measured.batch_size <= 8


class Block(torch.nn.Module):
    """A block that takes its time to be compiled: `at_once` seconds, and `later` more in each step from then on."""

    def __init__(self, clock, size, at_once=0.0, later=0.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(size))
        self.clock, self.at_once, self.later = clock, at_once, later

    def __deepcopy__(self, memo):
        return self

    def compile(self, **options):
        self.clock.now += self.at_once
        self.clock.more += self.later
        self.clock.compiled.append(self)


class Blocks(torch.nn.Module):
    """A network of so many kinds of blocks."""

    _repeated_blocks = ["Block"]

    def __init__(self, clock, kinds=1, **seconds):
        super().__init__()
        clock.compiled = []
        self.blocks = torch.nn.ModuleList(Block(clock, size, **seconds) for size in range(1, kinds + 1))


@pytest.mark.parametrize(
    ("run_seconds", "compiled", "chosen"),
    [(1e5, 0.5, True), (1e5, 1.0, False), (600.0, 0.5, False), (3000.0, 0.9, False)],
)
def test_blocks_are_compiled_only_where_the_run_gets_the_time_back(run_seconds, compiled, chosen):
    clock = Clock(cost(compiled=compiled))
    assert clock.probe(run_seconds, Blocks(clock, at_once=200.0)).choose().compiled == chosen


def test_blocks_that_would_take_too_long_are_not_compiled():
    clock = Clock(cost())
    network = Blocks(clock, kinds=5, later=30.0)
    assert not clock.probe(1e5, network).choose().compiled
    assert clock.compiled == [network.blocks[0]]  # which showed how long all of them would take


def test_probing_leaves_the_network_and_the_generator_as_they_were(tiny):
    network, objective, batch = tiny
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    steps = TrainingSteps(objective, batch, {}, lambda n: torch.optim.AdamW(n.parameters(), fused=True))
    measured = ModeProbe(network, steps, lambda step: 400.0, ["bf16"], clock=Ticks(0.2))
    measured.choose()
    assert len(measured.seconds) >= 4
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None and parameter.is_contiguous() for parameter in network.parameters())
    assert plain_attention_of(network) == {128}


def test_attention_paths_agree_and_are_undone(tiny):
    network, _, batch = tiny
    x, times = batch["samples"], torch.randint(1000, (8,))
    network.eval()
    with torch.no_grad():
        expected = network(x, times).sample
        for attention, tokens in (("plain", 1024), ("fused", 0)):
            set_attention(network, attention)
            assert plain_attention_of(network) == {tokens}
            torch.testing.assert_close(network(x, times).sample, expected, rtol=1e-4, atol=1e-5)
    as_loaded(network)
    assert plain_attention_of(network) == {128}


def test_attention_is_chosen_for_one_network_and_its_copies_alone(tiny):
    network = tiny[0]
    untouched = copy.deepcopy(network)
    set_attention(network, "plain")
    copied = copy.deepcopy(network)
    assert plain_attention_of(untouched) == {128}
    assert plain_attention_of(copied) == {1024}


def test_attention_paths_of_a_diffusers_network_agree_and_are_undone():
    torch.manual_seed(0)
    blocks = {"down_block_types": ["AttnDownBlock2D"] * 2, "up_block_types": ["AttnUpBlock2D"] * 2}
    sizes = {"in_channels": 1, "out_channels": 1, "block_out_channels": [8, 8], "norm_num_groups": 4}
    network = UNet2DModel(**blocks, **sizes, attention_head_dim=4, layers_per_block=1).eval()
    parts = [part for part in network.modules() if isinstance(part, Attention)]
    parts[0].set_processor(own := SlicedAttnProcessor(2))
    assert attentions_of(network) == ["plain"]
    assert attentions_of(network, autocast=True) == ["plain", "float32"]
    with torch.no_grad(), CountedCalls() as fused:
        for size, calls in ((28, 0), (40, 2)):  # of 784 and 196 tokens, and of 1,600 and 400
            x, times = torch.randn(2, 1, size, size), torch.tensor([3, 700])
            as_loaded(network)
            expected = network(x, times).sample
            set_attention(network, "plain")
            before = fused.calls
            torch.testing.assert_close(network(x, times).sample, expected, rtol=1e-4, atol=1e-5)
            assert fused.calls == before + calls
    as_loaded(network)
    assert parts[0].processor is own
    assert {type(part.processor) for part in parts[1:]} == {AttnProcessor2_0}


@pytest.mark.parametrize(
    ("shape", "keys", "device", "mask", "plain"),
    [
        ((2, 1024, 8), None, "cpu", None, True),
        ((2, 1025, 8), None, "cpu", None, False),
        ((2, 8, 32, 32), None, "cpu", None, True),
        ((2, 16, 8), 40, "cpu", torch.zeros(2, 1, 40), True),
        ((2, 16, 8), 40, "cpu", torch.ones(2, 1, 40, dtype=torch.bool), False),
        ((2, 16, 8), 1025, "cpu", None, False),
        ((40, 1024, 8), None, "cpu", None, False),  # 40 x 2 x 1,024 x 1,024 scores
        ((2, 16, 8), None, "meta", None, False),
    ],
)
def test_attention_is_plain_where_that_is_right_and_small(shape, keys, device, mask, plain):
    part = Attention(8, heads=2, dim_head=4).to(device)
    x = torch.randn(shape, device=device)
    told = None if keys is None else torch.randn(shape[0], keys, 8, device=device)
    with torch.no_grad(), CountedCalls() as fused:
        expected = part(x, told, attention_mask=mask)
        set_attention(part, "plain")
        found = part(x, told, attention_mask=mask)
    assert fused.calls == (1 if plain else 2)
    if device == "cpu":
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("keys", [None, 6])
def test_attention_in_float32_takes_no_part_in_autocast(keys):
    part = Attention(8, cross_attention_dim=None if keys is None else 8, heads=2, dim_head=4)
    x = torch.randn(2, 16, 8).bfloat16()
    told = None if keys is None else torch.randn(2, keys, 8).bfloat16()
    mask = None if keys is None else torch.zeros(2, 1, keys).bfloat16()
    with torch.no_grad():
        expected = part(x.float(), told if told is None else told.float())
        set_attention(part, "float32")
        with torch.autocast("cpu", torch.bfloat16), CountedCalls() as fused:
            found = part(x, told, attention_mask=mask)
    assert fused.dtypes == [torch.float32]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected.bfloat16())
    as_loaded(part)
    assert type(part.processor) is AttnProcessor2_0


def test_attention_with_normalised_queries_stays_as_it_is():
    part = Attention(8, heads=2, dim_head=4, qk_norm="layer_norm")
    assert attentions_of(part) == []
    set_attention(part, "plain")
    assert type(part.processor) is AttnProcessor2_0


def test_attention_in_float32_is_tried_in_half_precision_alone():
    torch.manual_seed(0)
    blocks = {"down_block_types": ["AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D"]}
    sizes = {"in_channels": 1, "out_channels": 1, "block_out_channels": [8], "norm_num_groups": 4}
    clock = Clock(lambda mode: 0.01 if mode.attention == "float32" else 0.02)
    network = UNet2DModel(**blocks, **sizes, attention_head_dim=4, layers_per_block=1)
    assert clock.probe(network=network).choose().attention == "float32"
    assert {mode.precision for mode in clock.modes if mode.attention == "float32"} == {"bf16"}


def test_other_attention_is_tried_in_the_fastest_mode_first_and_in_no_hopeless_one():
    clock = Clock(cost(bf16=2.5, channels_last=2.5))
    clock.probe().choose()
    assert Mode(attention="plain") in clock.modes
    assert Mode("bf16", attention="plain") not in clock.modes
    clock = Clock(cost(bf16=1.5, channels_last=1.5))
    clock.probe().choose()
    assert clock.modes.index(Mode(attention="plain")) < clock.modes.index(Mode("bf16", attention="plain"))


class CountedCalls(TorchFunctionMode):
    """Of the fused kernel."""

    def __init__(self):
        super().__init__()
        self.dtypes = []

    @property
    def calls(self):
        return len(self.dtypes)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.scaled_dot_product_attention:
            self.dtypes.append(args[0].dtype)
        return function(*args, **(kwargs or {}))


def test_a_run_says_what_was_chosen(tiny_run, capsys):
    trainer = Trainer(tiny_run(mixed_precision="auto", max_train_steps=2))
    trainer.train()
    told = capsys.readouterr().out
    assert f"Steps are computed in {trainer.mode}. Images a second" in told
    assert ": fp32, contiguous " in told
    assert f"In {trainer.mode}: " in told
    with open(trainer.output_dir / "metrics.jsonl") as file:
        assert [r["mode"] for r in map(json.loads, file) if "mode" in r] == [str(trainer.mode)]


@pytest.mark.parametrize("has_instructions", [False, True])
def test_bf16_on_a_cpu_that_does_not_multiply_it_is_named_slow(tiny_run, capsys, monkeypatch, has_instructions):
    monkeypatch.setattr(machine, "cpu_multiplies_bf16", lambda: has_instructions)
    on_cpu = Trainer(tiny_run(mixed_precision="bf16")).accelerator.device.type == "cpu"
    assert ("no instructions for bf16" in capsys.readouterr().out) == (on_cpu and not has_instructions)


def test_a_resumed_run_keeps_to_the_mode_of_its_checkpoint_and_probes_none(tiny_run, capsys):
    Trainer(tiny_run(mixed_precision="bf16", channels_last=True), callbacks=[StopAt(2)]).train()
    trainer = Trainer(tiny_run(mixed_precision="auto", resume_from_checkpoint="latest"))
    told = capsys.readouterr().out
    assert "Steps are computed in bf16, channels-last." in told
    assert "Images a second" not in told
    assert trainer.mode == Mode("bf16", True)
    assert trainer.accelerator.mixed_precision == "bf16"
    trainer.train()


def modes_of_processes(rank, arguments, folder):
    torch.set_num_threads(1)
    arguments.channels_last = rank == 0  # the second one would choose otherwise
    trainer = Trainer(arguments)
    first = next(p for p in trainer.network.parameters() if p.ndim == 4 and p.shape[2] > 1 and p.shape[1] > 1)
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert trainer.accelerator.mixed_precision == trainer.mode.precision
    (folder / f"{rank}.txt").write_text(str(trainer.mode))


def test_every_process_does_as_the_main_one_says(tiny_run, tmp_path):
    assert run_processes(2, modes_of_processes, tiny_run(mixed_precision="auto", train_batch_size=4), tmp_path) == 0
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    assert first == second
    assert "channels-last" in first


def test_settings_that_say_it_are_not_probed(tiny_run, capsys):
    assert Trainer(tiny_run(mixed_precision="bf16", channels_last=True)).mode == Mode("bf16", True)
    assert Trainer(tiny_run(mixed_precision="no")).mode == Mode()
    assert "Steps are computed" not in capsys.readouterr().out
