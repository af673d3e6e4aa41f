"""`diffusers-ext experiments run` and `diffusers-ext experiments compare`: many runs and one table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..settings import CheckedSettings, option
from .shared import ModelCode, load_pipeline


@dataclass
class ExperimentsRunArguments(CheckedSettings):
    """Run the experiments of a study file, and write one table of their results."""

    POSITIONAL: ClassVar[str] = "study"

    study: str = option(text="YAML file: recipe, settings, grid, changes, seeds, output_dir.")
    parallel: int = option(1, "Runs at a time, each in a process of its own when above 1.", at_least=1, at_most=1024)
    output_dir: str | None = option(None, "Folder of the study; the file's if not given.", writes="folder")


@dataclass
class ExperimentsCompareArguments(CheckedSettings, ModelCode):
    """Draw losses and samples of the finished runs of a study side by side."""

    POSITIONAL: ClassVar[str] = "study_dir"

    study_dir: str = option(text="Folder of a study.")
    num_images: int = option(8, "Samples of each run, from the same starting noise.", at_least=1, at_most=64)
    num_inference_steps: int = option(50, "Sampling steps.", at_least=1, at_most=100_000)
    guidance_scale: float = option(1.0, "For models with classes.", at_least=0)
    seed: int = option(0, "Seed of the starting noise.", at_least=0)
    output_dir: str | None = option(
        None, "Where losses.png and samples.png go; the study's folder if not given.", writes="folder"
    )
    device: str | None = option(None, "cpu, cuda, mps; the best there is if not given.")


def experiments_run(arguments: ExperimentsRunArguments) -> None:
    """Run what has not finished yet; print the table. Raises StudyFailed at the end when a run failed."""
    from ..experiments import ExperimentManager

    manager = ExperimentManager.from_study(arguments.study, arguments.output_dir, arguments.parallel)
    manager.run_all()
    print((manager.output_dir / "results.md").read_text(encoding="utf-8"))
    print(f"Table and figure in {manager.output_dir}")
    manager.raise_for_failures()


def experiments_compare(arguments: ExperimentsCompareArguments) -> None:
    """Write `losses.png` and `samples.png`."""
    from ..evaluation.models_alike import draw_models
    from ..experiments.side_by_side import draw_losses, finished_runs

    study = Path(arguments.study_dir)
    if not study.is_dir():
        raise ValueError(f"There is no study '{study}'.")
    runs = finished_runs(study)
    folder = study if arguments.output_dir is None else Path(arguments.output_dir)
    draw_losses(runs, folder / "losses.png")
    draw_models(
        {name: _loader(run, arguments) for name, run in runs.items()},
        folder / "samples.png",
        "Samples from the same starting noise",
        "run",
        number=arguments.num_images,
        num_inference_steps=arguments.num_inference_steps,
        seed=arguments.seed,
        guidance_scale=arguments.guidance_scale,
    )
    print(f"losses.png and samples.png of {len(runs)} runs in {folder}")


def _loader(folder: Path, arguments: ExperimentsCompareArguments) -> Any:
    return lambda: load_pipeline(str(folder), arguments.device, trust_remote_code=arguments.trust_remote_code)
