"""Push the folder of an export or a training run to a repository on the Hub.

Only files that this package writes are pushed, by name: `files_to_push`. Links are never followed. The pushed copies of
the recipe, the evaluation and the configurations name no folders of this machine.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import OfflineModeIsEnabled

from ..settings.recipes import RECIPE_FILE, read_typed
from .averages import RECONSTRUCTION
from .export import INDEX, PIPELINE_FILE, export
from .model_card import CARD, CODE_FILE, EVALUATION, METRICS, PICTURES, card_text, is_taken_over
from .provenance import PROVENANCE
from .redaction import clean_token, redacted
from .registration import LIBRARY

logger = logging.getLogger(__name__)

# Lists the files of the last push, so that the next one can delete those that are no more.
PUSHED = "pushed_files.json"
RECORDS = (RECIPE_FILE, RECONSTRUCTION, METRICS, EVALUATION, PROVENANCE)
ROOT_FILES = (INDEX, PIPELINE_FILE, CARD, "LICENSE", "LICENSE.*", *RECORDS)
COMPANIONS = (*PICTURES, "figures/*.png", "figures/*.gif", "samples/*.png", "samples/*.gif")
# What diffusers and transformers write for a network, a scheduler, a text encoder, a tokenizer or an image processor.
COMPONENT_FILES = (
    *("config.json", "*_config.json", "*.safetensors", "*.safetensors.index.json", "*.safetensors.index.*.json"),
    *("tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja"),
)


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
    allow_patterns: Sequence[str] = (),
    attempts: int = 4,
) -> CommitInfo:
    """Push a pipeline, or the folder of an export or a training run, to a repository on the Hub, in one commit.

    Files of an earlier push that are no longer in the folder are deleted from the repository; its other files are left
    alone. A model card is written if the folder has none, with this repository's name in its examples. A card that
    somebody wrote on the Hub is kept, unless the folder has one that was written by hand too.

    Args:
        pipeline: a pipeline, which is exported first, or a folder.
        repo_id: "user/name", or "name" for a repository of your own.
        private: whether to create the repository as a private one; None for the default of the account.
        token: of an account that may write; None for the token of `hf auth login`. It is not written to any file.
        revision: branch to commit to, created if it is missing; None for `main`.
        create_pr: whether to open a pull request with the commit.
        commit_message: first line of the commit.
        variant, max_shard_size: as in `export`; only for a pipeline.
        ignore_patterns: names of files or folders, relative to the folder, that are not pushed.
        allow_patterns: more files to push, relative to the folder, beside those of `files_to_push`.
        attempts: how often to try, with growing pauses, while the connection fails or the Hub is out of order.

    Returns:
        `CommitInfo` of huggingface_hub, with `oid`, `commit_url` and `pr_url`.

    Raises:
        FileNotFoundError: if the folder has no model_index.json.
        ValueError: if the token has characters that no token has.
        huggingface_hub.errors.HfHubHTTPError: if the Hub refuses, or is still out of order at the last attempt.
    """
    token = clean_token(token)
    with contextlib.ExitStack() as stack:
        folder = pipeline
        if isinstance(pipeline, DiffusionPipeline):
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            export(pipeline, folder, variant=variant, max_shard_size=max_shard_size)
        folder = Path(folder)
        files = files_to_push(folder, ignore_patterns, allow_patterns)
        api = HfApi(token=token)

        def push() -> CommitInfo:
            repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None:
                api.create_branch(repo, branch=revision, exist_ok=True)
            operations = _operations(api, repo, revision, folder, files)
            return api.create_commit(
                repo, operations, commit_message=commit_message, revision=revision, create_pr=create_pr
            )

        return _with_retries(push, attempts, token)


# --- which files ------------------------------------------------------------------------------------------------------


def files_to_push(folder: Path, ignore_patterns: Sequence[str] = (), allow_patterns: Sequence[str] = ()) -> list[str]:
    """The files of a folder that `push_to_hub` pushes, as paths with forward slashes.

    These are the files that belong to the pipeline in the folder, and the records and pictures of its training run, by
    their names. Checkpoints, logs, hidden files, links and all others are not pushed.

    Raises:
        FileNotFoundError: if there is no pipeline in the folder.
    """
    if not _is_file(folder, INDEX):
        raise FileNotFoundError(f"There is no pipeline in '{folder}': {INDEX} is missing or is a link.")
    components = _components(folder)
    allowed = [Path(pattern).as_posix() for pattern in allow_patterns]
    ignored = [Path(pattern).as_posix() for pattern in ignore_patterns]  # "./logs/" is "logs"

    def is_pushed(path: str) -> bool:
        starts = ["/".join(path.split("/")[: n + 1]) for n in range(path.count("/") + 1)]
        if any(part.startswith(".") for part in path.split("/")) or _matches(starts, ignored):
            return False
        return _is_known(path, components) or _matches(starts, allowed)

    return sorted(path for path in _regular_files(folder) if is_pushed(path))


def companions(folder: Path) -> list[str]:
    """The records and pictures of a training run in a folder, as `files_to_push` names them."""
    return sorted(p for p in _regular_files(folder) if p in (*RECORDS, *PICTURES) or _matches([p], COMPANIONS))


def _regular_files(folder: Path) -> Iterator[str]:
    for place, _, names in os.walk(folder, followlinks=False):
        for name in names:
            path = Path(place, name).relative_to(folder).as_posix()
            if _is_file(folder, path):
                yield path


def _is_file(folder: Path, path: str) -> bool:
    file = folder / path
    return file.is_file() and not file.is_symlink()


def _components(folder: Path) -> dict[str, str]:
    """Folders that `model_index.json` calls components -> the library, or code file, of the component's class."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"'{folder / INDEX}' is not valid JSON.") from None
    lists = index.items() if isinstance(index, dict) else ()
    return {name: str(value[0]) for name, value in lists if isinstance(value, list) and value}


