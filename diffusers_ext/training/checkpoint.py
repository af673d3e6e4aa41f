"""Checkpoints that are whole or absent: written beside, verified by a manifest, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
        branch = json.loads((output_dir / BRANCH).read_text())
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
    partial_path(file).write_text(json.dumps({"path": place, "step": step}))
    os.replace(partial_path(file), file)


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


def partial_path(path: Path) -> Path:
    """The place beside `path` where it is written before it is renamed."""
    return path.with_name(f".{path.name}.partial")


def seal(folder: Path, state: dict[str, Any]) -> None:
    """Write the state and the manifest (size and digest of every file) into a folder that is otherwise complete."""
    (folder / STATE).write_text(json.dumps(state, indent=2))
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    manifest = {p.relative_to(folder).as_posix(): {"size": p.stat().st_size, "digest": _digest(p)} for p in files}
    for file in files:
        _flush_to_disk(file)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2))
    _flush_to_disk(folder / MANIFEST)


def write_position(folder: Path, num_processes: int, process_index: int, position: Sequence[int]) -> None:
    """Keep where a process is in the stream of its data."""
    state = {"num_processes": num_processes, "position": list(position)}
    (folder / f"stream-{process_index}.json").write_text(json.dumps(state))


def read_position(folder: Path, num_processes: int, process_index: int) -> tuple[int, int, int, int]:
    """What `write_position` kept.

    Raises:
        CheckpointError: when the checkpoint is not of a streamed run, or of one by another number of processes.
    """
    file = folder / f"stream-{process_index}.json"
    if not (folder / "stream-0.json").is_file():
        raise CheckpointError(f"Checkpoint '{folder}' is not of a run with --streaming.")
    saved = json.loads((folder / "stream-0.json").read_text())["num_processes"]
    if saved != num_processes:
        raise CheckpointError(
            f"Checkpoint '{folder}' is of a streamed run by {saved} processes, whose shares {num_processes} processes "
            f"can't take over; resume it with --num_processes {saved}."
        )
    epoch, shard, row, used = json.loads(file.read_text())["position"]
    return epoch, shard, row, used


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


def verify(path: Path) -> dict[str, Any]:
    """The trainer state of a checkpoint whose files are all there and unchanged.

    Raises:
        CheckpointError: naming the first file that is missing or damaged.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, entry in manifest.items():
            file = path / name
            if not file.is_file():
                raise CheckpointError(f"Checkpoint '{path}' lacks {name}.")
            if file.stat().st_size != entry["size"] or _digest(file) != entry["digest"]:
                raise CheckpointError(f"Checkpoint '{path}' is damaged: {name} is not what was written.")
        return json.loads((path / STATE).read_text())
    except (OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"Checkpoint '{path}' has no readable {MANIFEST} and {STATE}.") from None


def read_state(path: Path) -> dict[str, Any] | None:
    """The trainer state of a checkpoint, unverified; None when it can't be read."""
    try:
        return dict(json.loads((path / STATE).read_text()))
    except (OSError, json.JSONDecodeError, TypeError, ValueError):
        return None


def newest_usable(output_dir: Path, warn: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest own checkpoint that verifies, with its state; damaged ones are skipped and reported to `warn`."""
    for path in reversed(own_checkpoints(output_dir)):
        try:
            return path, verify(path)
        except CheckpointError as error:
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
