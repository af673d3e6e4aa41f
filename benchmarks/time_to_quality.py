"""Seconds of training, from nothing, to a good class-conditional model of digits: ours against its peers'.

Good means: of 2,000 samples the classifier finds at least 97 % to be the digit asked for, and their Frechet distance
from as many test images, by the classifier's features, is under three times that of as many other real images. One
classifier and one code measure all, each with the sampler and guidance that it uses itself. Measuring is not counted.

    python benchmarks/time_to_quality.py --classifier DIR [--dataset_name DIR] [--seeds 0 1 2] [--budgets 60 90 120 180]

Ours is trained as a user would: `--max_train_seconds` for each of the budgets in turn, every time from nothing, until
one of them is enough; its learning rate knows its budget, and no run goes on from another. The time in which
`--mixed_precision auto` tries its modes counts. Peers, whose learning rates are constant, are trained in one run each
that is measured at `--peer_points` moments from half our time to `--peer_factor` times it, where they are stopped.

- course: unit 2 of Hugging Face's diffusion course: UNet2DModel with an embedding of the class beside the image, Adam
  at 1e-3, batches of 128, no average, no guidance.
- denoising-diffusion-pytorch: its U-Net for classifier-free guidance (`--package_dim`) under its `Trainer` with the
  defaults: Adam at 1e-4, batches of 16, an average of decay 0.995; guidance by each of `--package_guidance`, of which
  the best counts: 6 is its default, and more than the Frechet distance likes.

Their 1,000 steps of sampling would take hours: `--peer_sampling_steps 50` has them take DDIM steps (the second by its
own `sampling_timesteps`); 1000 has each walk its own ancestral way. Where 200 samples are under 94 % no more are drawn.
The sampler, steps and guidance that README gives for ours were chosen with this same measure.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import peers
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

from diffusers_ext.cli.evaluate import cycled
from diffusers_ext.cli.real_images import RealDataArguments, real_and_baseline
from diffusers_ext.cli.shared import DTYPES, load_classifier
from diffusers_ext.data.images import load_image_data
from diffusers_ext.evaluation.features import extract
from diffusers_ext.evaluation.metrics import frechet_distance
from diffusers_ext.pipelines.batched_generation import generate_images
from diffusers_ext.schedulers.registry import SamplerChoice
from diffusers_ext.training import Trainer
from diffusers_ext.training.arguments import TrainingArguments
from diffusers_ext.training.callbacks import FiguresCallback, PreviewCallback
from diffusers_ext.training.precision import cpu_multiplies_bf16

FASTER_DTYPE = "bfloat16" if cpu_multiplies_bf16() else "float32"

ACCURACY, BASELINES = 0.97, 3.0
SCREENING_SAMPLES, SCREENING_ACCURACY = 200, 0.94
AMX = getattr(torch.cpu, "_is_amx_tile_supported", bool)()
TARGET_SECONDS, TARGET_FACTOR = 60.0 if AMX else 150.0, 10.0
RESOLUTION, CLASSES, BATCH_SIZE = 28, 10, 250
Sample = Callable[[torch.Tensor], torch.Tensor]  # classes (number,) -> images (number, 1, 28, 28) in [-1, 1]


# --- the measure -----------------------------------------------------------------------------------------------------


@dataclass
class Grade:
    """What the classifier says of samples; `seconds` is the time of sampling and judging."""

    samples: int
    accuracy: float
    frechet: float
    seconds: float


class Exam:
    """One classifier, one list of classes, one set of real images for all."""

    def __init__(self, arguments: argparse.Namespace, channels: int = 1, resolution: int = RESOLUTION):
        self.classifier = load_classifier(arguments.classifier, "cpu")
        self.dtype = DTYPES[arguments.sampling_dtype]
        self.samples, data = arguments.num_samples, RealDataArguments(dataset_name=arguments.dataset_name)
        size = {"channels": channels, "resolution": resolution}
        sets = real_and_baseline(data, self.samples, size, list(range(CLASSES)))
        self.real, baseline = (extract(s.batches(), self.classifier, self.classifier, s.labels) for s in sets)
        assert self.real.labels is not None
        self.labels = cycled(self.real.labels, self.samples)
        self.baseline = frechet_distance(baseline.features, self.real.features)
        right = 100 * (self.real.accuracy() or 0)
        print(
            f"classifier: {self.classifier.description()}, {right:.2f} % right on {len(self.real):,} ({sets[0].split})"
        )
        print(
            f"Frechet distance of {len(baseline):,} other real images ({sets[1].split}): {self.baseline:.3f}",
            flush=True,
        )

    def grade(self, sample: Sample) -> Grade:
        """Of all samples; of the first few, where these leave no hope."""
        began = time.perf_counter()
        grade = self.measure(sample, min(SCREENING_SAMPLES, self.samples), began)
        return grade if grade.accuracy < SCREENING_ACCURACY else self.measure(sample, self.samples, began)

    def measure(self, sample: Sample, number: int, began: float) -> Grade:
        """Of the first `number` samples; `began` is when their time began."""
        labels = self.labels[:number]
        with torch.random.fork_rng(), torch.no_grad(), torch.autocast("cpu", self.dtype, self.dtype != torch.float32):
            torch.manual_seed(0)
            images = torch.cat([sample(part).float() for part in labels.split(BATCH_SIZE)])
        images = images.nan_to_num().clamp(-1, 1)  # a young network may give what is no number, and fails for it
        found = extract(images.split(BATCH_SIZE), self.classifier, self.classifier, labels)
        distance = frechet_distance(found.features, self.real.features)
        return Grade(number, found.accuracy() or 0.0, distance, time.perf_counter() - began)

    def passed(self, grade: Grade) -> bool:
        enough = grade.samples == self.samples and grade.accuracy >= ACCURACY
        return enough and grade.frechet < BASELINES * self.baseline

    def tell(self, who: str, seed: int, steps: int, seconds: float, grade: Grade) -> None:
        print(
            f"{who}, seed {seed}, {seconds:.0f} s of training, {steps:,} steps: "
            f"accuracy {100 * grade.accuracy:.2f} % of {grade.samples:,}, Frechet {grade.frechet:.3f}, "
            f"{grade.frechet / self.baseline:.2f} times the real-data baseline"
            f"{': reached' if self.passed(grade) else ''} (measured in {grade.seconds:.0f} s)",
            flush=True,
        )


# --- ours ------------------------------------------------------------------------------------------------------------


# Settings of a run that does nothing beside training; its folder is overwritten.
ONLY_TRAIN: dict[str, Any] = {
    **dict.fromkeys(("validation_steps", "save_model_epochs", "checkpointing_steps"), peers.FOREVER),
    "logger": "none",
    "overwrite_output_dir": True,
}


def check_kept(folder: Path, arguments: argparse.Namespace, free: tuple[str, ...] = ("output_dir",)) -> None:
    """End the program if the runs kept in `folder` were made with other arguments; those in `free` may differ."""
    file = folder / "arguments.json"
    now = {name: value for name, value in vars(arguments).items() if name not in free}
    if not file.is_file() and folder.is_dir() and any(folder.iterdir()):
        raise SystemExit(f"'{folder}' is not empty, and nothing says what is in it; choose another --output_dir.")
    before = json.loads(file.read_text()) if file.is_file() else now
    if before != now:
        names = ", ".join(name for name in now if before.get(name) != now[name])
        raise SystemExit(f"'{folder}' holds runs made with other values of {names}; choose another --output_dir.")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(now))


def without_pictures(trainer: Trainer) -> Trainer:
    """The trainer without previews and figures."""
    callbacks = trainer.run.callbacks
    callbacks.callbacks = [c for c in callbacks.callbacks if not isinstance(c, PreviewCallback | FiguresCallback)]
    return trainer


def train_ours(arguments: argparse.Namespace, exam: Exam, seed: int) -> float | None:
    """The smallest of the budgets that is enough, or None."""
    for budget in sorted(arguments.budgets):
        with run_folder(arguments.output_dir, f"seed-{seed}-{budget:g}s") as folder:
            trainer = without_pictures(Trainer(_settings(arguments, seed, budget, folder)))
            pipeline: Any = trainer.train()
        grade = exam.grade(_sampler(pipeline, trainer.args, arguments))
        seconds = trainer.run.seconds_probing + trainer.state.seconds
        exam.tell("ours", seed, trainer.state.global_step, seconds, grade)
        if exam.passed(grade):
            return seconds
    return None


@contextlib.contextmanager
def run_folder(parent: str | None, name: str) -> Iterator[str]:
    """Where a run is written: below `parent`, or gone afterwards."""
    if parent is not None:
        yield os.path.join(parent, name)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield folder


def _settings(arguments: argparse.Namespace, seed: int, budget: float, folder: str) -> Any:
    wanted = {name: getattr(arguments, name) for name in ("model", "mixed_precision", "train_batch_size")}
    changes = {name: value for name, value in wanted.items() if value is not None}
    return TrainingArguments.from_recipe(
        arguments.recipe,
        dataset_name=arguments.dataset_name,
        seed=seed,
        max_train_seconds=budget,
        num_epochs=10**4,
        output_dir=folder,
        **ONLY_TRAIN,
        **changes,
    )


def _sampler(pipeline: Any, settings: Any, arguments: argparse.Namespace) -> Sample:
    """The recipe's sampler, but for what the flags say."""
    pipeline.set_progress_bar_config(disable=True)
    if arguments.sampler is not None:
        choice = SamplerChoice.parse(arguments.sampler)
        choice = choice.with_options({"subsequence": arguments.subsequence})
        pipeline.scheduler = choice.build(pipeline.scheduler.config)
    scale = settings.guidance_scale if arguments.guidance_scale is None else arguments.guidance_scale
    options = {
        "num_inference_steps": arguments.num_inference_steps or settings.ddpm_num_inference_steps,
        "guidance_scale": scale,
    }
    numbers = itertools.count()
    return lambda labels: generate_images(pipeline, len(labels), labels, len(labels), next(numbers), **options)


