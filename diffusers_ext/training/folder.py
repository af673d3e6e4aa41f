"""The output folder of a run: who may write into it, and what in it is the package's own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from ..files import atomic_write
from ..hub.stamp import is_unedited
from . import checkpoint
from .ema import SNAPSHOT_DIR, list_snapshots
from .recording import METRICS_FILE

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Says that the folder is one of a run, and which process writes into it now.
MARKER = ".run.json"
LOCK = ".run.lock"  # held while a run looks for others and claims the folder
# What a run writes under names that somebody else's file may have, and folders that must not be files.
WRITTEN = (
    "pipeline.py",
    "recipe.yaml",
    METRICS_FILE,
    "unet/config.json",
    "scheduler/scheduler_config.json",
    "figures/samples.png",
    "figures/schedule.png",
    "figures/losses.png",
    "figures/reconstructions.png",
    "figures/reverse.gif",
    "samples/step-*.png",
)
AUTOENCODER = ("config.json", "diffusion_pytorch_model.safetensors")  # what a run of one writes, too
STAMPED = ("pipeline.py", "recipe.yaml")  # those of them that people edit: their last line tells
FOLDERS = ("figures", "samples", SNAPSHOT_DIR, "unet", "scheduler")
REFRESHED_EVERY = 10.0  # seconds
CLAIM = 0.05  # seconds in which a run on another machine that began at the same time may claim the folder
SILENT_AFTER = 300.0  # seconds without a sign of life, after which a run on another machine counts as ended


class OutputFolder:
    """The folder of a run. Nothing is written into it before `open`, and one run at a time has it.

    Args:
        path: of the folder.
        resumes: whether the run goes on with what is in the folder.
        overwrites: whether a fresh run may replace an earlier one.
        also_written: further names in it that the run will write.

    Raises:
        FileExistsError: when something is there that a run would destroy, or a file where a folder must be.
        PermissionError: when nothing can be written there.
        ValueError: for an empty name.
    """

    def __init__(
        self,
        path: str,
        resumes: bool,
        overwrites: bool,
        also_written: Sequence[str] = (),
    ):
        if not str(path).strip():
            raise ValueError("output_dir must name a folder, got an empty text.")
        self.path = Path(path)
        self._resumes, self._overwrites, self._written = resumes, overwrites, (*WRITTEN, *also_written)
        self._refreshed = 0.0
        self._held = False
        self._check_places()
        self._check_contents()

    def _check_places(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"output_dir '{self.path}' is a file.")
        existing = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not existing.is_dir():
            raise FileExistsError(f"output_dir '{self.path}' lies below '{existing}', which is a file.")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(f"output_dir '{self.path}' can't be written: '{existing}' is read-only.")
        for name in FOLDERS:
            if (self.path / name).exists() and not (self.path / name).is_dir():
                raise FileExistsError(f"'{self.path / name}' is a file, and the run needs a folder of that name.")

    def _check_contents(self) -> None:
        is_run = (self.path / MARKER).is_file()
        holds_run = bool(checkpoint.list_checkpoints(self.path)) or (self.path / "model_index.json").is_file()
        holds_run = holds_run or (is_run and (self.path / AUTOENCODER[0]).is_file())
        if holds_run and not (self._resumes or self._overwrites):
            raise FileExistsError(
                f"output_dir '{self.path}' holds an earlier run; go on with --resume_from_checkpoint latest, "
                "start afresh with overwrite_output_dir, or choose another folder."
            )
        if holds_run or is_run:
            self._check_edited()
            return
        foreign = sorted(p.relative_to(self.path).as_posix() for name in self._written for p in self.path.glob(name))
        if foreign:
            raise FileExistsError(
                f"output_dir '{self.path}' holds {', '.join(foreign)}, which no run wrote and this one would replace; "
                "choose another folder."
            )

    def _check_edited(self) -> None:
        """Raise FileExistsError for a text file of an earlier run that somebody has written or edited since."""
        for file in (self.path / name for name in STAMPED):
            if file.is_file() and not is_unedited(file):
                raise FileExistsError(
                    f"'{file}' is not as a run wrote it, and this run would replace it; rename it or move it elsewhere."
                )

    def open(self) -> None:
        """Take the folder for this process, and make room: only what an earlier run wrote is removed.

        Raises:
            FileExistsError: when another run has it.
            OSError: when it can't be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(self.path / LOCK):
            self._refuse_other(_holder(self.path / MARKER))
            self._check_contents()  # another run may have come and gone since the first look
            owner = _write_marker(self.path / MARKER)
        time.sleep(CLAIM)
        if _read(self.path / MARKER) != owner:  # of two runs that began together, the one that wrote last has it
            self._refuse_other(_holder(self.path / MARKER))
        self._held = True
        checkpoint.remove_partial(self.path)
        checkpoint.remove_partial(self.path / SNAPSHOT_DIR)
        if self._overwrites and not self._resumes:
            self._clear()

    def _refuse_other(self, holder: str) -> None:
        if holder:
            raise FileExistsError(
                f"Another run, {holder}, is writing into '{self.path}'; wait for it, stop it, or choose another folder."
            )

    def _clear(self) -> None:
        for old in checkpoint.list_checkpoints(self.path):
            shutil.rmtree(old)
        checkpoint.unmark_branch(self.path)
        for file in [*(self.path / "samples").glob("step-*.png"), *list_snapshots(self.path)]:
            file.unlink()
        (self.path / METRICS_FILE).unlink(missing_ok=True)

    def refresh(self) -> None:
        """Show that this run is alive to machines that can't see its process."""
        if self._held and time.monotonic() - self._refreshed > REFRESHED_EVERY:
            self._refreshed = time.monotonic()
            with contextlib.suppress(OSError):
                os.utime(self.path / MARKER)

    def close(self) -> None:
        """Let another run have the folder."""
        if self._held:
            self._held = False
            with contextlib.suppress(OSError):  # a folder whose process is gone counts as free anyway
                atomic_write(self.path / MARKER, "{}")


@contextlib.contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """Context that one process at a time is in; without effect where files can't be locked."""
    with open(lock, "a", encoding="utf-8") as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _write_marker(marker: Path) -> dict[str, Any]:
    process = psutil.Process()
    owner = {"host": socket.gethostname(), "pid": process.pid, "started": process.create_time()}
    atomic_write(marker, json.dumps(owner))
    return owner


def _read(marker: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(marker.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _holder(marker: Path) -> str:
    """Which living process has the folder, in words; empty if there is none."""
    owner = _read(marker)
    if owner.keys() < {"host", "pid", "started"}:
        return ""
    if owner["host"] != socket.gethostname():
        silent = time.time() - marker.stat().st_mtime > SILENT_AFTER
        return "" if silent else f"process {owner['pid']} on {owner['host']}"
    try:
        process = psutil.Process(owner["pid"])
        alive = abs(process.create_time() - owner["started"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, TypeError):
        return ""
    return f"process {owner['pid']}" if alive else ""
