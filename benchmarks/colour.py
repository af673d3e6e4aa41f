"""Time to quality in colour: seconds that ours needs for the quality that two peers reach, on 32x32 images.

    python benchmarks/colour.py --classifier DIR --dataset_name CIFAR --output_dir DIR [--picture FILE]

All are trained from nothing, without classes, since the peers' trainers take none. The measure is the Frechet distance
of `--num_samples` samples from as many test images, by the features of one classifier. Less is better.

- diffusers: the network and the loop of examples/unconditional_image_generation/train_unconditional.py with
  `--use_ema` and its other defaults: AdamW at 1e-4, 500 steps of warm-up, batches of 16.
- package: denoising-diffusion-pytorch's `Unet` of dim 64 under its `Trainer` with the defaults: Adam at 1e-4, batches
  of 16, random flips, an average of decay 0.995. Its loader's own processes are not counted.
- ours: the recipe images32, once for each of `--budgets`, every time from nothing.

Seconds are processor seconds of one thread, so other work on the machine does not count. Peers are measured at each of
`--peer_seconds` of one run. Ours stops when its processor seconds are spent. Its learning rate needs the number of
steps, so a few steps are timed before; this, and what the peers' precision is chosen by, is not counted.

Peers' defaults are float32. A peer is trained in bf16 instead if its steps are over 10 % faster so. Their 1,000 steps
of sampling would take hours: they take `--peer_sampling_steps` of DDIM. Ours takes the sampler of its recipe.

What is in `--output_dir` already is neither trained nor measured again, so contestants can be run side by side:
`--train_only` leaves out measuring, `--peers` and `--budgets` choose contestants, and the last call prints the table.
A run of another seed, recipe or data set than asked for is refused; one that was measured otherwise is measured again.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import peers
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from time_to_quality import ONLY_TRAIN, Exam, quietly, sampled, without_pictures

from diffusers_ext.data.images import load_image_data
from diffusers_ext.figures.images import image_grid
from diffusers_ext.pipelines.batched_generation import generate_images
from diffusers_ext.training import Trainer, TrainingArguments
from diffusers_ext.training.callbacks import TrainerCallback
from diffusers_ext.training.precision import cpu_multiplies_bf16

RESOLUTION, CHANNELS, PEER_BATCH = 32, 3, 16
TIMED_STEPS, UNTIMED_STEPS, FASTER = 4, 1, 1.1
OWN_TIMED_STEPS, MARGIN = 40, 0.98  # ours ends a little early rather than before its learning rate has come down
TARGET_FACTOR, TARGET_SECONDS = 5.0, 3600.0  # so many times less than the peer's hour
PICTURED = 64
Weights = dict[str, torch.Tensor]
SampleNumber = Callable[[int], torch.Tensor]  # a number -> so many images in [-1, 1]


# --- peers -----------------------------------------------------------------------------------------------------------


class DiffusersExample:
    """diffusers' example: its network, its loop, its average."""

    name = "diffusers"

    def __init__(self, images: torch.Tensor, precision: str, folder: str):
        peers.forget_precision()
        self.net = self.network()
        with quietly():
            self.loop = peers.diffusers_example(self.net, images, PEER_BATCH, precision, folder)

    def step(self) -> None:
        with quietly():
            self.average = next(self.loop)

    def weights(self) -> Weights:
        """The averaged weights."""
        names = (name for name, _ in self.net.named_parameters())
        return dict(zip(names, self.average.shadow_params))

    @staticmethod
    def network() -> Any:
        return peers.example_network()

    @staticmethod
    def sample(net: Any, steps: int, number: int) -> torch.Tensor:
        trained: Any = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
        noise = torch.randn(number, CHANNELS, RESOLUTION, RESOLUTION)
        return sampled(DDIMScheduler.from_config(trained.config), steps, lambda x, t: net(x, t).sample, noise)


