"""Saving a trained pipeline as a folder that travels, and pushing it while training goes on."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import threading
from pathlib import Path

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ..hub.averages import RECIPE, RECONSTRUCTION
from ..hub.export import export
from ..hub.model_card import write_card
from ..hub.push import files_to_push, push_to_hub
from ..hub.redaction import redacted
from ..training import checkpoint
from .arguments import TrainingArguments

logger = logging.getLogger(__name__)


def save_pipeline(pipeline: DiffusionPipeline, output_dir: Path, arguments: TrainingArguments) -> None:
    """Save the pipeline with the code of its classes, the recipe and the model card; whole or not at all."""
    export(pipeline, output_dir)
    (output_dir / RECONSTRUCTION).unlink(missing_ok=True)
    (output_dir / RECIPE).write_text(arguments.to_yaml(), encoding="utf-8")
    describe(output_dir, arguments)


def describe(output_dir: Path, arguments: TrainingArguments) -> None:
    """Bring the model card up to date; a card that can't be written costs nothing else."""
    repo_id = arguments.hub_model_id or output_dir.resolve().name
    try:
        write_card(output_dir, repo_id if "/" in repo_id else f"user/{repo_id}")
    except (ValueError, OSError) as error:
        logger.warning("The model card could not be written (%s).", " ".join(str(error).split()))


class HubPusher:
    """Pushes the output folder of a run: in the background while it trains, and once more at its end.

    Nothing that goes wrong here stops a run: it is reported, with the command that pushes later.

    Args:
        output_dir: of the run.
        arguments: of the run; `push_to_hub` False makes both methods do nothing.
    """

    def __init__(self, output_dir: Path, arguments: TrainingArguments):
        self.output_dir, self.arguments = output_dir, arguments
        self._thread: threading.Thread | None = None

    def push(self, message: str) -> None:
        """Push the folder as it is now, without waiting; left out while an earlier push is under way."""
        if not self.arguments.push_to_hub or (self._thread is not None and self._thread.is_alive()):
            return
        try:
            staged = self._stage()
        except OSError as error:
            self._report(error)
            return
        # A daemon: a run that ends does not wait for it, and a commit cut short changes nothing on the Hub.
        self._thread = threading.Thread(target=self._push, args=(staged, message), daemon=True)
        self._thread.start()

    def push_last(self, message: str) -> None:
        """Push the folder and wait until it is done."""
        if not self.arguments.push_to_hub:
            return
        if self._thread is not None:
            self._thread.join()
        self._push(self.output_dir, message)

    def _stage(self) -> Path:
        """A copy to push from, for training changes the folder meanwhile; weights are linked where that can be."""
        staged = checkpoint.partial_path(self.output_dir / "push")
        shutil.rmtree(staged, ignore_errors=True)
        for name in files_to_push(self.output_dir, [self.arguments.logging_dir]):
            target = staged / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.suffix == ".safetensors" and _linked(self.output_dir / name, target):
                continue
            shutil.copyfile(self.output_dir / name, target)
        return staged

    def _push(self, folder: Path, message: str) -> None:
        a = self.arguments
        try:
            push_to_hub(
                folder,
                self._repo_id,
                private=a.hub_private_repo or None,
                token=a.hub_token,
                commit_message=message,
                ignore_patterns=[a.logging_dir],
            )
        except Exception as error:  # a lost connection must not cost a training run
            self._report(error)
        finally:
            if folder != self.output_dir:
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def _repo_id(self) -> str:
        return self.arguments.hub_model_id or self.output_dir.resolve().name

    def _report(self, error: BaseException) -> None:
        reason = " ".join(redacted(error, self.arguments.hub_token).split())
        private = " --private" if self.arguments.hub_private_repo else ""
        logging_dir = self.arguments.logging_dir
        logs = f" --ignore_patterns {shlex.quote(logging_dir)}" if logging_dir != "logs" else ""
        logger.warning(
            "Pushing to the Hub failed (%s); the files are in '%s', push them later with: "
            "diffusers-ext push --model %s --repo_id %s%s%s",
            reason,
            self.output_dir,
            shlex.quote(str(self.output_dir)),
            shlex.quote(self._repo_id),
            private,
            logs,
        )


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        return False
    return True
