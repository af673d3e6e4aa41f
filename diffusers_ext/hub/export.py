"""Share a pipeline: a folder, and a repository on the Hub, that load with this package and without it.

What `export` writes beside weights and configurations, for a pipeline with classes of this package:

    model_index.json    "_class_name": "GenerationPipeline", "unet": ["diffusers_ext_0123456789ab", "X"], ...
    unet/diffusers_ext_0123456789ab.py         the code of the component: one file that needs torch and diffusers only
    scheduler/diffusers_ext_ba9876543210.py
    diffusers_ext_00aa11bb22cc.py              the code of the pipeline
    pipeline.py                                hands the pipeline's class on, under the name that diffusers looks for

How it loads:

- With `import diffusers_ext`, `DiffusionPipeline.from_pretrained(repo)` uses the installed classes; no file of the
  repository is run, for `registration` tells diffusers that such names mean this package.
- Without it, `DiffusionPipeline.from_pretrained(repo, custom_pipeline=repo, trust_remote_code=True)` runs the code in
  the repository. `custom_pipeline="diffusers_ext_00aa11bb22cc"` does, too, and is the better call for folders and for
  revisions: it names the code of that very state.
- A pipeline of diffusers' own classes brings no code and needs neither.

Three choices are behind this.

- `_class_name` is a string. diffusers also reads the pair ["pipeline", "X"], which loads without the package by
  `trust_remote_code=True` alone, but then asks for that trust of everybody. The safe way should be the short one.
- For the same reason there is no `auto_map`, with which `AutoModel` would refuse to load untrusted.
- Code files are named after their content. diffusers copies the code of all repositories into one folder by file name
  and runs it in one module a name: under one name, a second repository would change the first one's classes, or get
  them, and a second process could come in between.
"""

from __future__ import annotations

import fnmatch
import hashlib
import inspect
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import OfflineModeIsEnabled

from .averages import RECIPE
from .bundle import bundle
from .model_card import CARD, CODE_FILE, EVALUATION, card_text, is_taken_over
from .registration import LIBRARY, code_name, is_code_name

logger = logging.getLogger(__name__)

INDEX = "model_index.json"
PIPELINE_FILE = "pipeline.py"
# Libraries that a machine which loads a diffusers pipeline has.
KNOWN_LIBRARIES = ("diffusers", "transformers")
# What a training run keeps for itself, by name below the folder.
NOT_PUSHED = (
    "checkpoint-*",
    "ema-snapshots",
    "logs",
    ".*",
    "*/.*",
    "*.partial",
    "__pycache__",
    "*/__pycache__",
    "*.pyc",
)
# Lists what the last push brought, so that the next one knows what is stale.
PUSHED = "pushed_files.json"


# --- export -----------------------------------------------------------------------------------------------------------


