"""Checkpoints that are whole or absent: written beside, verified by a manifest, then renamed.

A checkpoint holds the parts of a run by name: `NAME.safetensors` with the tensors of a part, and in
`trainer_state.json` what else its `state_dict` gave. Nothing in it is a pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..files import atomic_write, attempt, one_line
from .state import Stateful

MANIFEST = "manifest.json"
STATE = "trainer_state.json"
BRANCH = ".went-on-from.json"  # beside the checkpoints: the one that the run went on from, while it is not the newest
_NAME = re.compile(r"checkpoint-(\d+)")


class CheckpointError(ValueError):
    """A checkpoint that can't be used; the message says which and why."""


def checkpoint_path(output_dir: Path, step: int) -> Path:
    """Where the checkpoint of an optimizer step lives."""
    return output_dir / f"checkpoint-{step}"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Checkpoint folders, oldest first; partial ones are not among them."""
    found = [p for p in output_dir.glob("checkpoint-*") if _NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=_step_of)


def own_checkpoints(output_dir: Path) -> list[Path]:
    """Those that the run would go on from, oldest first: none of a branch that it has left, if not yet replaced."""
    found = list_checkpoints(output_dir)
    try:
        branch = json.loads((output_dir / BRANCH).read_text(encoding="utf-8"))
        path, step = output_dir / branch["path"], int(branch["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return found
    return [*(p for p in found if _step_of(p) < step), path] if path.is_dir() else found


def mark_branch(output_dir: Path, path: Path, step: int) -> None:
    """Remember that the run went on from `path`, of `step`, unless that is the newest checkpoint anyway."""
    path, newest = path.resolve(), list_checkpoints(output_dir.resolve())[-1:]
    if newest == [path]:
        unmark_branch(output_dir)
        return
    file = output_dir / BRANCH
    place = path.name if path.parent == output_dir.resolve() else str(path)
    atomic_write(file, json.dumps({"path": place, "step": step}))


def unmark_branch(output_dir: Path) -> None:
    """Forget it: the newest checkpoint is the run's own."""
    (output_dir / BRANCH).unlink(missing_ok=True)


def _step_of(path: Path) -> int:
    return int(path.name.split("-")[1])


def remove_partial(output_dir: Path) -> None:
    """Delete what a killed run left half written; a checkpoint that it was about to replace is put back."""
    for retired in output_dir.glob(".checkpoint-*.old.partial"):
        path = output_dir / retired.name[1:].removesuffix(".old.partial")
        if not path.exists():
            os.replace(retired, path)
    for leftover in output_dir.glob(".*.partial"):
        if leftover.is_file():
            leftover.unlink(missing_ok=True)
        shutil.rmtree(leftover, ignore_errors=True)


def seal(folder: Path) -> None:
    """Write the manifest (size and digest of every file) into a folder that is otherwise complete."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    manifest = {p.relative_to(folder).as_posix(): {"size": p.stat().st_size, "digest": _digest(p)} for p in files}
    for file in files:
        _flush_to_disk(file)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2))
    _flush_to_disk(folder / MANIFEST)


def save_parts(parts: Mapping[str, Stateful], folder: Path, is_main: bool) -> str:
    """Write the tensors of all parts into a folder, and their other values into `STATE`; what went wrong, or "".

    All processes call this: a part may be gathered from all of them. A process that cannot write still takes part in
    all gathering that the others wait in.
    """
    problem, values = "", {}
    for name, part in parts.items():
        state = part.state_dict()
        tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
        values[name] = {key: value for key, value in state.items() if key not in tensors}
        if is_main and tensors and not problem:
            problem = attempt(partial(save_file, packed(tensors), folder / f"{name}.safetensors"))
    if is_main and not problem:
        problem = attempt(lambda: (folder / STATE).write_text(json.dumps(values, indent=2), encoding="utf-8"))
    return problem


def load_parts(parts: Mapping[str, Stateful], path: Path) -> None:
    """Give all parts the state that a checkpoint holds of them.

    Raises:
        CheckpointError: in one sentence, when it is the state of another kind of run.
    """
    values = json.loads((path / STATE).read_text(encoding="utf-8"))
    for name, part in parts.items():
        file = path / f"{name}.safetensors"
        try:
            if name in values:
                part.load_state_dict({**values[name], **(load_file(file) if file.is_file() else {})})
            elif hasattr(part, "start_afresh"):
                part.start_afresh()
            else:
                raise ValueError(f"it holds no state of the {name}")
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            reason = one_line(error)[:400].rstrip(".")
            raise CheckpointError(f"Checkpoint '{path}' can't be resumed: {reason}.") from None


def packed(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As safetensors wants them: contiguous, which channels-last weights are not, and none in the memory of another."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        shared = tensor.untyped_storage().data_ptr() in seen
        seen.add(tensor.untyped_storage().data_ptr())
        result[name] = tensor.clone(memory_format=torch.contiguous_format) if shared else tensor.contiguous()
    return result


def publish(partial: Path, path: Path) -> None:
    """Put a complete folder in its place; an older one there is replaced."""
    if path.exists():
        retired = path.with_name(f".{path.name}.old.partial")
        shutil.rmtree(retired, ignore_errors=True)
        os.replace(path, retired)
        os.replace(partial, path)
        shutil.rmtree(retired, ignore_errors=True)
    else:
        os.replace(partial, path)


def later_than(output_dir: Path, step: int) -> list[Path]:
    """Checkpoints of later steps: damaged, or of a branch that a resumed run has left."""
    return [path for path in list_checkpoints(output_dir) if _step_of(path) > step]


def retire_after(output_dir: Path, step: int) -> list[str]:
    """Delete checkpoints of later steps; their names."""
    later = later_than(output_dir, step)
    for path in later:
        shutil.rmtree(path, ignore_errors=True)
    return [path.name for path in later]


def limit_checkpoints(output_dir: Path, limit: int | None) -> None:
    """Delete the oldest checkpoints beyond `limit`."""
    if limit is not None:
        for old in list_checkpoints(output_dir)[:-limit]:
            shutil.rmtree(old, ignore_errors=True)


def verify(path: Path) -> None:
    """Check that all files of a checkpoint are there and unchanged.

    Raises:
        CheckpointError: naming the first file that is missing or damaged.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for name, entry in manifest.items():
            file = path / name
            if not file.is_file():
                raise CheckpointError(f"Checkpoint '{path}' lacks {name}.")
            if file.stat().st_size != entry["size"] or _digest(file) != entry["digest"]:
                raise CheckpointError(f"Checkpoint '{path}' is damaged: {name} is not what was written.")
        json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"Checkpoint '{path}' has no readable {MANIFEST} and {STATE}.") from None


def read_state(path: Path) -> dict[str, dict[str, Any]] | None:
    """What a checkpoint holds of its parts besides tensors, unverified; None when it can't be read."""
    try:
        return dict(json.loads((path / STATE).read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError, TypeError, ValueError):
        return None


def newest_usable(output_dir: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest own checkpoint that verifies, or None without checkpoints; damaged ones are skipped with a warning.

    Raises:
        CheckpointError: when there are checkpoints and all are damaged.
    """
    found = own_checkpoints(output_dir)
    for path in reversed(found):
        try:
            verify(path)
            return path
        except CheckpointError as error:
            if path == found[0]:
                raise CheckpointError(
                    f"No checkpoint in '{output_dir}' can be used; the oldest one: {error} Nothing was deleted; start "
                    "afresh with overwrite_output_dir or in another folder."
                ) from None
            warn(f"{error} Falling back to the checkpoint before it.")
    return None


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()


def _flush_to_disk(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
