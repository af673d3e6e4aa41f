"""What another machine does with the Hub: run as `python hub_worker.py JSON`, with a list of [step, argument, ...].

Prints a JSON list of what the steps found; a step that fails is {"error": ...}. With HIDE_PLUGIN in the environment the
machine has diffusers only. HF_ENDPOINT, HF_HOME and the token come from the environment, too, for huggingface_hub reads
them when it is imported.
"""

import contextlib
import importlib
import json
import os
import re
import sys
import traceback
from pathlib import Path

if os.environ.get("HIDE_PLUGIN"):

    class _Absent:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "diffusers_ext":
                raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    sys.meta_path.insert(0, _Absent())
else:
    import diffusers_ext

import diffusers
import torch
from diffusers import AutoModel, DiffusionPipeline
from huggingface_hub import HfApi, snapshot_download
from safetensors.torch import load_file, save_file

diffusers.utils.logging.disable_progress_bar()

# What makes the presets of each class small; their class and their other options stay.
SMALL = {
    "ADMUNet2DModel": {"base_channels": 32},
    "AnnotatedUNet2DModel": {"base_channels": 8, "zero_init_output": False},
    "AttentionUNet2DModel": {"down_widths": (8, 8, 8, 8), "mid_width": 8, "up_widths": (8, 8, 8)},
    "GuidedUNet2DModel": {"base_channels": 8},
    "SignalUNet1DModel": {
        "base_channels": 16,
        "channel_multipliers": (1, 2),
        "attention_resolutions": (2,),
        "patch_size": 1,
    },
    "SimpleUNet2DModel": {"widths": (8, 8, 8)},
    "ToyUNet2DModel": {"widths": (4, 8)},
}
SCHEDULERS = {
    "AncestralDDPMScheduler": {
        "beta_schedule": "exponential",
        "variance_type": "fixed_large",
        "gamma": "sigmoid_decay",
    },
    "SubsequenceDDIMScheduler": {"subsequence": "comp exp", "eta": 0.5, "prediction_type": "v_prediction"},
    "GuidedLangevinScheduler": {"rule": "langevin", "inner_steps": 2, "beta_schedule": "cosine"},
    "ScoreSDEScheduler": {"sde": "ve", "continuous": True, "corrector_steps": 1, "timestep_type": "sigma"},
    "MixScheduler": {"low": -1.0},
}


def trusted(source, **options):
    """A pipeline by repository or folder, by the code it brings."""
    revision = options.get("revision")
    files = os.listdir(source) if os.path.isdir(source) else HfApi().list_repo_files(source, revision=revision)
    (code,) = [file.removesuffix(".py") for file in files if re.fullmatch(r"\w+_[0-9a-f]{12}\.py", file)]
    return DiffusionPipeline.from_pretrained(source, **{"custom_pipeline": code, "trust_remote_code": True, **options})


def pipelines():
    """(repository's name, pipeline) for every preset, every scheduler, and diffusers' own classes."""
    for name, preset in diffusers_ext.PRESETS.items():
        torch.manual_seed(0)
        kind = diffusers_ext.SignalPipeline if preset.dims == 1 else diffusers_ext.GenerationPipeline
        yield f"preset-{name}", kind(_small(name), _scheduler_of(preset))
    for name, options in SCHEDULERS.items():
        torch.manual_seed(0)
        scheduler = getattr(diffusers_ext, name)(**options)
        yield f"scheduler-{name}", diffusers_ext.GenerationPipeline(_small("small"), scheduler)
    torch.manual_seed(0)
    options = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = diffusers.UNet2DModel(sample_size=16, **options, **kinds)
    yield "own-ddpm", diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    yield "own-ddim", diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler())
    named = {"id2label": {0: "cat", 1: "dog"}, "weak_unet": _small("small", num_class_embeds=2)}
    scheduler = diffusers_ext.SubsequenceDDIMScheduler()
    yield "classes", diffusers_ext.GenerationPipeline(_small("small", num_class_embeds=2), scheduler, **named)
    larger = _small("generative-pytorch-adm", condition_channels=1)
    yield "larger", diffusers_ext.GenerationPipeline(larger, scheduler, condition="super_resolution_2")


