"""Exported folders: what is replaced, what is left alone, what is said of this machine, and what is pushed of them."""

import importlib.util
import json
import shlex
import subprocess
import sys
from types import SimpleNamespace

import diffusers
import pytest
import torch
from conftest import TINY_MODEL
from diffusers import DiffusionPipeline
from huggingface_hub.errors import OfflineModeIsEnabled

from diffusers_ext import AncestralDDPMScheduler, GenerationPipeline, build_model, export
from diffusers_ext.cli import main
from diffusers_ext.hub.model_card import make_card
from diffusers_ext.hub.push import files_to_push, is_temporary, without_places
from diffusers_ext.training.saving import HubPusher


@pytest.fixture
def pipeline():
    return GenerationPipeline(build_model("small", **TINY_MODEL), AncestralDDPMScheduler(timestep_spacing="trailing"))


def test_says_nowhere_where_it_was_loaded_from(pipeline, tmp_path):
    export(pipeline, tmp_path / "somebody")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "somebody")
    assert "somebody" in loaded.unet.config["_name_or_path"]
    again = export(loaded, tmp_path / "again")
    assert not [path for path in again.rglob("*.json") if "somebody" in path.read_text()]
    assert DiffusionPipeline.from_pretrained(again).unet.num_parameters() == pipeline.unet.num_parameters()


OWN_NETWORK = """
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from own_parts import scaled
from diffusers_ext import NoisePath
from diffusers_ext.models.layers import make_norm


class OwnNetwork(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, sample_size=8, in_channels=1, out_channels=1):
        super().__init__()
        self.conv = torch.nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.last = make_norm("group", out_channels, 1)
        self.path = NoisePath.from_schedule("linear", 10)

    def forward(self, sample, timestep, return_dict=True):
        return self.last(sample) + scaled(self.conv(sample))
"""
LOAD_ELSEWHERE = """
import sys, torch

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("diffusers_ext", "own_network", "own_parts"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], custom_pipeline=sys.argv[2], trust_remote_code=True)
images = pipeline(num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt").images
torch.save(images, sys.argv[3])
"""