# --- peers -----------------------------------------------------------------------------------------------------------


class ClassConditionedUnet(torch.nn.Module):
    """Of the course's notebook."""

    def __init__(self, num_classes: int = CLASSES, class_emb_size: int = 4):
        super().__init__()
        self.class_emb = torch.nn.Embedding(num_classes, class_emb_size)
        self.model = UNet2DModel(in_channels=1 + class_emb_size, out_channels=1, **peers.COURSE_NETWORK)

    def forward(self, x: torch.Tensor, t: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        bs, _, w, h = x.shape
        class_cond = self.class_emb(class_labels)
        class_cond = class_cond.view(bs, class_cond.shape[1], 1, 1).expand(bs, class_cond.shape[1], w, h)
        return self.model(torch.cat((x, class_cond), 1), t).sample


class Course:
    """The course's notebook: its loop and its way to sample."""

    name = "course"

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, arguments: argparse.Namespace, folder: str):
        self.net, self.sampling_steps, self.steps = ClassConditionedUnet(), arguments.peer_sampling_steps, 0
        self.noise_scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")
        self._loop = self._train((images + 1) / 2, labels)

    def _train(self, images: torch.Tensor, labels: torch.Tensor) -> Iterator[None]:
        dataset = torch.utils.data.TensorDataset(images, labels)
        train_dataloader = torch.utils.data.DataLoader(dataset, batch_size=128, shuffle=True)
        loss_fn = torch.nn.MSELoss()
        opt = torch.optim.Adam(self.net.parameters(), lr=1e-3)
        losses = []
        while True:
            for x, y in train_dataloader:
                x = x * 2 - 1
                noise = torch.randn_like(x)
                timesteps = torch.randint(0, 999, (x.shape[0],)).long()
                noisy_x = self.noise_scheduler.add_noise(x, noise, timesteps)
                pred = self.net(noisy_x, timesteps, y)
                loss = loss_fn(pred, noise)
                opt.zero_grad()
                loss.backward()
                opt.step()
                losses.append(loss.item())
                yield

    def train(self, seconds: float) -> float:
        """At least so many seconds more; how many it were."""
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            next(self._loop)
            self.steps += 1
        return time.perf_counter() - began

    def ways(self) -> Iterator[tuple[str, Sample]]:
        yield self.name, self.sample

    def sample(self, labels: torch.Tensor) -> torch.Tensor:
        scheduler: Any = self.noise_scheduler
        if self.sampling_steps < len(scheduler):
            # "leading" times, as its configuration says: the notebook never trains at t = 999, the first trailing one.
            scheduler = DDIMScheduler.from_config(scheduler.config)
        noise = torch.randn(len(labels), 1, RESOLUTION, RESOLUTION)
        return sampled(scheduler, self.sampling_steps, lambda x, t: self.net(x, t, labels), noise)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the bars of ten steps each."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def sampled(
    scheduler: Any, steps: int, predict: Callable[[torch.Tensor, Any], torch.Tensor], noise: torch.Tensor
) -> torch.Tensor:
    """Samples from noise, by one of diffusers' schedulers."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        noise = scheduler.step(predict(noise, t).float(), t, noise).prev_sample
    return noise


class LabelledDiffusion(torch.nn.Module):
    """denoising-diffusion-pytorch's guided diffusion for its `Trainer`, which knows of no classes: they come as a
    second channel."""

    channels, image_size, is_ddim_sampling = 1, RESOLUTION, False

    def __init__(self, diffusion: Any):
        super().__init__()
        self.diffusion = diffusion

    def forward(self, packed: torch.Tensor) -> torch.Tensor:
        return self.diffusion(packed[:, :1], classes=packed[:, 1, 0, 0].long())


class PackedImages(torch.utils.data.Dataset):
    """Images in [0, 1], each with a second channel that is its class."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = self.images[index]
        return torch.cat([image, torch.full_like(image, float(self.labels[index]))])


