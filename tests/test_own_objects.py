"""Networks, data, objectives and callbacks that a user brings: trained, resumed, averaged and saved like our own."""

import json

import pytest
import torch
from conftest import StopAt
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from local_processes import run_processes
from safetensors.torch import load_file

from diffusers_ext.conditions import CONDITIONS, Condition
from diffusers_ext.modalities import MODALITIES
from diffusers_ext.training import Trainer, TrainerCallback, parse_arguments, train

OWN_FILE = """
import diffusers
import torch
from diffusers_ext.training import TrainerCallback

class Plain(torch.nn.Module):
    def __init__(self, in_channels, width=4):
        super().__init__()
        self.a = torch.nn.Conv2d(in_channels, width, 3, padding=1)
        self.b = torch.nn.Conv2d(width, in_channels, 3, padding=1)
    def forward(self, sample, timestep):
        return self.b(torch.relu(self.a(sample)))

class Steps(diffusers.DDIMScheduler):
    pass

class Marks(TrainerCallback):
    def on_train_end(self, args, state, control, **kwargs):
        open(args.output_dir + "/mark.txt", "w").write(str(state.global_step))
"""


class Plain(torch.nn.Module):
    """Gives a tensor, and has no configuration."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Conv2d(4, 1, 3, padding=1))

    def forward(self, sample, timestep):
        return self.layers(sample)


class Own(ModelMixin, ConfigMixin):
    """A network of diffusers' kind whose configuration knows neither channels nor sizes."""

    @register_to_config
    def __init__(self, width: int = 4):
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(1, width, 3, padding=1), torch.nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, sample, timestep, **conditions):
        return torch.nn.functional.silu(self.last(self.first(sample)))