def _small(preset, **options):
    kind = diffusers_ext.PRESETS[preset].model_class.__name__
    return diffusers_ext.build_model(preset, sample_size=16, **SMALL[kind], **options)


def _scheduler_of(preset):
    if preset.beta_schedule is None:
        return diffusers_ext.MixScheduler()
    ends = dict(zip(("beta_start", "beta_end"), preset.betas or ()))
    return diffusers_ext.AncestralDDPMScheduler(
        num_train_timesteps=preset.num_train_timesteps,
        beta_schedule=preset.beta_schedule,
        prediction_type=preset.prediction_type,
        **ends,
    )


def sample(pipeline, **options):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(7)
    if pipeline.config.get("condition"):
        options = {"image": torch.full((2, 1, 8, 8), 0.5), **options}
    elif (pipeline.config.get("id2label") or {}) and "class_labels" not in options:
        options = {"class_labels": ["dog", "cat"], "guidance_scale": 2.0, **options}
    else:
        options = {"batch_size": 2, **options}
    result = pipeline(num_inference_steps=4, generator=generator, output_type="np", **options)
    return torch.from_numpy(result.audios if "audios" in result else result.images)


def module_of(something):
    return type(something).__module__.partition(".")[0]


def push(images_file, folder):
    """Push a repository of each kind, and remember the images of its pipeline."""
    images, folder = {}, Path(folder)
    for name, pipeline in pipelines():
        images[name] = sample(pipeline).contiguous()
        diffusers_ext.push_to_hub(pipeline, f"user/{name}")
    for number, pipeline in enumerate(_twins(folder)):
        images[f"twin-{number}"] = pipeline()
        diffusers_ext.export(pipeline, folder / f"twin-{number}")
        diffusers_ext.push_to_hub(folder / f"twin-{number}", f"user/twin-{number}")
    save_file(images, images_file)
    torch.manual_seed(0)
    large = diffusers_ext.build_model("small", base_channels=96)
    large = diffusers_ext.GenerationPipeline(large, diffusers_ext.AncestralDDPMScheduler())
    diffusers_ext.push_to_hub(large, "user/large", private=True)
    diffusers_ext.export(large, folder / "large", max_shard_size="6MB")
    _plant(folder / "planted")
    return sorted(images)


def push_stand_ins(folder):
    """For each card of this project: an untrained pipeline that takes what its calls give, under the name they say."""
    for card in sorted(Path(folder).glob("*.md")):
        text = card.read_text()
        (name,) = set(re.findall(r'from_pretrained\(\s*"([^"]+)"', text))
        labels = json.loads(next(iter(re.findall(r"class_labels=(\[.*?\])", text)), "[]"))
        network = _small("small", num_class_embeds=len(labels) or None)
        names = {"id2label": dict(enumerate(labels))} if labels else {}
        scheduler = diffusers_ext.SubsequenceDDIMScheduler()
        diffusers_ext.push_to_hub(diffusers_ext.GenerationPipeline(network, scheduler, **names), name)


TWIN = """
import torch
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import register_to_config

{name} = {number}


class Twin(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, size: int = 3):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(size))

    def forward(self, sample):
        return sample * self.weight * {name}
"""
TWIN_PIPELINE = """
import torch
from diffusers import DiffusionPipeline

{name} = {number}


class TwinPipeline(DiffusionPipeline):
    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self):
        return self.unet(torch.ones(3)) + {name}
"""


def _twins(folder):
    """Pipelines whose classes have the same names in files of the same name and size, and do different things."""
    for number in (3, 5):
        place = folder / f"twin-code-{number}"
        place.mkdir()
        (place / "twin.py").write_text(TWIN.format(name="FACTOR", number=number))
        (place / "twin_pipeline.py").write_text(TWIN_PIPELINE.format(name="OFFSET", number=number))
        sys.path.insert(0, str(place))
        importlib.invalidate_caches()
        twin, twin_pipeline = importlib.import_module("twin"), importlib.import_module("twin_pipeline")
        yield twin_pipeline.TwinPipeline(twin.Twin(), diffusers.DDPMScheduler())
        sys.path.remove(str(place))
        del sys.modules["twin"], sys.modules["twin_pipeline"]