class Package:
    """denoising-diffusion-pytorch: `Trainer` and `sample` as they are."""

    name = "denoising-diffusion-pytorch"

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, arguments: argparse.Namespace, folder: str):
        guided = peers.load("denoising_diffusion_pytorch.classifier_free_guidance")
        net = guided.Unet(dim=arguments.package_dim, num_classes=CLASSES, dim_mults=(1, 2, 4), channels=1)
        steps = arguments.peer_sampling_steps
        diffusion = guided.GaussianDiffusion(net, image_size=RESOLUTION, timesteps=1000, sampling_timesteps=steps)
        packed = PackedImages((images + 1) / 2, labels)
        self.trainer = peers.package_trainer(LabelledDiffusion(diffusion), packed, folder)
        self.scales = arguments.package_guidance

    @property
    def steps(self) -> int:
        return self.trainer.step

    def train(self, seconds: float) -> float:
        """At least so many seconds more; how many it were."""
        began = time.perf_counter()
        with quietly():
            while time.perf_counter() - began < seconds:
                self.trainer.train_num_steps = self.trainer.step + 10
                self.trainer.train()
        return time.perf_counter() - began

    def ways(self) -> Iterator[tuple[str, Sample]]:
        for scale in self.scales:
            yield f"{self.name}, guidance {scale:g}", partial(self.sample, scale)

    def sample(self, scale: float, labels: torch.Tensor) -> torch.Tensor:
        with quietly():
            return self.trainer.ema.ema_model.diffusion.sample(classes=labels, cond_scale=scale) * 2 - 1