def _is_known(path: str, components: dict[str, str]) -> bool:
    where, _, name = path.rpartition("/")
    is_code = name.endswith(".py") and CODE_FILE.fullmatch(name.removesuffix(".py")) is not None
    if not where:
        return is_code or _matches([name], ROOT_FILES) or name in PICTURES
    if where in components and (is_code or name == f"{components[where]}.py" or _matches([name], COMPONENT_FILES)):
        return True
    return _matches([path], COMPANIONS)


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


# --- what they say ----------------------------------------------------------------------------------------------------


def without_places(value: Any, key: str = "") -> Any:
    """A recipe, report or configuration in which paths of this machine are replaced by their last part.

    Args:
        value: what a YAML or JSON file holds.
        key: the name under which it stands; what stands under a name such as `train_data_dir` is always a path.
    """
    if isinstance(value, dict):
        return {k: without_places(item, str(k)) for k, item in value.items() if "token" not in str(k).split("_")}
    if isinstance(value, list):
        return [without_places(item, key) for item in value]
    if isinstance(value, str) and (key.endswith(("_dir", "folder")) or _is_path(value)):
        return f"./{PureWindowsPath(value).name}"
    return redacted(value) if isinstance(value, str) else value


def _is_path(value: str) -> bool:
    if any(kind(value).is_absolute() for kind in (PurePosixPath, PureWindowsPath)):
        return True
    if value.startswith(("~", "./", "../", ".\\", "..\\", "file:")) or re.search(r"\.py:\w+$", value):
        return "/" in value or "\\" in value
    if re.search(r"\s", value) or "://" in value:
        return False
    parts = re.split(r"[/\\]", value)
    # "user/name" is a name on the Hub, unless there is such a folder here.
    return len(parts) > 2 or "\\" in value or (len(parts) == 2 and os.path.exists(value))


def _rewritten(folder: Path, files: Sequence[str]) -> dict[str, bytes]:
    """The pushed copies of files that may name places of this machine."""
    written = {}
    for path in files:
        name = path.rpartition("/")[2]
        if path == RECIPE_FILE:
            recipe = without_places(read_typed(folder / path))
            written[path] = yaml.safe_dump(recipe, sort_keys=False).encode()
        elif path == EVALUATION or name in (INDEX, "config.json") or name.endswith("_config.json"):
            content = json.loads((folder / path).read_text(encoding="utf-8"))
            cleaned = without_places(content) if path == EVALUATION else _without_origin(content)
            if cleaned != content:
                written[path] = (json.dumps(cleaned, indent=2) + "\n").encode()
    return written


def _without_origin(config: Any) -> Any:
    """A configuration without the name of the folder that it was loaded from."""
    return {k: v for k, v in config.items() if k != "_name_or_path"} if isinstance(config, dict) else config


# --- the commit -------------------------------------------------------------------------------------------------------


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
        **_rewritten(folder, files),
        CARD: card.encode(),
        PUSHED: (json.dumps({"made_by": LIBRARY, "files": files}, indent=2) + "\n").encode(),
    }
    kept = {CARD} if CARD in there and not is_taken_over(card) and is_taken_over(read(CARD)) else set()
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path, written.get(path, str(folder / path))) for path in files if path not in kept
    ]
    stale = _listed(read(PUSHED)) & there - set(files) if PUSHED in there else set()
    return operations + [CommitOperationDelete(path) for path in sorted(stale)]


def _listed(text: str) -> set[str]:
    """The files of the last push, as it listed them."""
    try:
        return {path for path in json.loads(text)["files"] if isinstance(path, str)}
    except (ValueError, KeyError, TypeError):
        return set()


def _with_retries(push: Callable[[], CommitInfo], attempts: int, token: str | None) -> CommitInfo:
    for attempt in range(1, attempts):
        try:
            return push()
        except Exception as error:
            if not is_temporary(error):
                raise
            pause = 4 ** (attempt - 1)
            reason = " ".join(redacted(error, token).split())[:200]
            logger.warning("Pushing to the Hub failed (%s); trying again in %d s.", reason, pause)
            time.sleep(pause)
    return push()


def is_temporary(error: BaseException) -> bool:
    """Whether an error comes from the connection or the server, so that a later attempt may succeed."""
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