@pytest.fixture
def own_network(tmp_path, monkeypatch):
    """A network of the user, in a plain file loaded by its path, that imports from its neighbour and this package."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own_parts.py").write_text("def scaled(x):\n    return 0.5 * x\n")
    (tmp_path / "own" / "own_network.py").write_text(OWN_NETWORK)
    monkeypatch.syspath_prepend(tmp_path / "own")
    spec = importlib.util.spec_from_file_location("own_network", tmp_path / "own" / "own_network.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "own_network", module)
    spec.loader.exec_module(module)
    yield module.OwnNetwork()
    sys.modules.pop("own_parts", None)


def test_a_network_of_the_user_is_exported_with_its_source(own_network, environment, tmp_path):
    pipeline = GenerationPipeline(own_network, AncestralDDPMScheduler(timestep_spacing="trailing"))
    folder = export(pipeline, tmp_path / "out")
    (code,) = (folder / "unet").glob("own_network_*.py")
    assert "diffusers_ext" not in code.read_text().split('"""', 2)[2].replace("# --- diffusers_ext.", "")
    custom = next(folder.glob("diffusers_ext_*.py")).stem
    words = ["-c", LOAD_ELSEWHERE, str(folder), custom, str(tmp_path / "images.pt")]
    home = {**environment, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": ""}
    result = subprocess.run([sys.executable, *words], env=home, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    generator = torch.Generator().manual_seed(0)
    expected = pipeline(num_inference_steps=2, generator=generator, output_type="pt").images
    assert torch.equal(torch.load(tmp_path / "images.pt"), expected)


def test_a_command_runs_the_code_of_a_network_of_the_user_only_when_asked(own_network, tmp_path, capsys):
    folder = export(
        GenerationPipeline(own_network, AncestralDDPMScheduler(timestep_spacing="trailing")), tmp_path / "out"
    )
    (code,) = (folder / "unet").glob("own_network_*.py")
    code.write_text(code.read_text() + f"\nopen({str(tmp_path / 'ran')!r}, 'w').close()\n")
    words = ["sample", "--model", str(folder), "--num_images", "1", "--num_inference_steps", "2"]
    words += ["--output", str(tmp_path / "samples.png")]
    assert main(words) == 1
    assert "add --trust_remote_code to run it" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert main([*words, "--trust_remote_code"]) == 0
    assert (tmp_path / "ran").exists()
    assert (tmp_path / "samples.png").stat().st_size > 0


def test_a_network_that_can_not_be_saved_is_one_sentence(tmp_path):
    class Plain(torch.nn.Module):
        config = SimpleNamespace(sample_size=8, in_channels=1, out_channels=1)

    class Local(diffusers.UNet2DModel):
        pass

    Local.__module__ = "__main__"
    small = {"block_out_channels": (8,), "norm_num_groups": 4, "layers_per_block": 1, "sample_size": 8}
    kinds = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    for network, sentence in ((Plain(), "is a plain torch.nn.Module"), (Local(**small, **kinds), "is not a file")):
        pipeline = diffusers.DDPMPipeline(diffusers.UNet2DModel(**small, **kinds), diffusers.DDPMScheduler())
        pipeline.unet = network
        with pytest.raises(ValueError, match=sentence) as caught:
            export(pipeline, tmp_path / "out")
        assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize("part", ["whole", "regions"])
@pytest.mark.parametrize("size", ["5GB", "10KB"])
def test_names_of_a_compiled_network_are_the_networks(pipeline, part, size, tmp_path):
    """As accelerate's dynamo plugin compiles: the whole network, or its blocks one by one."""
    expected = pipeline.unet.state_dict()
    if part == "whole":
        pipeline.unet = torch.compile(pipeline.unet)
    else:
        for name, module in list(pipeline.unet.named_children()):
            if isinstance(module, torch.nn.ModuleList):
                for i in range(len(module)):
                    module[i] = torch.compile(module[i])
            else:
                setattr(pipeline.unet, name, torch.compile(module))
        assert any("_orig_mod" in name for name in pipeline.unet.state_dict())
    folder = export(pipeline, tmp_path / "out", max_shard_size=size)
    assert not [path for path in folder.rglob("*.json") if "_orig_mod" in path.read_text()]
    found = DiffusionPipeline.from_pretrained(folder).unet.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_leaves_folders_alone_that_no_export_made(pipeline, tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "thesis.txt").write_text("mine")
    export(pipeline, tmp_path)
    assert (tmp_path / "unet" / "thesis.txt").read_text() == "mine"
    assert DiffusionPipeline.from_pretrained(tmp_path).unet.num_parameters() == pipeline.unet.num_parameters()


def test_a_hostile_index_removes_nothing_outside_of_the_folder(pipeline, tmp_path):
    """The folder may be a download; what its index calls a component is removed when an export replaces it."""
    target, outside = tmp_path / "download", tmp_path / "outside"
    target.mkdir()
    outside.mkdir()
    index = {"_class_name": "GenerationPipeline", "../outside": ["a", "B"], str(outside): ["a", "B"], ".": ["a", "B"]}
    (target / "model_index.json").write_text(json.dumps(index))
    export(pipeline, target)
    assert outside.is_dir()


def test_refuses_a_file_as_folder(pipeline, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is a file"):
        export(pipeline, tmp_path / "file")


def test_a_card_names_the_variant_that_is_there(pipeline, tmp_path):
    export(pipeline, tmp_path, variant="fp16")
    text = make_card(tmp_path, "user/name").text
    assert text.count("from_pretrained(") == text.count('variant="fp16"') == 3
    export(pipeline, tmp_path, variant="ema")
    export(pipeline, tmp_path)
    assert "variant" not in make_card(tmp_path, "user/name").text


FOREIGN = """
from diffusers import DDPMScheduler


class Foreign(DDPMScheduler):
    pass
"""


def test_a_card_promises_no_loading_without_trust_for_code_of_others(tmp_path, monkeypatch):
    (tmp_path / "foreign_scheduler.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(tmp_path)
    from foreign_scheduler import Foreign

    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    export(diffusers.DDPMPipeline(unet, Foreign()), tmp_path / "out")
    text = make_card(tmp_path / "out", "user/name").text
    assert text.count("```python") == text.count("trust_remote_code=True") == 1


def test_ignored_files_may_be_written_in_several_ways(tmp_path):
    for name in ("model_index.json", "figures/samples.png", "notes/mine.txt", "notes/deep/other.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    for pattern in ("figures", "figures/", "./figures", "./figures/"):
        assert files_to_push(tmp_path, [pattern]) == ["model_index.json"]
    allowed = files_to_push(tmp_path, ["notes/deep"], ["notes/"])
    assert allowed == ["figures/samples.png", "model_index.json", "notes/mine.txt"]


@pytest.mark.parametrize(
    ("given", "pushed"),
    [
        ({"train_data_dir": "/home/somebody/photos"}, {"train_data_dir": "./photos"}),
        ({"train_data_dir": "secret project/photos/"}, {"train_data_dir": "./photos"}),
        ({"output_dir": "C:\\somebody\\run"}, {"output_dir": "./run"}),
        ({"text_encoder": "../somebody/clip"}, {"text_encoder": "./clip"}),
        ({"model": "somebody/nets/own.py:Net"}, {"model": "./own.py:Net"}),
        ({"samples": {"model": "~/somebody/run", "seed": 0}}, {"samples": {"model": "./run", "seed": 0}}),
        ({"dataset_name": "user/name", "x": "a / b / c"}, {"dataset_name": "user/name", "x": "a / b / c"}),
        ({"hub_token": "hf_secret", "max_text_tokens": 7}, {"max_text_tokens": 7}),
    ],
)
def test_pushed_records_name_no_place_of_this_machine(given, pushed):
    assert without_places(given) == pushed


def test_a_folder_that_looks_like_a_name_on_the_hub_is_a_place(tmp_path, monkeypatch):
    (tmp_path / "secret" / "photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert without_places({"dataset_name": "secret/photos"}) == {"dataset_name": "./photos"}


def test_tries_again_only_after_temporary_errors():
    assert is_temporary(ConnectionError("lost"))
    assert not is_temporary(OfflineModeIsEnabled("asked for"))
    assert not is_temporary(ValueError("repo_id"))


def test_a_new_export_takes_old_code_of_others_away(pipeline, tmp_path):
    """A card, and a caller, find the pipeline's code by its name: there must be one."""
    export(pipeline, tmp_path)
    (tmp_path / "theirs_0123456789ab.py").touch()
    (tmp_path / "mine.py").touch()
    export(pipeline, tmp_path)
    assert not (tmp_path / "theirs_0123456789ab.py").exists()
    assert (tmp_path / "mine.py").exists()


def test_the_command_for_later_works_in_a_shell(tmp_path, caplog):
    """With a folder whose name has a space, and with logs that stay at home then, too."""
    pusher = HubPusher(tmp_path / "a run", "user/name", private=True, token="secret", logging_dir="my runs")
    pusher.push_last("Trained")
    assert "secret" not in caplog.text
    words = shlex.split(caplog.messages[-1].partition("with: diffusers-ext ")[2])
    folder = str(tmp_path / "a run")
    assert words[:6] == ["push", "--model", folder, "--repo_id", "user/name", "--private"]
    assert words[6:] == ["--ignore_patterns", "my runs"]