PEERS: dict[str, Any] = {peer.name: peer for peer in (Course, Package)}


def train_peer(
    name: str, arguments: argparse.Namespace, exam: Exam, seed: int, first: float, bound: float
) -> float | None:
    """Seconds of training at the first of the moments at which the peer passes, or None."""
    torch.manual_seed(seed)
    data = load_image_data(arguments.dataset_name, None, None, "train", resolution=RESOLUTION)
    assert data.labels is not None
    images, trained = data.__getitems__(range(len(data)))["samples"], 0.0
    with tempfile.TemporaryDirectory() as folder:
        peer = PEERS[name](images, data.labels, arguments, folder)
        for moment in moments(first / 2, bound, arguments.peer_points):
            if moment <= trained:  # steps take longer than the moments are apart
                continue
            trained += peer.train(moment - trained)
            for way, sample in peer.ways():
                grade = exam.grade(sample)
                exam.tell(way, seed, peer.steps, trained, grade)
                if exam.passed(grade):
                    return trained
    return None


def moments(first: float, last: float, number: int) -> list[float]:
    """`number` times from `first` to `last`, each the same factor after the one before."""
    if number == 1 or last <= first:
        return [last]
    return [first * (last / first) ** (k / (number - 1)) for k in range(number)]


# --- the table -------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """Seconds of training that were enough, or that were not."""

    seconds: float
    reached: bool

    def __str__(self) -> str:
        return f"{'' if self.reached else '> '}{self.seconds:.0f}"


