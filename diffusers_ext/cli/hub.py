"""`diffusers-ext export | push | card`: share a pipeline, or write its model card."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..hub.averages import RECIPE, RECONSTRUCTION
from .shared import load_pipeline

# What a training run leaves beside the pipeline, and what goes with it.
COMPANIONS = (RECIPE, RECONSTRUCTION, "metrics.jsonl", "evaluation.json", "figures", "samples")


@dataclass
class ExportArguments:
    """Write a folder that loads with this package and without it, with a model card."""

    model: str = field(metadata={"help": "Folder or Hub name of a pipeline."})
    output_dir: str = field(metadata={"help": "Where the export goes."})
    repo_id: str | None = field(default=None, metadata={"help": "user/name that the card's calls name."})
    variant: str | None = field(default=None, metadata={"help": "Part of the weights' file names, fp16, say."})
    max_shard_size: str = field(default="5GB", metadata={"help": "Largest file of weights."})


@dataclass
class PushArguments:
    """Put the folder of an export or a training run into a repository on the Hub."""

    model: str = field(metadata={"help": "Folder of an export or a training run."})
    repo_id: str = field(metadata={"help": "user/name, or name for your own."})
    private: bool = field(default=False, metadata={"help": "Create the repository as a private one."})
    token: str | None = field(default=None, metadata={"help": "Token; that of `hf auth login` if not given."})
    revision: str | None = field(default=None, metadata={"help": "Branch; created where it is missing."})
    create_pr: bool = field(default=False, metadata={"help": "Open a pull request instead."})
    commit_message: str = field(default="Upload with diffusers_ext", metadata={"help": "First line of the commit."})
    ignore_patterns: list[str] = field(default_factory=list, metadata={"help": "More names that stay at home."})


@dataclass
class CardArguments:
    """Write the model card of an export or a training run from the files in it."""

    model: str = field(metadata={"help": "Folder of an export or a training run."})
    repo_id: str | None = field(default=None, metadata={"help": "user/name that the card's calls name."})
    output: str | None = field(
        default=None,
        metadata={
            "help": "Where the card goes, with its pictures in `pictures/`; README.md in the folder if not given."
        },
    )
    title: str | None = field(default=None, metadata={"help": "Heading; the repository's name if not given."})
    license: str = field(default="apache-2.0", metadata={"help": "Licence of the weights."})
    tags: list[str] = field(default_factory=list, metadata={"help": "More tags."})
    limits: list[str] = field(default_factory=list, metadata={"help": "More sentences on what the model can't do."})


def export(arguments: ExportArguments) -> None:
    """Load, write with the code of the classes, and take the run's records and pictures along."""
    from ..hub.export import export as export_pipeline
    from ..hub.model_card import write_card

    source, target = Path(arguments.model), Path(arguments.output_dir)
    if source.exists() and target.exists() and source.resolve() == target.resolve():
        raise ValueError("output_dir must be another folder than the model's.")
    pipeline = load_pipeline(arguments.model, "cpu")
    export_pipeline(pipeline, target, variant=arguments.variant, max_shard_size=arguments.max_shard_size)
    (target / RECONSTRUCTION).unlink(missing_ok=True)  # of an earlier export
    for name in COMPANIONS:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        elif (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    write_card(target, arguments.repo_id)
    print(f"{target}: loads here and elsewhere, as {target / 'README.md'} says")


def push(arguments: PushArguments) -> None:
    """Push, and say where it is."""
    from huggingface_hub.errors import HfHubHTTPError

    from ..hub.export import may_pass, push_to_hub

    try:
        info = push_to_hub(
            arguments.model,
            arguments.repo_id,
            private=arguments.private or None,
            token=arguments.token,
            revision=arguments.revision,
            create_pr=arguments.create_pr,
            commit_message=arguments.commit_message,
            ignore_patterns=arguments.ignore_patterns,
        )
    except HfHubHTTPError as error:
        raise ValueError(f"The Hub refused: {' '.join(str(error).split())}") from None
    except Exception as error:
        if isinstance(error, (ValueError, OSError)) or not may_pass(error):
            raise
        raise ValueError(f"The Hub could not be reached: {' '.join(str(error).split())}") from None
    print(f"Pushed: {info.pr_url or info.commit_url}")


def card(arguments: CardArguments) -> None:
    """Write the card in the folder, or elsewhere with its pictures."""
    from ..hub.model_card import copy_card, write_card

    settings: dict[str, Any] = {
        "title": arguments.title,
        "license": arguments.license,
        "tags": arguments.tags,
        "limits": arguments.limits,
    }
    if arguments.output is not None:
        copy_card(arguments.model, arguments.output, arguments.repo_id, **settings)
        print(f"Card in {arguments.output}")
    elif write_card(arguments.model, arguments.repo_id, **settings):
        print(f"Card in {Path(arguments.model) / 'README.md'}")
    else:
        print(f"{Path(arguments.model) / 'README.md'} was taken over by hand and is left as it is")
