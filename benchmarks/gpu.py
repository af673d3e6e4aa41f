"""Tests and benchmarks on one GPU in under 8 minutes, without internet; `benchmarks/gpu.sh` starts it.

    python benchmarks/gpu.py [--output outputs/gpu] [--device cuda] [--parts tests throughput cifar10 sampling]
    python benchmarks/gpu.py --device cpu --tiny

Parts, each with a time limit. One that fails or runs out of time is reported, and the others go on:

- tests: tests/test_device.py on the device (networks, schedulers, pipelines, exact resume, torch.compile).
- throughput: images/s of training in bf16, with and without torch.compile: `Trainer`, diffusers' unconditional example
  and denoising-diffusion-pytorch take turns on one network, google/ddpm-cifar10-32, batch 128 each.
- cifar10, about four minutes: a classifier of the data set, a class-conditional network trained for
  `--train_seconds`, and the Frechet distance of its samples in the classifier's features, beside the distance of as
  many real images.
- sampling: images/s of that network's pipeline (of an untrained one if it is missing) with every sampler, and a picture
  of samples, a row per class.

It writes results.json, results.md, samples.png and the output of each part into the output folder, results after every
part. `--tiny` runs the same code with tiny sizes and checks nothing but that it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import runpy
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from gpu_report import machine, markdown

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("tests", "throughput", "cifar10", "sampling")
Loop = tuple[str, bool]  # name in train_throughput, whether compiled

# An ADM network of 24 million parameters for 32x32 images (28x28 without CIFAR-10).
NETWORK = {
    "base_channels": 128,
    "channel_multipliers": [1, 2, 2],
    "layers_per_level": 2,
    "attention_resolutions": [2],
    "patch_size": 1,
}
SAMPLING_STEPS = 20
EVALUATION_SECONDS = 45.0  # kept of the time of `cifar10` for loading the data and for evaluating


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        network: options of the preset `small-adm`.
        train_seconds: wall time of the CIFAR-10 run.
        train_steps: its most steps.
        train_batch_size: its batch.
        classifier_flags: of `diffusers-ext classifier train`.
        num_images: samples, and real images, of the Frechet distance.
        loops: the training loops whose throughput is measured, each with whether torch.compile is on.
        throughput_network, throughput_batch: a name in `train_throughput.NETWORKS`, images per step.
        turns, turn_seconds: turns of each loop, and their length.
        sampling_batch: images per call of the pipeline.
        samplers: names in `SAMPLERS`, None for all.
        tests: what pytest's `-k` selects beside the device.
        limits: seconds that each part may take.
        total: seconds that all of them may take together.
    """

    network: dict[str, Any] = field(default_factory=lambda: NETWORK)
    train_seconds: float = 165.0
    train_steps: int = 10**6
    train_batch_size: int = 256
    classifier_flags: Sequence[str] = (
        *("--block_channels", "64", "128", "256", "--blocks_per_level", "2", "--train_batch_size", "256"),
        *("--num_epochs", "30", "--max_train_seconds", "30", "--random_flip", "true", "--dropout", "0.1"),
    )
    num_images: int = 5000
    loops: Sequence[Loop] = tuple(
        (loop, compiled) for compiled in (False, True) for loop in ("ours", "diffusers", "denoising-diffusion-pytorch")
    )
    throughput_network: str = "cifar10"
    throughput_batch: int = 128
    turns: int = 3
    turn_seconds: float = 1.5
    sampling_batch: int = 500
    samplers: Sequence[str] | None = None
    tests: str = ""
    limits: dict[str, float] = field(
        default_factory=lambda: {"tests": 100.0, "throughput": 110.0, "cifar10": 270.0, "sampling": 45.0}
    )
    total: float = 465.0


TINY = Sizes(
    network={"base_channels": 8, "channel_multipliers": [1], "norm_num_groups": 4, "attention_resolutions": []},
    train_seconds=1.0,
    train_steps=2,
    train_batch_size=4,
    classifier_flags=("--block_channels", "4", "--num_epochs", "1", "--max_train_seconds", "0.5"),
    num_images=24,
    loops=(("ours", False), ("diffusers", True)),
    throughput_network="tiny",
    throughput_batch=4,
    turns=1,
    turn_seconds=0.05,
    sampling_batch=20,
    samplers=("ddim",),
    tests="(networks_compute and ict1022 and float32) or (scheduler and cpu-ddpm-float32)",
    limits=dict.fromkeys(PARTS, 600.0),
    total=1200.0,
)