def report(results: dict[str, list[Result]]) -> None:
    """A row a contestant: seconds by seed, and how many times ours."""
    print(f"\n{'':28s} {'seconds of training by seed':>30s}   times ours")
    ours = results["ours"]
    for name, column in results.items():
        if not column:
            continue
        print(f"{name:28s} {', '.join(map(str, column)):>30s}   ", end="")
        if name == "ours":
            median, reached = statistics.median(r.seconds for r in column), all(r.reached for r in column)
            print(f"median {'meets' if reached and median < TARGET_SECONDS else 'misses'} {TARGET_SECONDS:.0f} s")
        elif ours and all(own.reached for own in ours):
            factor = round(statistics.median(r.seconds / own.seconds for r, own in zip(column, ours)), 2)
            seen = all(r.reached for r in column)
            verdict = "meets" if factor >= TARGET_FACTOR else "misses" if seen else "too short to tell of"
            print(f"{'' if seen else 'at least '}{factor:g}, {verdict} {TARGET_FACTOR:g}")
        else:
            print("not known, since ours was not good in time" if ours else "not known, since ours was left out")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--classifier", required=True, help="folder of a classifier (`diffusers-ext classifier train`)")
    parser.add_argument("--dataset_name", default="embedded")
    parser.add_argument("--recipe", default="mnist-classes")
    parser.add_argument("--model", help="of ours; the recipe's if not given")
    parser.add_argument("--mixed_precision", help="of ours; the recipe's if not given")
    parser.add_argument("--train_batch_size", type=int, help="of ours; the recipe's if not given")
    parser.add_argument("--sampler", help="of ours: ddim, dpmsolver++, ...; the recipe's if not given")
    parser.add_argument("--subsequence", default="uniform", help="of --sampler ddim")
    parser.add_argument("--num_inference_steps", type=int, help="of ours; the recipe's if not given")
    parser.add_argument("--guidance_scale", type=float, help="of ours; the recipe's if not given")
    parser.add_argument("--budgets", type=float, nargs="*", default=[60, 90, 120, 180, 240], help="none: peers only")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output_dir", help="keep our runs here, a folder each")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--peer_factor", type=float, default=10.0)
    parser.add_argument(
        "--peer_seconds", type=float, default=math.inf, help="stop peers after so many seconds, whatever our time was"
    )
    parser.add_argument("--peer_points", type=int, default=8)
    parser.add_argument("--peer_sampling_steps", type=int, default=50)
    parser.add_argument("--package_dim", type=int, default=28)
    parser.add_argument("--package_guidance", type=float, nargs="+", default=[1.5, 6.0])
    parser.add_argument("--num_samples", type=int, default=2000)
    parser.add_argument("--sampling_dtype", choices=("float32", "bfloat16"), default=FASTER_DTYPE)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if not arguments.budgets and arguments.peer_seconds == math.inf:
        parser.error("--budgets without a number needs --peer_seconds, which are ten times ours otherwise.")
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {arguments.threads} threads")
    exam = Exam(arguments)
    results: dict[str, list[Result]] = {name: [] for name in ("ours", *arguments.peers)}
    for seed in arguments.seeds:
        own = train_ours(arguments, exam, seed)
        first = own or max(arguments.budgets, default=arguments.peer_seconds / arguments.peer_factor)
        if arguments.budgets:
            results["ours"].append(Result(first, own is not None))
        bound = min(arguments.peer_factor * first, arguments.peer_seconds)
        for name in arguments.peers:
            found = train_peer(name, arguments, exam, seed, first, bound)
            results[name].append(Result(found or bound, found is not None))
    report(results)


if __name__ == "__main__":
    main()
