"""Saving a trained pipeline as a folder that travels, and pushing it while training goes on."""

from __future__ import annotations

import inspect
import logging
import os
import shlex
import shutil
import threading
from pathlib import Path
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors.torch import save_file

from ..files import atomic_write, one_line, partial_path
from ..hub.averages import RECONSTRUCTION
from ..hub.bundle import BundlingError
from ..hub.export import export
from ..hub.model_card import write_card
from ..hub.provenance import write_provenance
from ..hub.push import files_to_push, push_to_hub
from ..hub.redaction import redacted
from ..hub.stamp import stamped
from ..settings.recipes import RECIPE_FILE
from .checkpoint import packed
from .plain import PlainNetwork

logger = logging.getLogger(__name__)

PLAIN_WEIGHTS, PLAIN_SOURCE = "network.safetensors", "network.py"


def save_pipeline(pipeline: DiffusionPipeline, output_dir: Path, recipe: str, repo_id: str | None = None) -> None:
    """Save the pipeline with the code of its classes, the recipe and the model card; whole or not at all.

    A network that is a plain module, which no pipeline can load, is saved as its weights and its source instead.

    Args:
        pipeline: of the run, or the autoencoder that it trained.
        recipe: its settings, as YAML.
        repo_id: the repository on the Hub; named like the folder when None.
    """
    if not isinstance(pipeline, DiffusionPipeline):
        _save_autoencoder(pipeline, output_dir, recipe)
        return
    if isinstance(pipeline.unet, PlainNetwork):
        _save_plain(pipeline, output_dir)
        atomic_write(output_dir / RECIPE_FILE, stamped(recipe))
        return
    try:
        export(pipeline, output_dir)
    except BundlingError as error:  # the weights and the configuration can be saved all the same
        export(pipeline, output_dir, code=False)
        logger.warning(
            "The pipeline was saved without the source of its classes (%s); it loads where they can be imported.",
            one_line(error).rstrip("."),
        )
    (output_dir / RECONSTRUCTION).unlink(missing_ok=True)
    atomic_write(output_dir / RECIPE_FILE, stamped(recipe))
    describe(output_dir, repo_id)


def _save_autoencoder(vae: Any, output_dir: Path, recipe: str) -> None:
    """As diffusers loads it by `from_pretrained`, with its settings."""
    partial = partial_path(output_dir / "autoencoder")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        vae.save_pretrained(partial)
        for file in sorted(partial.iterdir()):
            file.replace(output_dir / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    write_provenance(output_dir)
    atomic_write(output_dir / RECIPE_FILE, stamped(recipe))


def _save_plain(pipeline: Any, output_dir: Path) -> None:
    network = pipeline.unet.network
    is_first = not (output_dir / PLAIN_WEIGHTS).exists()
    atomic_write(output_dir / PLAIN_WEIGHTS, lambda partial: save_file(packed(network.state_dict()), partial))
    pipeline.scheduler.save_pretrained(output_dir / "scheduler")
    try:
        source = Path(inspect.getsourcefile(type(network)) or "").read_text(encoding="utf-8")
        atomic_write(output_dir / PLAIN_SOURCE, source)
        where = f"its source in '{PLAIN_SOURCE}'"
    except (OSError, TypeError, UnicodeDecodeError):
        where = "its source was not found"
    if is_first:
        logger.warning(
            "%s is a plain torch module, which diffusers can't load as a part of a pipeline: its weights are in '%s', "
            "%s. Derive it from ModelMixin and ConfigMixin of diffusers to save a pipeline that loads by "
            "from_pretrained.",
            type(network).__name__,
            output_dir / PLAIN_WEIGHTS,
            where,
        )


def describe(output_dir: Path, repo_id: str | None = None) -> None:
    """Bring the model card up to date; a card that can't be written costs nothing else."""
    repo_id = repo_id or output_dir.resolve().name
    try:
        write_card(output_dir, repo_id if "/" in repo_id else f"user/{repo_id}")
    except (ValueError, OSError) as error:
        logger.warning("The model card could not be written (%s).", one_line(error))


class HubPusher:
    """Pushes the output folder of a run: in the background while it trains, and once more at its end.

    Nothing that goes wrong here stops a run: it is reported, with the command that pushes later.

    Args:
        repo_id: the repository; named like the folder when None.
        private: whether it is created as a private one.
        token: of the Hub, or None for the one of `hf auth login`.
        logging_dir: the tracker's folder in `output_dir`, which is not pushed.
    """

    def __init__(
        self,
        output_dir: Path,
        repo_id: str | None = None,
        private: bool = False,
        token: str | None = None,
        logging_dir: str = "logs",
    ):
        self.output_dir, self._private, self._token, self._logging_dir = output_dir, private, token, logging_dir
        self._repo_id = repo_id or output_dir.resolve().name
        self._thread: threading.Thread | None = None

    def push(self, message: str) -> None:
        """Push the folder as it is now, without waiting; left out while an earlier push is under way."""
        if self._thread is not None and self._thread.is_alive():
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
        if self._thread is not None:
            self._thread.join()
        self._push(self.output_dir, message)

    def _stage(self) -> Path:
        """A copy to push from, for training changes the folder meanwhile; weights are linked where that can be."""
        staged = partial_path(self.output_dir / "push")
        shutil.rmtree(staged, ignore_errors=True)
        for name in files_to_push(self.output_dir, [self._logging_dir]):
            target = staged / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.suffix == ".safetensors" and _linked(self.output_dir / name, target):
                continue
            shutil.copyfile(self.output_dir / name, target)
        return staged

    def _push(self, folder: Path, message: str) -> None:
        try:
            push_to_hub(
                folder,
                self._repo_id,
                private=self._private or None,
                token=self._token,
                commit_message=message,
                ignore_patterns=[self._logging_dir],
            )
        except Exception as error:  # a lost connection must not cost a training run
            self._report(error)
        finally:
            if folder != self.output_dir:
                shutil.rmtree(folder, ignore_errors=True)

    def _report(self, error: BaseException) -> None:
        reason = " ".join(redacted(error, self._token).split())
        private = " --private" if self._private else ""
        logging_dir = self._logging_dir
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
