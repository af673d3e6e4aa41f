"""Saving a trained pipeline whole, and pushing it."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from huggingface_hub import create_repo, upload_folder

from . import checkpoint
from .arguments import TrainingArguments

logger = logging.getLogger(__name__)

# What a training run writes besides the pipeline, and what nobody who loads it needs.
NOT_PUSHED = ["checkpoint-*", "checkpoint-*/*", "logs/*", ".*.partial/*", "*.partial"]


def save_pipeline(pipeline: DiffusionPipeline, output_dir: Path) -> None:
    """Save beside, then move every component into place, `model_index.json` last."""
    partial = checkpoint.partial_path(output_dir / "pipeline")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial)
    for entry in sorted(partial.iterdir(), key=lambda p: p.name == "model_index.json"):
        target = output_dir / entry.name
        if entry.is_dir():
            checkpoint.publish(entry, target)
        else:
            os.replace(entry, target)
    shutil.rmtree(partial)


def push_pipeline(output_dir: Path, arguments: TrainingArguments, message: str) -> None:
    """Upload the saved pipeline with its samples and metrics; a failure is reported and the run goes on."""
    try:
        repo_id = create_repo(
            arguments.hub_model_id or output_dir.resolve().name,
            token=arguments.hub_token,
            private=arguments.hub_private_repo,
            exist_ok=True,
        ).repo_id
        upload_folder(
            repo_id=repo_id,
            folder_path=output_dir,
            commit_message=message,
            token=arguments.hub_token,
            ignore_patterns=[*NOT_PUSHED, f"{arguments.logging_dir}/*"],
        )
    except Exception as error:  # a lost connection must not cost a training run
        logger.warning(
            "Pushing to the Hub failed (%s); the files are in '%s'.", " ".join(str(error).split()), output_dir
        )