@dataclass
class Outcome:
    """What came of a part: `ok`, or why not; seconds; and its figures."""

    status: str = "not run"
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """Everything that the parts need.

    Attributes:
        device: `cuda`, `cpu`, ...
        tiny: whether the sizes are tiny.
        sizes: of everything.
        data: folder of CIFAR-10, or `embedded`.
        output: folder of the results.
        work: folder for networks, removed at the end.
        ends: when the whole run has to be over (of time.monotonic()).
    """

    device: str
    tiny: bool
    sizes: Sizes
    data: str
    output: Path
    work: Path
    ends: float = math.inf

    def limit(self, part: str) -> float:
        """Seconds that a part may take from now on."""
        return min(self.sizes.limits[part], self.ends - time.monotonic())

    @property
    def resolution(self) -> int:
        """Side of the images."""
        return 28 if self.data == "embedded" else 32

    @property
    def precision(self) -> str:
        """Of training: bf16 on an accelerator."""
        return "no" if self.device == "cpu" else "bf16"

    @property
    def dtype(self) -> str:
        """Of sampling."""
        return "float32" if self.device == "cpu" else "bfloat16"

    @property
    def model(self) -> Path:
        """The folder of the trained pipeline."""
        return self.work / "model"

    def environment(self) -> dict[str, str]:
        """Of the processes: this checkout importable, no network, the device asked for."""
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        cpu = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **(cpu if self.device == "cpu" else {})}


class PartFailed(RuntimeError):
    """A process of a part ended badly; the message says how."""


