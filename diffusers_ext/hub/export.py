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

import hashlib
import inspect
import json
import os
import shutil
import sys
from pathlib import Path

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from .bundle import bundle
from .model_card import CODE_FILE
from .provenance import write_provenance
from .registration import LIBRARY, code_name, is_code_name

INDEX = "model_index.json"
PIPELINE_FILE = "pipeline.py"
# Libraries that a machine which loads a diffusers pipeline has.
KNOWN_LIBRARIES = ("diffusers", "transformers")


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
        write_provenance(partial)
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