# Appended to code files: leaves a trace when it is run.
TRAP = "\nimport os as _os\nopen(_os.environ['TRACE'], 'a').write(__name__ + ' ')\n"


def _plant(folder):
    """Repositories whose code must not be run: as we write them, with plain names, and with somebody else's."""
    pipeline = diffusers_ext.GenerationPipeline(_small("small"), diffusers_ext.AncestralDDPMScheduler())
    for kind in ("ours", "plain", "foreign", "pair"):
        place = diffusers_ext.export(pipeline, folder / kind)
        index = json.loads((place / "model_index.json").read_text())
        for component in ("unet", "scheduler"):
            code = place / component / f"{index[component][0]}.py"
            code.write_text(code.read_text() + TRAP)
            library = {"plain": "diffusers_ext", "foreign": "evil"}.get(kind)
            if library is not None:
                code.rename(code.with_name(f"{library}.py"))
                index[component][0] = library
        for file in place.glob("*.py"):
            file.write_text(file.read_text() + TRAP)
        if kind == "pair":
            index["_class_name"] = ["pipeline", "GenerationPipeline"]
        (place / "model_index.json").write_text(json.dumps(index))
        diffusers_ext.push_to_hub(place, f"user/planted-{kind}")


def load(images_file, names, **options):
    """Load by name and compare; the classes' homes and whether the images are the same."""
    images, found = load_file(images_file), {}
    for name in names:
        by_code = os.environ.get("HIDE_PLUGIN") and not name.startswith("own-")
        pipeline = (trusted if by_code else DiffusionPipeline.from_pretrained)(f"user/{name}", **options)
        found[name] = {
            "same": torch.equal(sample(pipeline), images[name]),
            "from": sorted({module_of(part) for part in (pipeline, pipeline.unet, pipeline.scheduler)}),
        }
    return found


def load_twins(images_file, folder):
    """Load both, then call both: from the Hub and from folders, by each way of naming the pipeline."""
    images, found = load_file(images_file), {}
    for place in ("user", folder):
        for custom in (None, "pipeline", "source"):
            loaded = []
            for source in (f"{place}/twin-0", f"{place}/twin-1"):
                options = {"custom_pipeline": source if custom == "source" else custom} if custom else {}
                loaded.append(trusted(source, **options))
            same = [torch.equal(pipeline(), images[f"twin-{n}"]) for n, pipeline in enumerate(loaded)]
            found[f"{'hub' if place == 'user' else 'folder'}, {custom}"] = same
    return found


def load_twice(images_file, name):
    """Two pipelines of one repository, the first used after the second was loaded, in training, too."""
    first, second = (trusted(f"user/{name}") for _ in range(2))
    first.unet.enable_gradient_checkpointing()
    first.unet.train()
    first.unet(torch.zeros(1, 1, 16, 16), 5).sample.sum().backward()
    same = [torch.equal(sample(pipeline), load_file(images_file)[name]) for pipeline in (first, second)]
    return same, first.unet.config == second.unet.config


def load_planted(kind, **options):
    """Whether a repository with planted code loads and samples, and what ran of it."""
    trace = Path(os.environ["TRACE"])
    trace.unlink(missing_ok=True)
    try:
        by_code = os.environ.get("HIDE_PLUGIN")
        sample((trusted if by_code else DiffusionPipeline.from_pretrained)(f"user/planted-{kind}", **options))
        answer = "loaded"
    except ValueError as error:
        answer = str(error)
    return answer, trace.read_text() if trace.exists() else ""