@contextlib.contextmanager
def started(run: Run, log: str, command: Sequence[str]) -> Any:
    """A process in a session of its own, its output in `log`; stopped with all its children on leaving."""
    with open(run.output / f"{log}.log", "a") as file:
        print(f"$ {' '.join(command)}", file=file, flush=True)
        process = subprocess.Popen(
            command, stdout=file, stderr=file, cwd=ROOT, env=run.environment(), start_new_session=True
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def finish(run: Run, log: str, process: subprocess.Popen[bytes], deadline: float) -> None:
    """Wait for the process until `deadline` (of time.monotonic()). Raises PartFailed if it failed or ran longer."""
    try:
        status = process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise PartFailed("stopped at the end of its time") from None
    if status != 0:
        lines = (run.output / f"{log}.log").read_text(errors="replace").strip().splitlines()
        raise PartFailed(f"exit status {status}: {lines[-1][:300]}")


def execute(run: Run, log: str, command: Sequence[str], deadline: float) -> None:
    """Run a command to its end; errors as `finish`."""
    with started(run, log, command) as process:
        finish(run, log, process, deadline)


# --- device tests ----------------------------------------------------------------------------------------------------


def device_tests(run: Run, figures: dict[str, Any], deadline: float) -> None:
    """Run tests/test_device.py on the device."""
    report = run.work / "tests.xml"
    which = "cpu" if run.device == "cpu" else "accelerator"
    selected = f"{which} and ({run.sizes.tests})" if run.sizes.tests else which
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_device.py", "-k", selected]
    command += [f"--junitxml={report}"]
    if importlib.util.find_spec("xdist") is not None and not run.tiny:
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    try:
        execute(run, "tests", command, deadline)
    finally:
        if report.exists():
            figures.update(counts(report))


def counts(report: Path) -> dict[str, Any]:
    """Numbers of tests in a JUnit file, and the names of those that failed."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [
        case.get("name", "") for case in cases if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {"passed": len(cases) - len(failed) - skipped, "failed": len(failed), "skipped": skipped, "failures": failed}


# --- throughput ------------------------------------------------------------------------------------------------------


def throughput(run: Run, figures: dict[str, Any], deadline: float) -> None:
    """Images per second of every loop, without and with torch.compile; all take turns."""
    import train_throughput

    sizes = run.sizes
    threads = 1 if run.device == "cpu" else 4
    settings = argparse.Namespace(batch_size=sizes.throughput_batch, threads=threads, no_average=False)
    figures |= {"batch_size": sizes.throughput_batch, "network": sizes.throughput_network, "precision": run.precision}
    figures |= {"rows": [], "failures": {}}
    workers: dict[Loop, Any] = {}
    try:
        for loop, compiled in sizes.loops:
            if loop == "denoising-diffusion-pytorch" and importlib.util.find_spec(loop.replace("-", "_")) is None:
                continue
            own = run.environment()
            if compiled:
                own["ACCELERATE_DYNAMO_BACKEND"] = "eager" if run.tiny else "inductor"
            workers[loop, compiled] = train_throughput.Worker(
                loop, sizes.throughput_network, run.precision, settings, **own
            )
        _take_turns(workers, sizes, figures["failures"], deadline)
    finally:
        for worker in workers.values():
            worker.end()
        figures["rows"] = [_throughput_row(loop, worker) for loop, worker in workers.items() if worker.turns]


def _take_turns(workers: dict[Loop, Any], sizes: Sizes, failures: dict[str, str], deadline: float) -> None:
    """Warm all up at once, then let one work at a time. A loop that fails is noted and left out."""
    working = dict(workers)

    def attempt(loop: Loop, act: Callable[[Any], Any]) -> None:
        try:
            act(working[loop])
        except RuntimeError as error:
            del working[loop]
            failures[f"{loop[0]}{', compiled' if loop[1] else ''}"] = str(error).strip().splitlines()[-1][:300]

    for worker in working.values():
        worker.ask(2)  # all compile at the same time
    for loop in list(working):
        attempt(loop, lambda worker: worker.answer())
    for loop in list(working):  # and say one by one how many steps make a turn
        attempt(loop, lambda worker: worker.warm_up(sizes.turn_seconds))
    for number in range(sizes.turns):
        for loop in list(working) if number % 2 else list(working)[::-1]:
            if time.monotonic() > deadline - 2 * sizes.turn_seconds:
                raise PartFailed("stopped at the end of its time")
            attempt(loop, lambda worker: worker.turns.append(worker.turn(worker.steps)))


def _throughput_row(loop: Loop, worker: Any) -> dict[str, Any]:
    speeds = [turn.images / turn.seconds for turn in worker.turns]
    return {
        "loop": loop[0],
        "compiled": loop[1],
        "images_per_second": round(statistics.median(speeds), 1),
        "peak_memory_gb": round(max(turn.peak_bytes for turn in worker.turns) / 1e9, 2),
    }


# --- CIFAR-10 --------------------------------------------------------------------------------------------------------


def words_of(flags: dict[str, Any]) -> list[str]:
    """Flags as the words of a command line."""
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def classifier_words(run: Run) -> list[str]:
    """`diffusers-ext classifier train` on the data set."""
    flags = {"dataset_name": run.data, "resolution": run.resolution, "device": run.device}
    split = {"train_split": "train[:256]", "test_split": "test[:64]"} if run.tiny else {}
    folder = {"output_dir": run.work / "classifier"}
    return ["classifier", "train", *words_of({**flags, **split, **folder}), *run.sizes.classifier_flags]


def training_words(run: Run, seconds: float) -> list[str]:
    """train/train_conditional.py: the class-conditional network, for so many seconds."""
    sizes = run.sizes
    return words_of(
        {
            "recipe": "diffusers_ext/recipes/images32.yaml",
            "condition": "class",
            "dataset_name": run.data,
            "train_split": "train[:64]" if run.tiny else "train",
            "resolution": run.resolution,
            "random_flip": run.data != "embedded",
            "model": "small-adm",
            "model_options": json.dumps(sizes.network),
            "schedule": "cosine",  # on the recipe's rectified flow half of the samplers can't be timed
            "prediction_type": "v_prediction",
            "sampler": "ddim",
            "timestep_sampling": "stratified_logit_normal",
            "train_batch_size": sizes.train_batch_size,
            "num_epochs": 10**4,
            "max_train_steps": sizes.train_steps,
            "max_train_seconds": seconds,
            "mixed_precision": run.precision,
            "checkpointing_steps": 10**6,
            "validation_steps": 10**6,
            "save_images_epochs": 10**6,
            "save_model_epochs": 10**6,
            "save_figures": False,
            "ddpm_num_inference_steps": 2 if run.tiny else SAMPLING_STEPS,
            "logger": "none",
            "output_dir": run.model,
        }
    )


def evaluation_words(run: Run) -> list[str]:
    """`diffusers-ext evaluate` of the trained network."""
    sizes = run.sizes
    flags: dict[str, Any] = {
        "model": run.model,
        "classifier": run.work / "classifier",
        "dataset_name": run.data,
        "num_images": sizes.num_images,
        "batch_size": sizes.sampling_batch,
        "sampler": "dpmsolver++",
        "num_inference_steps": 2 if run.tiny else SAMPLING_STEPS,
        "dtype": run.dtype,
        "device": run.device,
        "output": run.work / "evaluation.json",
    }
    return ["evaluate", *words_of(flags)]


def cifar10(run: Run, figures: dict[str, Any], deadline: float) -> None:
    """Train a classifier, then the network, then evaluate its samples with the classifier."""
    sizes = run.sizes
    command_line(classifier_words(run))
    figures["classifier_accuracy"] = json.loads((run.work / "classifier" / "config.json").read_text())["test_accuracy"]
    seconds = max(1.0, min(sizes.train_seconds, deadline - time.monotonic() - EVALUATION_SECONDS))
    figures |= {"data": Path(run.data).name, "train_seconds": seconds, "train_batch_size": sizes.train_batch_size}
    train_script(training_words(run, seconds))
    figures |= last_metrics(run.model)
    command_line(evaluation_words(run))
    report = json.loads((run.work / "evaluation.json").read_text())
    figures |= {"num_images": sizes.num_images, "steps": report["samples"]["num_inference_steps"]}
    figures |= {kind: report["measures"][kind] for kind in ("samples", "real_images")}


def command_line(words: list[str]) -> None:
    """Run `diffusers-ext` in this process. Raises PartFailed if it fails."""
    from diffusers_ext.cli import main as diffusers_ext

    if diffusers_ext(words) != 0:
        raise PartFailed(f"diffusers-ext {words[0]} failed; its message is in the log")


def train_script(words: list[str]) -> None:
    """Run train/train_conditional.py in this process. Raises PartFailed if it fails."""
    script = str(ROOT / "train" / "train_conditional.py")
    own, sys.argv = sys.argv, [script, *words]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        if error.code:
            raise PartFailed("train_conditional.py failed; its message is in the log") from None
    finally:
        sys.argv = own


def last_metrics(folder: Path) -> dict[str, Any]:
    """Steps, speed and memory of a run, from its metrics.jsonl."""
    wanted = ("step", "mean_images_per_second", "flops_over_peak", "peak_memory_bytes")
    found: dict[str, Any] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        found |= {name: record[name] for name in wanted if name in record}
    return found


# --- sampling --------------------------------------------------------------------------------------------------------


def sampling(run: Run, figures: dict[str, Any], deadline: float) -> None:
    """A picture; then images per second of every sampler, one warm-up call and one timed call each."""
    from diffusers_ext.schedulers.registry import SAMPLERS, build_sampler

    pipeline, trained = _pipeline(run)
    pipeline.set_progress_bar_config(disable=True)
    config = pipeline.scheduler.config
    figures |= {"trained": trained, "batch_size": run.sizes.sampling_batch, "dtype": run.dtype}
    figures |= {"rows": [], "failures": {}}
    _save_picture(run, pipeline)
    for name in run.sizes.samplers or SAMPLERS:
        if time.monotonic() > deadline - 5:
            raise PartFailed("stopped at the end of its time")
        try:
            pipeline.scheduler = build_sampler(name, config)
            figures["rows"].append({"sampler": name, **_time_sampling(run, pipeline)})
        except Exception as error:  # another sampler may work
            figures["failures"][name] = f"{type(error).__name__}: {error}"[:300]


def _pipeline(run: Run) -> tuple[Any, bool]:
    """The trained pipeline on the device, or an untrained one of the same size; and which of the two."""
    from diffusers_ext import GenerationPipeline, SubsequenceDDIMScheduler, build_model

    dtype = getattr(torch, run.dtype)
    if (run.model / "model_index.json").exists():
        return GenerationPipeline.from_pretrained(run.model).to(run.device, dtype), True
    channels = 1 if run.data == "embedded" else 3
    network = build_model(
        "small-adm", **run.sizes.network, in_channels=channels, sample_size=run.resolution, num_class_embeds=10
    )
    scheduler = SubsequenceDDIMScheduler(beta_schedule="cosine", prediction_type="v_prediction")
    return GenerationPipeline(network, scheduler).to(run.device, dtype), False


def _time_sampling(run: Run, pipeline: Any) -> dict[str, Any]:
    steps, batch = (2 if run.tiny else SAMPLING_STEPS), run.sizes.sampling_batch
    labels = [number % 10 for number in range(batch)]
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    def sample(number_of_steps: int) -> float:
        began = time.perf_counter()
        pipeline(class_labels=labels, num_inference_steps=number_of_steps, output_type="pt")
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        return time.perf_counter() - began

    sample(2)
    handle = pipeline.unet.register_forward_pre_hook(count)
    seconds = sample(steps)
    handle.remove()
    return {"steps": steps, "network_calls": calls, "images_per_second": round(batch / seconds, 1)}


def _save_picture(run: Run, pipeline: Any) -> None:
    """Eight samples of each class, a row per class."""
    from diffusers_ext import figures

    each = 2 if run.tiny else 8
    labels = [label for label in range(10) for _ in range(each)]
    generator = torch.Generator().manual_seed(0)
    steps = 2 if run.tiny else 2 * SAMPLING_STEPS
    images = pipeline(class_labels=labels, num_inference_steps=steps, generator=generator, output_type="pt").images
    figures.image_grid(images.cpu().float() * 2 - 1, columns=each, scale=2).save(run.output / "samples.png")


# --- the whole run ---------------------------------------------------------------------------------------------------


FUNCTIONS: dict[str, Callable[[Run, dict[str, Any], float], None]] = {
    "tests": device_tests,
    "throughput": throughput,
    "cifar10": cifar10,
    "sampling": sampling,
}
IN_A_CHILD = ("cifar10", "sampling")  # they use the device themselves; the others start processes for it


def perform(run: Run, name: str, limit: float) -> Outcome:
    """A part within `limit` seconds; whatever goes wrong is in the outcome."""
    outcome, began = Outcome(), time.monotonic()
    try:
        FUNCTIONS[name](run, outcome.figures, began + limit)
        outcome.status = "ok"
    except Exception as error:  # the other parts go on
        outcome.status = f"failed: {error if isinstance(error, PartFailed) else repr(error)}"
        traceback.print_exc()
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome


def perform_in_children(run: Run, names: Sequence[str]) -> Iterator[tuple[str, Outcome]]:
    """Parts in one process of their own; where one breaks it or runs too long, a new process goes on with the next."""
    left = list(names)
    while left:
        with started(run, left[0], child_command(run, left)) as process:
            for name in list(left):
                left.remove(name)
                outcome = _outcome_of(run, name, process)
                yield name, outcome
                if not (run.work / f"{name}.json").exists():
                    break


def child_command(run: Run, names: Sequence[str]) -> list[str]:
    """Performs parts and leaves their outcomes in the work folder."""
    flags = {"device": run.device, "output": run.output, "work": run.work, "data": run.data}
    flags["train_seconds"] = run.sizes.train_seconds
    tiny = ["--tiny"] if run.tiny else []
    return [sys.executable, str(Path(__file__).resolve()), *words_of(flags), *tiny, "--child", "--parts", *names]


def _outcome_of(run: Run, name: str, process: subprocess.Popen[bytes]) -> Outcome:
    """Wait for the outcome that a child leaves, for its end, or for the end of the part's time."""
    began, limit, file = time.monotonic(), run.limit(name), run.work / f"{name}.json"
    while not file.exists():
        seconds = round(time.monotonic() - began, 1)
        if seconds > limit:
            return Outcome("failed: stopped at the end of its time", seconds)
        if process.poll() is not None and not file.exists():
            return Outcome(f"failed: its process ended with exit status {process.returncode}", seconds)
        time.sleep(0.1)
    return Outcome(**json.loads(file.read_text()))


def work_as_child(run: Run, names: Sequence[str]) -> None:
    """Perform parts one after the other; their outcomes go into the work folder, each file whole from the start."""
    for name in names:
        outcome = perform(run, name, run.limit(name))
        partial = run.work / f"{name}.partial"
        partial.write_text(json.dumps(asdict(outcome)))
        partial.rename(run.work / f"{name}.json")


def outcomes(run: Run, parts: Sequence[str]) -> Iterator[tuple[str, Outcome]]:
    """The outcome of every part, in turn."""
    for name in parts:
        if name not in IN_A_CHILD:
            yield name, perform(run, name, run.limit(name))
    yield from perform_in_children(run, [name for name in parts if name in IN_A_CHILD])


def whole_run(run: Run, parts: Sequence[str]) -> bool:
    """Every part in turn, the report written after each; whether all went well."""
    began = time.monotonic()
    done: dict[str, Any] = {}
    report: dict[str, Any] = {"tiny": run.tiny, "machine": machine(run.device), "parts": done}
    for name, outcome in outcomes(run, parts):
        print(f"{name}: {outcome.status} ({outcome.seconds:.0f} s)", flush=True)
        done[name] = asdict(outcome)
        report["seconds"] = round(time.monotonic() - began, 1)
        (run.output / "results.json").write_text(json.dumps(report, indent=2) + "\n")
        (run.output / "results.md").write_text(markdown(report))
    print(markdown(report))
    return all(part["status"] == "ok" for part in done.values())


def find_data() -> str:
    """The folder of CIFAR-10, from $CIFAR10 or shared/data/cifar10 in or beside the checkout; else `embedded`."""
    places = [ROOT / "shared/data/cifar10", ROOT.parent / "shared/data/cifar10"]
    if os.environ.get("CIFAR10"):
        places.insert(0, Path(os.environ["CIFAR10"]))
    return next((str(place.resolve()) for place in places if list(place.glob("train*.parquet"))), "embedded")


def unfit(device: str, tiny: bool) -> str:
    """Why the benchmark can't be run on a device; nothing where it can."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        return f"device '{device}' is not available to the PyTorch of {sys.executable}"
    if device == "cpu" and not tiny:
        return (
            "no accelerator is visible to PyTorch, and the whole run is far too large for a CPU; add --tiny to try it"
        )
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    parser.add_argument(
        "--device",
        default="cpu" if accelerator is None else accelerator.type,
        help="cuda, cpu, ...; default: the accelerator if there is one",
    )
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: to see that everything runs")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, default=ROOT / "outputs/gpu", help="folder of the results")
    parser.add_argument("--data", help="folder of CIFAR-10 as parquet files, or `embedded`; default: looked for")
    parser.add_argument("--train_seconds", type=float, help="wall time of the CIFAR-10 run")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)  # of a process that this one starts
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if reason := unfit(arguments.device, arguments.tiny):
        parser.error(reason)
    sizes = TINY if arguments.tiny else Sizes()
    if arguments.train_seconds is not None:
        sizes = replace(sizes, train_seconds=arguments.train_seconds)
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    work = arguments.work or Path(tempfile.mkdtemp(prefix="gpu-benchmark-"))
    data = arguments.data or ("embedded" if arguments.tiny else find_data())
    if arguments.child:
        work_as_child(Run(arguments.device, arguments.tiny, sizes, data, output, work), arguments.parts)
        return 0
    ends = time.monotonic() + sizes.total
    run = Run(arguments.device, arguments.tiny, sizes, data, output, work, ends)
    for old in output.glob("*.log"):
        old.unlink()
    try:
        return 0 if whole_run(run, arguments.parts) else 1
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