class Signals(torch.utils.data.Dataset):
    """Sixteen images in [-1, 1]."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        return {"samples": torch.linspace(-1, 1, 64).roll(index).reshape(1, 8, 8)}


class Counting:
    """An objective with a state that what follows depends on."""

    def __init__(self):
        self.calls = 0

    def __call__(self, net, batch, generator):
        self.calls += net.training
        noise = torch.randn(batch["samples"].shape, generator=generator)
        error = net(batch["samples"] + noise * self.calls / 10, torch.zeros(len(noise))) - noise
        return error.square().flatten(1).mean(1)

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


@pytest.mark.parametrize("network", [Plain, Own])
def test_own_network_data_and_objective_resume_bit_for_bit(tiny_run, tmp_path, network):
    def run(name, *callbacks, **settings):
        torch.manual_seed(1)
        given = network(), Signals(), Signals(), Counting()
        return train(tiny_run(model_options=None, output_dir=str(tmp_path / name), **settings), *given, callbacks)

    run("whole")
    run("half", StopAt(4))
    run("half", resume_from_checkpoint="latest")
    for file in ("model", "ema", "optimizer"):
        first, second = (
            load_file(tmp_path / name / "checkpoint-6" / f"{file}.safetensors") for name in ("whole", "half")
        )
        assert all(torch.equal(value, second[key]) for key, value in first.items()), file
    with open(tmp_path / "half" / "checkpoint-6" / "trainer_state.json") as state:
        assert json.load(state)["objective"] == {"calls": 6}


def train_and_note_noise(rank, arguments, folder):
    torch.set_num_threads(1)
    drawn = []

    def objective(net, batch, generator):
        noise = torch.randn(batch["samples"].shape, generator=generator)
        if net.training:
            drawn.append(noise)
        return (net(batch["samples"], torch.zeros(len(noise))) - noise).square().flatten(1).mean(1)

    train(arguments, Plain(), Signals(), objective=objective)
    torch.save(torch.cat(drawn[:6]), folder / f"noise-{rank}.pt")


def test_an_own_objective_draws_other_noise_on_every_process_and_at_every_step(tiny_run, tmp_path):
    assert run_processes(2, train_and_note_noise, tiny_run(train_batch_size=2), tmp_path) == 0
    noise = torch.cat([torch.load(tmp_path / f"noise-{rank}.pt") for rank in range(2)]).flatten(1)
    assert len(noise.unique(dim=0)) == 2 * 6 * 2


def test_a_plain_module_is_saved_with_its_source_and_says_so(tiny_run, tmp_path, caplog):
    pipeline = train(tiny_run(model_options=None), model=Plain(), train_dataset=Signals())
    saved = load_file(tmp_path / "run" / "network.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in pipeline.unet.network.state_dict().items())
    assert "class Plain(torch.nn.Module)" in (tmp_path / "run" / "network.py").read_text()
    assert "Plain is a plain torch module, which diffusers can't load" in caplog.text
    assert list((tmp_path / "run" / "samples").glob("*.png"))


def test_a_network_with_a_configuration_is_saved_as_a_pipeline(tiny_run, tmp_path, caplog):
    train(tiny_run(model_options=None), model=Own(), train_dataset=Signals())
    # This file imports pytest, which not everybody has.
    assert "saved without the source of its classes (test_own_objects, line" in caplog.text
    index = json.loads((tmp_path / "run" / "model_index.json").read_text())
    assert index["unet"][1] == "Own"
    assert json.loads((tmp_path / "run" / "unet" / "config.json").read_text())["sample_size"] == 8


def test_names_on_the_command_line(tiny_run, tmp_path):
    (tmp_path / "own.py").write_text(OWN_FILE)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny_run(model_options=None).to_yaml())
    words = ["--recipe", str(recipe), "--model", f"{tmp_path}/own.py:Plain", "--model_options", '{"width": 2}']
    words += ["--sampler", f"{tmp_path}/own.py:Steps"]
    trainer = Trainer(parse_arguments([*words, "--callback", f"{tmp_path}/own.py:Marks"]))
    assert trainer.network.a.out_channels == 2
    trainer.train()
    assert (tmp_path / "run" / "mark.txt").read_text() == "6"
    saved = json.loads((tmp_path / "run" / "scheduler" / "scheduler_config.json").read_text())
    assert (saved["_class_name"], saved["prediction_type"]) == ("Steps", "v_prediction")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"model": "nowhere.py:Net"}, "there is no file 'nowhere.py'"),
        ({"model": "json:JSONDecoder"}, "must name a class that derives from torch.nn.Module"),
        ({"callback": ["json:Nothing"]}, "'json' has no 'Nothing'"),
        ({"sampler": "nowhere.py:Steps"}, "there is no file 'nowhere.py'"),
        ({"sampler": "json:JSONDecoder"}, "is not a scheduler: it needs from_config, set_timesteps and step"),
        ({"sampler": "ddin"}, "sampler must be one of ddim, .* or module:Class, got 'ddin'"),
    ],
)
def test_names_of_nothing_are_one_sentence(tiny_run, settings, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        Trainer(tiny_run(**{"model_options": None, **settings}))
    assert "\n" not in str(caught.value)


class Timeless(Plain):
    def forward(self, sample):
        return sample


class Flat(Plain):
    def forward(self, sample, timestep):
        return super().forward(sample, timestep).mean((2, 3), keepdim=True)  # a shape that broadcasts


class InADictionary(Plain):
    def forward(self, sample, timestep):
        return {"sample": super().forward(sample, timestep)}


class Wind(Condition):
    name = "test_wind"

    def prepare(self, data, seed=0, token=None):
        pass


class Misspelt(TrainerCallback):
    def on_step_ended(self, args, state, control, **kwargs):
        pass


class Weighing(torch.nn.Linear):
    def forward(self, net, batch, generator):
        return batch["samples"].flatten(1).mean(1)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"model": Plain}, "got the class Plain; give an instance"),
        ({"model": Timeless()}, r"forward of Timeless must take \(sample, timestep\), got \(sample\)"),
        ({"model": Plain(), "condition": Wind()}, r"Plain must take \(sample, timestep, test_wind=...\)"),
        ({"model": Flat()}, r"must give the sample's shape \(8, 1, 8, 8\), and gave \(8, 1, 1, 1\)"),
        ({"model": InADictionary()}, "a tensor or an object with a tensor `.sample`, and gave dict"),
        ({"objective": Weighing(2, 2)}, "Weighing has weights of its own, and only those of the network are trained"),
        ({"objective": Counting}, "must be a function or an object that is called as one, got the class Counting"),
        ({"callbacks": [Misspelt()]}, "Misspelt has 'on_step_ended', which never comes; the events are on_init_end,"),
        ({"callbacks": [Misspelt]}, r"give Misspelt\(\) instead of Misspelt"),
        ({"callbacks": [print]}, "has no event; the events are"),
        ({"callbacks": Misspelt()}, "callbacks must be a list of callbacks, got Misspelt"),
    ],
)
def test_parts_that_do_not_fit_are_one_sentence(tiny_run, monkeypatch, given, sentence):
    monkeypatch.setitem(CONDITIONS, Wind.name, Wind)  # forgotten after the test
    with pytest.raises(ValueError, match=sentence) as caught:
        train(tiny_run(model_options=None), train_dataset=Signals(), **given)
    assert "\n" not in str(caught.value)


def test_a_validation_leaves_the_state_of_an_objective(tiny_run):
    class Always(Counting):
        def __call__(self, net, batch, generator):
            self.calls += not net.training
            return super().__call__(net, batch, generator)

    objective = Always()
    train(tiny_run(model_options=None, validation_steps=1, max_train_steps=2), Plain(), Signals(), Signals(), objective)
    assert objective.calls == 2


@pytest.mark.parametrize("kind", [Plain, Own])
def test_an_own_network_gets_a_timestep_for_each_sample_in_training_and_sampling(tiny_run, kind):
    shapes = set()

    class Noting(kind):
        def forward(self, sample, timestep):
            shapes.add(tuple(timestep.shape) == (len(sample),))
            return super().forward(sample, timestep)

    pipeline = train(tiny_run(model_options=None, max_train_steps=1), Noting(), Signals())
    pipeline(batch_size=3, num_inference_steps=2)
    assert shapes == {True}


def test_samples_of_any_number_of_channels_are_drawn(tmp_path):
    picture = MODALITIES["image"].draw(torch.zeros(1, 2, 64, 64), tmp_path / "channels.png", None)
    assert picture.shape == (1, 2 * 64 + 4, 64 + 4, 3)


def test_an_objective_without_a_loss_per_sample_is_one_sentence(tiny_run):
    with pytest.raises(ValueError, match=r"objective must give one loss per sample, shape \(8,\), got \(\)"):
        train(tiny_run(), objective=lambda net, batch, generator: net(batch["samples"], torch.zeros(8)).mean())


def test_events_come_in_order_and_a_callback_can_stop_save_and_evaluate(tiny_run, tmp_path):
    events = []

    class Watches(TrainerCallback):
        def __getattribute__(self, name):
            if name.startswith("on_"):
                events.append(name)
            return super().__getattribute__(name)

        def on_step_end(self, args, state, control, **kwargs):
            control.should_save = state.global_step == 1
            if state.global_step == 3:
                control.stop("Enough.")

    train(tiny_run(checkpointing_steps=100), callbacks=[Watches()])
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-3"}
    order = [event for event in events if event not in ("on_log", "on_evaluate")]
    step = ["on_step_begin", "on_step_end"]
    begin = ["on_init_end", "on_train_begin", "on_epoch_begin"]
    assert order == [*begin, *step, "on_save", *step, *step, "on_train_end", "on_save", "on_export"]


def test_a_pipeline_of_an_own_network_loads_with_its_class_known(tiny_run):
    trained = train(arguments := tiny_run(model_options=None), model=Own(), train_dataset=Signals())
    loaded = DiffusionPipeline.from_pretrained(
        arguments.output_dir, unet=Own.from_pretrained(arguments.output_dir + "/unet")
    )
    assert all(torch.equal(v, loaded.unet.state_dict()[k]) for k, v in trained.unet.state_dict().items())