def load_parts():
    """A network and a scheduler without the pipeline."""
    name = "user/preset-small"
    networks = [AutoModel.from_pretrained(name, subfolder="unet")]
    networks.append(diffusers_ext.AnnotatedUNet2DModel.from_pretrained(name, subfolder="unet"))
    scheduler = diffusers_ext.AncestralDDPMScheduler.from_pretrained(name, subfolder="scheduler")
    return [type(part).__name__ for part in (*networks, scheduler)]


def load_large(folder):
    """The weights from the Hub and from a folder with several files of weights."""
    with contextlib.suppress(OSError):  # older clients leave it to the caller to go on
        DiffusionPipeline.from_pretrained("user/large")
    pipelines = [DiffusionPipeline.from_pretrained(source) for source in ("user/large", folder)]
    ours, theirs = (pipeline.unet.state_dict() for pipeline in pipelines)
    return {
        "same": all(torch.equal(ours[key], theirs[key]) for key in ours),
        "files": len(list(Path(folder, "unet").iterdir())),
    }


def load_private(who, **options):
    """What is said to somebody who may not see a repository."""
    try:
        DiffusionPipeline.from_pretrained("user/large", **options)
    except OSError as error:
        return " ".join(f"{error} {error.__cause__}".split())
    return "loaded"


def download(name):
    """The whole repository, into the cache."""
    return snapshot_download(f"user/{name}")


def load_offline(images_file, name):
    """By name, from the cache."""
    return torch.equal(sample(DiffusionPipeline.from_pretrained(f"user/{name}")), load_file(images_file)[name])


def load_snapshot(images_file, name):
    """Offline: the folder of the cache, with the code in it."""
    folder = snapshot_download(f"user/{name}", local_files_only=True)
    pipeline = trusted(folder)
    return torch.equal(sample(pipeline), load_file(images_file)[name])


def push_again(folder):
    """Push three states of one repository, with somebody else's files between them, and a pull request."""
    api, name, found = HfApi(), "user/again", {}
    scheduler = diffusers_ext.SubsequenceDDIMScheduler()
    for state in range(3):
        torch.manual_seed(state)
        weak = {"weak_unet": _small("small")} if state == 0 else {}
        pipeline = diffusers_ext.GenerationPipeline(_small("small"), scheduler, **weak)
        found[f"images {state}"] = sample(pipeline).sum().item()
        place = diffusers_ext.export(pipeline, folder, max_shard_size="100KB" if state == 0 else "5GB")
        info = diffusers_ext.push_to_hub(place, name, create_pr=state == 2)
        found[f"commit {state}"] = info.oid
        found[f"files {state}"] = api.list_repo_files(name, revision=info.pr_revision)
        if state == 0:
            api.upload_file(path_or_fileobj=b"mine", path_in_repo="unet/mine.txt", repo_id=name)
    diffusers_ext.push_to_hub(place, name, revision="experiment")
    for revision in (found["commit 0"], "main", "refs/pr/1", "experiment"):
        pipeline = DiffusionPipeline.from_pretrained(name, revision=revision)
        found[f"images of {revision}"] = sample(pipeline).sum().item()
    return found


def load_revision(revision):
    """Without the plugin, where code comes along: the images of a revision."""
    return sample(trusted("user/again", revision=revision)).sum().item()


def run_snippets(card, folder):
    """Run the Python blocks of a card exactly as they are printed; how many images each made."""
    made = []
    for block in re.findall(r"```python\n(.*?)```", Path(folder, f"{card}.md").read_text(), flags=re.DOTALL):
        if ("import diffusers_ext" in block) == bool(os.environ.get("HIDE_PLUGIN")):
            continue
        names = {}
        exec(compile(block, card, "exec"), names)
        made.append([type(names["pipe"].scheduler).__name__, len(names["images"])])
    return made


def _report(step, *arguments):
    options = arguments[-1] if arguments and isinstance(arguments[-1], dict) else {}
    try:
        return globals()[step](*(a for a in arguments if a is not options), **options)
    except Exception:
        return {"error": traceback.format_exc()}


if __name__ == "__main__":
    print(json.dumps([_report(*step) for step in json.loads(sys.argv[1])]))
