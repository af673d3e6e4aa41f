"""Networks in pieces (FSDP2, two processes over gloo), and the launcher's configurations."""

import faulthandler
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from conftest import ROOT, StopAt, records_of
from diffusers import DiffusionPipeline
from local_processes import run_processes
from safetensors.torch import load_file
from test_exactness import differences, train_alone

from diffusers_ext import GuidedUNet2DModel
from diffusers_ext.training import Trainer, TrainerCallback, train
from diffusers_ext.training.building import run as building
from diffusers_ext.training.checkpoint import list_checkpoints
from diffusers_ext.training.sharding import own_parameters, uses_fsdp
from diffusers_ext.training.unfinished import pipeline_of_checkpoint

CONFIGURATIONS = ROOT / "train" / "accelerate-configs"


def environment_of(name):
    """What Accelerate's launcher hands to the processes of a configuration of FSDP."""
    settings = load_config_from_file(str(CONFIGURATIONS / name)).fsdp_config
    return {"ACCELERATE_USE_FSDP": "true", **{key.upper(): str(value) for key, value in settings.items()}}


def train_pieces(rank, arguments, steps):
    torch.set_num_threads(1)
    trainer = Trainer(arguments, callbacks=[StopAt(steps)])
    held = sum(piece.numel() for _, piece in own_parameters(trainer.network))
    assert held < 0.6 * sum(parameter.numel() for parameter in trainer.network.parameters())
    trainer.train()


def test_pieces_on_two_processes_learn_what_copies_learn_and_resume_bit_for_bit(tiny_run, tmp_path):
    settings = {
        "train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "max_grad_norm": 0.1,
        "logging_steps": 1,
        "validation_steps": 2,
        "early_stopping_patience": 10,
        "save_model_epochs": 1,
        "train_split": "train[:16]",
        "max_train_steps": 4,
    }
    copies, pieces, half = (tiny_run(**settings, output_dir=str(tmp_path / n)) for n in ("copies", "pieces", "half"))
    environment = environment_of("fsdp.yaml")
    assert run_processes(2, train_alone, copies) == 0
    assert run_processes(2, train_pieces, pieces, 4, **environment) == 0
    for name in ("loss", "validation_loss", "gradient_norm"):
        first, second = (
            [r[name] for r in records_of(arguments.output_dir) if name in r] for arguments in (copies, pieces)
        )
        assert second == pytest.approx(first, abs=1e-4), name
    found = pipeline_of_checkpoint(os.path.join(pieces.output_dir, "checkpoint-2"))
    assert type(found.unet) is type(DiffusionPipeline.from_pretrained(pieces.output_dir).unet)
    saved = [DiffusionPipeline.from_pretrained(arguments.output_dir).unet for arguments in (copies, pieces)]
    for (name, first), second in zip(saved[0].named_parameters(), saved[1].parameters()):
        assert torch.allclose(first, second, atol=1e-5), name
    shutil.copytree(pieces.output_dir, half.output_dir)  # as a kill after the first checkpoint leaves it
    shutil.rmtree(os.path.join(half.output_dir, "checkpoint-4"))
    half.resume_from_checkpoint = "latest"
    assert run_processes(2, train_pieces, half, 4, **environment) == 0
    for file in ("ema.safetensors", "validation.safetensors", "model.safetensors", "optimizer.safetensors"):
        states = [load_file(os.path.join(a.output_dir, "checkpoint-4", file)) for a in (pieces, half)]
        assert not differences(*states), file
    pieces.resume_from_checkpoint, pieces.max_train_steps = "latest", 6
    train(pieces)  # a checkpoint is whole, so copies go on from it
    assert list_checkpoints(Path(pieces.output_dir))[-1].name == "checkpoint-6"


class FullDisk(TrainerCallback):
    """Leaves no place for one file of each of the first checkpoints: a folder has its name."""

    FILES = ("model.safetensors", "optimizer.safetensors", "ema.safetensors", "trainer_state.json")

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step <= len(self.FILES) and int(os.environ["RANK"]) == 0:
            partial = Path(args.output_dir) / f".checkpoint-{state.global_step}.partial"
            (partial / self.FILES[state.global_step - 1]).mkdir(parents=True)


def train_where_a_disk_is_full(rank, arguments):
    """The first process can't write one file of a checkpoint, another one each time."""
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(300, exit=True)  # a process that waits for ever
    train(arguments, callbacks=[FullDisk()])
    faulthandler.cancel_dump_traceback_later()


def test_a_process_that_cannot_write_leaves_no_other_waiting(tiny_run):
    arguments = tiny_run(max_train_steps=5, checkpointing_steps=1, train_batch_size=4)
    assert run_processes(2, train_where_a_disk_is_full, arguments, **environment_of("fsdp.yaml")) == 0
    assert [path.name for path in list_checkpoints(Path(arguments.output_dir))] == ["checkpoint-5"]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"FSDP_VERSION": "1", "FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD"}, "takes version 2; set fsdp_version: 2"),
        ({"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, "set fsdp_state_dict_type: FULL_STATE_DICT"),
    ],
)
def test_other_kinds_of_fsdp_are_refused_in_one_sentence(monkeypatch, changed, sentence):
    for name, value in {**environment_of("fsdp.yaml"), **changed}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=sentence) as caught:
        uses_fsdp(SimpleNamespace(distributed_type=DistributedType.MULTI_CPU))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "sentence"), [({"optimizer": "muon"}, "optimizer muon"), ({"ema_snapshots": 2}, "ema_snapshots")]
)
def test_what_needs_whole_weights_is_refused_under_fsdp(tiny_run, monkeypatch, settings, sentence):
    monkeypatch.setattr(building, "uses_fsdp", lambda accelerator: True)
    with pytest.raises(ValueError, match=f"{sentence}.*pieces"):
        Trainer(tiny_run(**settings))


def test_deepspeed_is_refused_in_one_sentence(tiny_run, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="DeepSpeed is not supported; FSDP shards as its ZeRO stage 3 does"):
        Trainer(tiny_run())


def test_configurations_are_what_the_launcher_reads():
    kinds = {path.name: load_config_from_file(str(path)).distributed_type for path in CONFIGURATIONS.glob("*.yaml")}
    assert kinds == {"ddp.yaml": DistributedType.MULTI_GPU, "fsdp.yaml": DistributedType.FSDP}


def train_guided(rank, arguments):
    torch.set_num_threads(1)
    small = {"base_channels": 8, "channel_multipliers": (1, 2), "attention_heads": 1, "attention_head_dim": 4}
    train(arguments, model=GuidedUNet2DModel(sample_size=28, class_conditioning="bottleneck", **small))


def test_copies_of_a_network_that_leaves_some_weights_unused_learn_on_two_processes(tiny_run):
    arguments = tiny_run(max_train_steps=2)  # without classes, nothing modulates the class blocks
    assert run_processes(2, train_guided, arguments) == 0
    assert [path.name for path in list_checkpoints(Path(arguments.output_dir))] == ["checkpoint-2"]
