"""`diffusers-ext export | push | card`: share a pipeline, or write its model card."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..hub.averages import RECONSTRUCTION
from ..settings import CheckedSettings, option
from .shared import ModelCode, load_pipeline


@dataclass
class ExportArguments(CheckedSettings, ModelCode):
    """Write a folder that loads with this package and without it, with a model card."""

    model: str = option(text="Folder or Hub name of a pipeline.")
    output_dir: str = option(text="Where the export goes.", writes="folder")
    repo_id: str | None = option(None, "user/name in the examples of the card.")
    variant: str | None = option(None, "Variant in the names of the weight files, such as fp16.")
    max_shard_size: str = option("5GB", "Largest file of weights.")
    space: bool = option(False, "Write a Space of the demo instead, with the model beside it, or its Hub name.")


@dataclass
class PushArguments(CheckedSettings):
    """Push the folder of an export or a training run to a repository on the Hub."""

    model: str = option(text="Folder of an export or a training run.")
    repo_id: str = option(text="user/name, or name for your own.")
    private: bool = option(False, "Create the repository as a private one.")
    token: str | None = option(None, "Token of the Hub; default: the one of `hf auth login`.", secret=True)
    revision: str | None = option(None, "Branch to commit to, created if it is missing.")
    create_pr: bool = option(False, "Open a pull request instead.")
    commit_message: str = option("Upload with diffusers_ext", "First line of the commit.")
    ignore_patterns: list[str] = option([], "Files and folders not to push.")
    allow_patterns: list[str] = option([], "More files to push, beside those that this package writes.")
    attempts: int = option(
        4, "How often to try while the connection fails, with pauses of 1, 4, 16 ... seconds.", at_least=1, at_most=8
    )


@dataclass
class CardArguments(CheckedSettings):
    """Write the model card of an export or a training run from the files in it."""

    model: str = option(text="Folder of an export or a training run.")
    repo_id: str | None = option(None, "user/name in the examples of the card.")
    output: str | None = option(
        None, "Where the card goes, with its pictures in `pictures/`; default: README.md in the folder."
    )
    title: str | None = option(None, "Heading; default: the repository's name.")
    license: str = option("apache-2.0", "Licence of the weights.")
    tags: list[str] = option([], "More tags.")
    limits: list[str] = option([], "More sentences on what the model can't do.")


def export(arguments: ExportArguments) -> None:
    """Export the pipeline with the code of its classes, and copy the records and pictures of its training run."""
    from ..hub.export import export as export_pipeline
    from ..hub.model_card import write_card
    from ..hub.push import companions

    source, target = Path(arguments.model), Path(arguments.output_dir)
    if arguments.space:
        _export_space(arguments)
        return
    if source.exists() and target.exists() and source.resolve() == target.resolve():
        raise ValueError("output_dir must be another folder than that of the model.")
    pipeline = load_pipeline(arguments.model, "cpu", trust_remote_code=arguments.trust_remote_code)
    export_pipeline(pipeline, target, variant=arguments.variant, max_shard_size=arguments.max_shard_size)
    (target / RECONSTRUCTION).unlink(missing_ok=True)  # of an earlier export
    for name in companions(source):
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)
    write_card(target, arguments.repo_id)
    print(f"Exported to {target}; {target / 'README.md'} says how to load it")


def _export_space(arguments: ExportArguments) -> None:
    """Write the folder of a Space; a model of the Hub stays there."""
    from ..demo.space import MODEL, write_space

    target, is_local = Path(arguments.output_dir), Path(arguments.model).exists()
    if is_local:
        export(replace(arguments, output_dir=str(target / MODEL), space=False))
    write_space(target, None if is_local else arguments.model, arguments.repo_id or Path(arguments.model).name)
    print(f"Space in {target}; push it with: hf upload USER/NAME {target} --repo-type space")


def push(arguments: PushArguments) -> None:
    """Push, and print the address of the commit. No message shows the token."""
    from huggingface_hub.errors import HfHubHTTPError

    from ..hub.push import is_temporary, push_to_hub
    from ..hub.redaction import redacted

    options = asdict(arguments)
    try:
        info = push_to_hub(options.pop("model"), private=options.pop("private") or None, **options)
    except Exception as error:
        reason = " ".join(redacted(error, arguments.token).split())
        if isinstance(error, HfHubHTTPError) and not is_temporary(error):
            raise ValueError(f"The Hub refused: {reason}") from None
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(reason) from None
        if is_temporary(error):
            raise ValueError(f"The Hub could not be reached: {reason}") from None
        raise ValueError(reason) from None
    print(f"Pushed: {info.pr_url or info.commit_url}")


def card(arguments: CardArguments) -> None:
    """Write the card in the folder, or elsewhere with its pictures."""
    from ..hub.model_card import copy_card, write_card

    settings = asdict(arguments)
    model, output = settings.pop("model"), settings.pop("output")
    file = Path(model) / "README.md"
    if output is not None:
        copy_card(model, output, **settings)
        print(f"Card in {output}")
    elif write_card(model, **settings):
        print(f"Card in {file}")
    else:
        print(f"{file} was written by hand and is left as it is")