class FlippedImages(torch.utils.data.Dataset):
    """Images in [0, 1], each flipped with probability 1/2, as denoising-diffusion-pytorch's own data set gives them."""

    def __init__(self, images: torch.Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = (self.images[index] + 1) / 2
        return image.flip(-1) if torch.rand(()) < 0.5 else image


class Package:
    """denoising-diffusion-pytorch: its network, `Trainer` and `sample`."""

    name = "package"

    def __init__(self, images: torch.Tensor, precision: str, folder: str):
        options = {"amp": precision == "bf16", "mixed_precision_type": "bf16"}
        diffusion = self._diffusion(self.network())
        self.trainer = peers.package_trainer(diffusion, FlippedImages(images), folder, **options)

    @staticmethod
    def _diffusion(net: Any, steps: int | None = None) -> Any:
        package = peers.load("denoising_diffusion_pytorch")
        return package.GaussianDiffusion(net, image_size=RESOLUTION, timesteps=1000, sampling_timesteps=steps)

    def step(self) -> None:
        with quietly():
            self.trainer.train_num_steps = self.trainer.step + 1
            self.trainer.train()

    def weights(self) -> Weights:
        """The averaged weights."""
        return self.trainer.ema.ema_model.model.state_dict()

    @staticmethod
    def network() -> Any:
        return peers.package_network(64, (1, 2, 4, 8), CHANNELS)

    @classmethod
    def sample(cls, net: Any, steps: int, number: int) -> torch.Tensor:
        with quietly():
            return cls._diffusion(net, steps).eval().sample(batch_size=number) * 2 - 1


PEERS: dict[str, Any] = {peer.name: peer for peer in (DiffusersExample, Package)}


def images_per_second(kind: Any, images: torch.Tensor, precision: str, folder: str) -> float:
    """Of training, in processor time."""
    peer = kind(images, precision, folder)
    for _ in range(UNTIMED_STEPS):
        peer.step()
    began = time.process_time()
    for _ in range(TIMED_STEPS):
        peer.step()
    return TIMED_STEPS * PEER_BATCH / (time.process_time() - began)


def best_precision(kind: Any, images: torch.Tensor, folder: str) -> str:
    """float32, the default of both peers, unless bf16 is over 10 % faster."""
    if not cpu_multiplies_bf16():
        return "no"
    speeds = {precision: images_per_second(kind, images, precision, folder) for precision in ("no", "bf16")}
    chosen = "bf16" if speeds["bf16"] > FASTER * speeds["no"] else "no"
    told = f"{speeds['no']:.1f} images/s in float32, {speeds['bf16']:.1f} in bf16"
    print(f"{kind.name}: {told}; trained in {'bf16' if chosen == 'bf16' else 'float32'}", flush=True)
    return chosen


# --- training --------------------------------------------------------------------------------------------------------


@dataclass
class Point:
    """A contestant after some training; `frechet` of so many `samples` is None until it is measured.

    `trained_with` and `measured_with` are the flags that it depends on; they are empty where they were not noted.
    """

    who: str
    seconds: float
    steps: int
    images: int
    frechet: float | None = None
    samples: int = 0
    trained_with: dict[str, Any] = field(default_factory=dict)
    measured_with: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        trained = f"{self.who}, {self.seconds:.0f} s of training, {self.steps:,} steps, {self.images:,} images"
        return trained if self.frechet is None else f"{trained}: Frechet distance {self.frechet:.3f}"


class ProcessorLimit(TrainerCallback):
    """Stop when so many processor seconds have passed since the first step began."""

    def __init__(self, seconds: float):
        self.limit, self.times = seconds, [0.0]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times = [time.process_time()]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times.append(time.process_time())
        if self.seconds >= self.limit:
            control.should_training_stop = True

    @property
    def seconds(self) -> float:
        return self.times[-1] - self.times[0]

    def seconds_per_step(self) -> float:
        """Over the second half of the steps: the first ones also set up."""
        half = self.times[len(self.times) // 2 :]
        return (half[-1] - half[0]) / (len(half) - 1)


class Contest:
    """Trains and measures in one folder, where every point has a folder."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments, self.folder = arguments, Path(arguments.output_dir)

    @functools.cached_property
    def exam(self) -> Exam:
        return Exam(self.arguments, channels=CHANNELS, resolution=RESOLUTION)

    def place(self, who: str, budget: float) -> Path:
        return self.folder / f"{who}-{budget:g}"

    def flags(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self.arguments, name) for name in names}

    def trained_with(self, who: str) -> dict[str, Any]:
        own = () if who in PEERS else ("recipe", "mixed_precision")
        return self.flags("dataset_name", "seed", *own)

    def measured_with(self, who: str) -> dict[str, Any]:
        steps = "peer_sampling_steps" if who in PEERS else "num_inference_steps"
        return self.flags("classifier", "num_samples", "sampling_dtype", steps)

    def kept(self, who: str, budget: float) -> Point | None:
        """A point that is there already. Raises SystemExit for one that was trained with other flags."""
        file = self.place(who, budget) / "point.json"
        if not file.is_file():
            return None
        point, now = Point(**json.loads(file.read_text())), self.trained_with(who)
        for name, value in point.trained_with.items():
            if value != now[name]:
                raise SystemExit(
                    f"error: '{file.parent}' was trained with --{name} {value}; choose another --output_dir."
                )
        return point

    def keep(self, budget: float, point: Point) -> None:
        place = self.place(point.who, budget)
        place.mkdir(parents=True, exist_ok=True)
        (place / "point.json").write_text(json.dumps(asdict(point)))
        print(point, flush=True)

    def train_peer(self, name: str) -> None:
        """One run through all moments, unless the last is there."""
        moments = sorted(self.arguments.peer_seconds)
        if self.kept(name, moments[-1]):
            return
        kind, folder = PEERS[name], str(self.folder / "logs" / name)
        Path(folder).mkdir(parents=True, exist_ok=True)
        images = self.images()
        precision = best_precision(kind, images, folder)
        torch.manual_seed(self.arguments.seed)
        peer, steps, seconds = kind(images, precision, folder), 0, 0.0
        for moment in moments:
            began = time.process_time() - seconds
            while seconds < moment:
                peer.step()
                steps, seconds = steps + 1, time.process_time() - began
            self.place(name, moment).mkdir(parents=True, exist_ok=True)
            save_file(peer.weights(), self.place(name, moment) / "model.safetensors")
            self.keep(moment, Point(name, seconds, steps, steps * PEER_BATCH, trained_with=self.trained_with(name)))

    def images(self) -> torch.Tensor:
        data = load_image_data(self.arguments.dataset_name, None, None, "train", resolution=RESOLUTION)
        return data.__getitems__(range(len(data)))["samples"]

    def train_ours(self, budget: float) -> None:
        """One run of the recipe, unless it is there."""
        if self.kept("ours", budget):
            return
        steps = int(MARGIN * budget / self.own_seconds_per_step)
        limit = ProcessorLimit(budget)
        settings = self._settings(str(self.place("ours", budget)), steps)
        trainer = without_pictures(Trainer(settings, callbacks=[limit]))
        trainer.train()
        steps = trainer.state.global_step
        images, with_flags = steps * settings.train_batch_size, self.trained_with("ours")
        self.keep(budget, Point("ours", limit.seconds, steps, images, trained_with=with_flags))

    @functools.cached_property
    def own_seconds_per_step(self) -> float:
        timer = ProcessorLimit(float("inf"))
        settings = self._settings(str(self.folder / "logs" / "ours"), OWN_TIMED_STEPS)
        without_pictures(Trainer(settings, callbacks=[timer])).train()
        print(f"ours: {settings.train_batch_size / timer.seconds_per_step():.1f} images/s", flush=True)
        return timer.seconds_per_step()

    def _settings(self, folder: str, steps: int) -> TrainingArguments:
        return TrainingArguments.from_recipe(
            self.arguments.recipe,
            dataset_name=self.arguments.dataset_name,
            seed=self.arguments.seed,
            max_train_seconds=None,
            max_train_steps=steps,
            mixed_precision=self.arguments.mixed_precision,
            output_dir=folder,
            **ONLY_TRAIN,
        )

    # --- measuring ---

    def sampler(self, who: str, budget: float) -> SampleNumber:
        place, steps = self.place(who, budget), self.arguments.peer_sampling_steps
        if who in PEERS:
            net = PEERS[who].network().eval()
            net.load_state_dict(load_file(place / "model.safetensors"))
            net.to(memory_format=torch.channels_last)  # samples sooner, which is not counted
            return functools.partial(PEERS[who].sample, net, steps)
        pipeline: Any = DiffusionPipeline.from_pretrained(str(place))
        pipeline.set_progress_bar_config(disable=True)
        steps = TrainingArguments.from_recipe(self.arguments.recipe).ddpm_num_inference_steps
        seeds = iter(range(10**6))
        return lambda number: generate_images(
            pipeline, number, None, number, next(seeds), num_inference_steps=self.arguments.num_inference_steps or steps
        )

    def measured(self, who: str, budget: float) -> Point:
        point = self.kept(who, budget)
        assert point is not None, f"{self.place(who, budget)} holds no run yet."
        now = self.measured_with(who)
        other = point.samples != self.arguments.num_samples or point.measured_with not in ({}, now)
        if point.frechet is None or other:
            sample = self.sampler(who, budget)
            grade = self.exam.measure(lambda labels: sample(len(labels)), self.exam.samples, time.perf_counter())
            point.frechet, point.samples, point.measured_with = grade.frechet, grade.samples, now
            self.keep(budget, point)
        return point

    @torch.no_grad()
    def picture(self, contestants: list[tuple[str, float]]) -> Image.Image:
        """A square of samples for each, from left to right."""
        squares = []
        for who, budget in contestants:
            torch.manual_seed(self.arguments.seed)
            with torch.autocast("cpu", torch.bfloat16, self.arguments.sampling_dtype == "bfloat16"):
                images = self.sampler(who, budget)(PICTURED)
            squares.append(image_grid(images.float().nan_to_num().clamp(-1, 1), columns=8))
        width, height = squares[0].size
        row = Image.new("RGB", (width * len(squares), height), "white")
        for index, square in enumerate(squares):
            row.paste(square, (index * width, 0))
        return row


# --- the table -------------------------------------------------------------------------------------------------------


def report(ours: list[Point], theirs: dict[str, list[Point]], baseline: float | None = None) -> None:
    """A Markdown table, and what ours needs for the best quality of each peer."""
    print("\n| who | seconds of training | steps | images | Frechet distance |")
    print("|---|---|---|---|---|")
    for point in (*ours, *(point for points in theirs.values() for point in points)):
        print(f"| {point.who} | {point.seconds:,.0f} | {point.steps:,} | {point.images:,} | {point.frechet:.3f} |")
    if baseline is not None:
        print(f"| other real images | | | | {baseline:.3f} |")
    if ours:
        for name, points in theirs.items():
            print(conclusion(name, points, ours))


def conclusion(name: str, theirs: list[Point], ours: list[Point]) -> str:
    """How many times the seconds of ours the peer took to its best Frechet distance."""
    best = min(theirs, key=lambda point: (point.frechet, point.seconds))
    reached = f"{name} reaches {best.frechet:.3f} in {best.seconds:,.0f} s"
    enough = [point for point in ours if point.frechet is not None and point.frechet <= (best.frechet or 0.0)]
    if not enough:
        return f"{reached}; ours does not reach that in any of its budgets: misses {TARGET_FACTOR:g}"
    first = min(enough, key=lambda point: point.seconds)
    factor = best.seconds / first.seconds
    seen = max(point.seconds for point in theirs) >= TARGET_SECONDS
    verdict = "too short to tell of" if not seen else "meets" if factor >= TARGET_FACTOR else "misses"
    return (
        f"{reached}; ours reaches {first.frechet:.3f} in {first.seconds:,.0f} s: "
        f"{factor:.1f} times less, {verdict} {TARGET_FACTOR:g}"
    )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--classifier", required=True, help="folder of a classifier (`diffusers-ext classifier train`)")
    parser.add_argument("--dataset_name", required=True, help="Hub name or folder of images with ten classes")
    parser.add_argument("--output_dir", required=True, help="keep the runs here")
    parser.add_argument("--recipe", default="images32", help="of ours")
    parser.add_argument("--budgets", type=float, nargs="*", default=[300, 600, 720], help="seconds of ours")
    parser.add_argument(
        "--mixed_precision", default="bf16" if cpu_multiplies_bf16() else "no", help="of ours in training"
    )
    parser.add_argument("--num_inference_steps", type=int, help="of ours; the recipe's if not given")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--peer_seconds", type=float, nargs="+", default=[900, 1800, 2700, 3600])
    parser.add_argument("--peer_sampling_steps", type=int, default=50)
    parser.add_argument("--num_samples", type=int, default=1000)
    parser.add_argument("--sampling_dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train_only", action="store_true", help="measure nothing yet")
    parser.add_argument(
        "--picture", help="file of a picture: 64 samples of each of ours and of each peer's last moment"
    )
    return parser


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread", flush=True)
    contest = Contest(arguments)
    for name in arguments.peers:
        contest.train_peer(name)
    for budget in arguments.budgets:
        contest.train_ours(budget)
    if arguments.train_only:
        return
    ours = [contest.measured("ours", budget) for budget in arguments.budgets]
    theirs = {name: [contest.measured(name, s) for s in sorted(arguments.peer_seconds)] for name in arguments.peers}
    report(ours, theirs, contest.exam.baseline)
    if arguments.picture is not None:
        last = max(arguments.peer_seconds)
        pictured = [("ours", budget) for budget in arguments.budgets] + [(name, last) for name in arguments.peers]
        contest.picture(pictured).save(arguments.picture)


if __name__ == "__main__":
    main()