def export(
    pipeline: DiffusionPipeline,
    folder: str | os.PathLike,
    *,
    variant: str | None = None,
    max_shard_size: int | str = "5GB",
) -> Path:
    """Save a pipeline with the code of its classes, so that the folder loads where this package is not installed.

    Weights are safetensors, in several files above `max_shard_size`. What an earlier export left in the folder is
    replaced, other files are left alone; with `variant`, weights of other variants stay. The new pipeline is written
    whole before the first file of an old one is replaced. No configuration says where a part had been loaded from.

    Args:
        pipeline: any diffusers pipeline.
        folder: where it goes.
        variant: part of the weights' file names, `fp16`, say.
        max_shard_size: largest file of weights, in bytes or as "5GB".

    Returns:
        The folder.

    Raises:
        BundlingError: for a class whose code can't travel in one file.
        FileExistsError: when `folder` is a file.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"folder '{target}' is a file.")
    partial = target / ".export.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        pipeline.save_pretrained(partial, variant=variant, max_shard_size=max_shard_size)
        _forget_places(partial)
        _write_code(pipeline, partial)
        _publish(partial, target, variant)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _forget_places(folder: Path) -> None:
    """Take out of the configurations where this machine had loaded each part from; it may name people and projects."""
    for file in (folder / INDEX, *folder.glob("*/*.json")):
        config = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_code(pipeline: DiffusionPipeline, folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    for name, component in pipeline.components.items():
        component_class = type(getattr(component, "_orig_mod", component))  # torch.compile wraps
        if component is not None and _brings_code(component_class):
            index[name] = [_write_class(component_class, folder / name), component_class.__name__]
    if _brings_code(type(pipeline)):
        library = _write_class(type(pipeline), folder)
        (folder / PIPELINE_FILE).write_text(_pipeline_file(library, type(pipeline).__name__))
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _brings_code(some_class: type) -> bool:
    return some_class.__module__.partition(".")[0] not in KNOWN_LIBRARIES


def _write_class(some_class: type, folder: Path) -> str:
    """Write the code of a class into a folder; the name of the file without its ending."""
    source = _source_of(some_class)
    digest = hashlib.sha256(source.encode()).hexdigest()
    module = some_class.__module__
    ours = module.partition(".")[0] == LIBRARY or is_code_name(module.rpartition(".")[2])
    library = code_name(digest) if ours else f"{module.rpartition('.')[2]}_{digest[:12]}"
    (folder / f"{library}.py").write_text(source, encoding="utf-8")
    return library


def _source_of(some_class: type) -> str:
    """One file with the class and what it needs; as it is when it was loaded from such a file."""
    file = inspect.getsourcefile(sys.modules[some_class.__module__]) or ""
    if is_code_name(Path(file).stem):
        return Path(file).read_text(encoding="utf-8")
    return bundle(some_class.__module__)


def _pipeline_file(library: str, class_name: str) -> str:
    """The file whose name is the same in all repositories, for `custom_pipeline=repo_id`.

    From the Hub, diffusers keeps one for each commit. From a folder, all share one file and one module, where classes
    of others may be left, and Python takes a file for unchanged whose length and second are: so this one clears the
    module, and its length follows from its content.
    """
    length = 1 + int(hashlib.sha256(library.encode()).hexdigest()[:3], 16)
    ruler = "\n".join("# " + "." * min(100, length - start) for start in range(0, length, 100))
    return f'''"""Hands on {class_name}, which `custom_pipeline="{library}"` names directly."""

# Another repository's file of this name may have been run in this module.
for _name in [name for name in globals() if not name.startswith("_")]:
    del globals()[_name]

from .{library} import {class_name}  # noqa: E402

# The dots give this file a length of its own, by which Python tells it from other repositories' files.
{ruler}
'''


def _publish(partial: Path, target: Path, variant: str | None) -> None:
    """Move everything into place, `model_index.json` last, and remove what only an earlier export needed."""
    old = _exported_entries(target)
    entries = sorted(partial.iterdir(), key=lambda path: path.name == INDEX)
    for entry in entries:
        place = target / entry.name
        if entry.is_dir() and place.is_dir() and entry.name not in old:
            _add_files(entry, place)  # somebody's folder that happens to have a component's name
        elif entry.is_dir() and variant is not None and place.is_dir():
            _add_variant(entry, place, variant)
        elif entry.is_dir():
            _replace_folder(entry, place)
        else:
            os.replace(entry, place)
    for name in old - {entry.name for entry in entries}:
        path = target / name
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _exported_entries(folder: Path) -> set[str]:
    """Names in the folder that belong to the pipeline in it: components and code files."""
    if not (folder / INDEX).is_file():
        return set()
    index = json.loads((folder / INDEX).read_text())
    # Only names of folders right here: the index may be somebody else's, and what this returns may be removed.
    components = {path.name for path in folder.iterdir() if path.is_dir() and isinstance(index.get(path.name), list)}
    code = {path.name for path in folder.glob("*.py") if path.name == PIPELINE_FILE or CODE_FILE.fullmatch(path.stem)}
    return components | code


def _replace_folder(new: Path, place: Path) -> None:
    retired = place.with_name(f".{place.name}.old.partial")
    shutil.rmtree(retired, ignore_errors=True)
    if place.exists():
        os.replace(place, retired)
    os.replace(new, place)
    shutil.rmtree(retired, ignore_errors=True)


def _add_variant(new: Path, place: Path, variant: str) -> None:
    """Put files beside those of other variants; replace those of this variant, and old code."""
    for old in place.iterdir():
        if f".{variant}." in old.name or f".{variant}-" in old.name or CODE_FILE.fullmatch(old.stem):
            old.unlink()
    _add_files(new, place)


def _add_files(new: Path, place: Path) -> None:
    for file in new.iterdir():
        os.replace(file, place / file.name)


# --- push -------------------------------------------------------------------------------------------------------------


def push_to_hub(
    pipeline: DiffusionPipeline | str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload with diffusers_ext",
    variant: str | None = None,
    max_shard_size: int | str = "5GB",
    ignore_patterns: Sequence[str] = (),
    attempts: int = 4,
) -> CommitInfo:
    """Put a pipeline, or the folder of an export or a training run, into a repository on the Hub, as one commit.

    Files that an earlier push of this kind brought and that are no more are deleted; all other files in the repository
    are left alone. Checkpoints, logs, hidden files and half-written ones stay at home (`NOT_PUSHED`). A model card is
    made where there is none, and the calls on it name this repository; one that somebody wrote on the Hub stays, unless
    the folder has one of its own making, too. Of absolute paths in the recipe and the evaluation, the last part goes.

    Args:
        pipeline: a pipeline, which is exported first, or a folder.
        repo_id: "user/name", or "name" for one's own.
        private: whether the repository is private if it must be created; the account's default when None.
        token: of an account that may write; the one of `hf auth login` when None. It is written nowhere.
        revision: branch to commit to, created where it is missing; `main` when None.
        create_pr: open a pull request with the commit instead.
        commit_message: first line of the commit.
        variant, max_shard_size: as in `export`, for a pipeline.
        ignore_patterns: more names of files or folders, relative to the folder, that stay at home.
        attempts: how often to try when the connection is lost or the Hub is out of order, with growing pauses.

    Returns:
        `CommitInfo` of huggingface_hub, with `oid`, `commit_url` and `pr_url`.

    Raises:
        FileNotFoundError: when the folder has no model_index.json.
        huggingface_hub.errors.HfHubHTTPError: when the Hub refuses, or is still out of order after the last attempt.
    """
    if isinstance(pipeline, DiffusionPipeline):
        with tempfile.TemporaryDirectory() as temporary:
            export(pipeline, temporary, variant=variant, max_shard_size=max_shard_size)
            return push_to_hub(
                temporary,
                repo_id,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message,
                ignore_patterns=ignore_patterns,
                attempts=attempts,
            )
    folder = Path(pipeline)
    files = files_to_push(folder, ignore_patterns)
    api = HfApi(token=token)

    def push() -> CommitInfo:
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        operations = _operations(api, repo, revision, folder, files)
        return api.create_commit(
            repo, operations, commit_message=commit_message, revision=revision, create_pr=create_pr
        )

    return _with_patience(push, attempts)


def files_to_push(folder: Path, ignore_patterns: Sequence[str] = ()) -> list[str]:
    """What of a folder goes to the Hub, as paths with forward slashes.

    Raises:
        FileNotFoundError: when it holds no pipeline.
    """
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(f"There is no pipeline in '{folder}': {INDEX} is missing.")
    patterns = (*NOT_PUSHED, *(Path(pattern).as_posix() for pattern in ignore_patterns))  # "./logs/" is "logs"
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        parts = path.relative_to(folder).parts
        starts = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        if not any(fnmatch.fnmatch(start, pattern) for start in starts for pattern in patterns):
            found.append("/".join(parts))
    return found


def _operations(
    api: HfApi, repo_id: str, revision: str | None, folder: Path, files: list[str]
) -> list[CommitOperationAdd | CommitOperationDelete]:
    there = set(api.list_repo_files(repo_id, revision=revision))

    def read(path: str) -> str:
        with tempfile.TemporaryDirectory() as cache:
            file = api.hf_hub_download(repo_id, path, revision=revision, cache_dir=cache)
            return Path(file).read_text(encoding="utf-8", errors="replace")

    card = card_text(folder, repo_id)
    files = sorted({*files, CARD, PUSHED})
    written = {
        CARD: card.encode(),
        PUSHED: (json.dumps({"made_by": LIBRARY, "files": files}, indent=2) + "\n").encode(),
        **_records_without_places(folder, files),
    }
    kept = {CARD} if CARD in there and not is_taken_over(card) and is_taken_over(read(CARD)) else set()
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path, written.get(path, str(folder / path))) for path in files if path not in kept
    ]
    stale = _listed(read(PUSHED)) & there - set(files) if PUSHED in there else set()
    return operations + [CommitOperationDelete(path) for path in sorted(stale)]


def _listed(text: str) -> set[str]:
    """The files that the last push brought, as it wrote them down."""
    try:
        return {path for path in json.loads(text)["files"] if isinstance(path, str)}
    except (ValueError, KeyError, TypeError):
        return set()


def _records_without_places(folder: Path, files: list[str]) -> dict[str, bytes]:
    """The recipe and the evaluation without the places of files on this machine, whose names may tell too much."""
    written = {}
    if RECIPE in files:
        recipe = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8"))
        written[RECIPE] = yaml.safe_dump(_last_parts(recipe), sort_keys=False).encode()
    if EVALUATION in files:
        report = json.loads((folder / EVALUATION).read_text(encoding="utf-8"))
        written[EVALUATION] = (json.dumps(_last_parts(report), indent=2) + "\n").encode()
    return written


def _last_parts(value: Any) -> Any:
    """The value with the last part of each absolute path in it, for the path."""
    if isinstance(value, dict):
        return {key: _last_parts(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_last_parts(item) for item in value]
    for kind in (PurePosixPath, PureWindowsPath):
        if isinstance(value, str) and kind(value).is_absolute():
            return f"./{kind(value).name}"
    return value


def _with_patience(push: Callable[[], CommitInfo], attempts: int) -> CommitInfo:
    for attempt in range(1, attempts):
        try:
            return push()
        except Exception as error:
            if not may_pass(error):
                raise
            pause = 4 ** (attempt - 1)
            reason = " ".join(str(error).split())[:200]
            logger.warning("Pushing to the Hub failed (%s); trying again in %d s.", reason, pause)
            time.sleep(pause)
    return push()


def may_pass(error: BaseException) -> bool:
    """Whether it is the connection's or the server's fault rather than the caller's."""
    if isinstance(error, OfflineModeIsEnabled):
        return False
    cause: BaseException | None = error
    while cause is not None:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            return status >= 500 or status in (408, 429)
        if isinstance(cause, (ConnectionError, TimeoutError)) or "Connect" in type(cause).__name__:
            return True
        if type(cause).__name__ in ("RemoteProtocolError", "ReadError", "WriteError", "ReadTimeout", "WriteTimeout"):
            return True
        cause = cause.__cause__
    return False
