"""Export a pipeline to a folder that loads with this package and without it.

For classes of this package, or of your own, `export` writes their code beside the weights and configurations:

    model_index.json    "_class_name": "GenerationPipeline", "unet": ["diffusers_ext_0123456789ab", "X"], ...
    unet/diffusers_ext_0123456789ab.py         the code of the component: one file that needs torch and diffusers only
    scheduler/diffusers_ext_ba9876543210.py
    diffusers_ext_00aa11bb22cc.py              the code of the pipeline
    pipeline.py                                imports the pipeline's class, under the name that diffusers looks for
    provenance.json                            the versions of the packages that wrote the folder

How it loads:

- With `import diffusers_ext`, `DiffusionPipeline.from_pretrained(repo)` uses the installed classes. No file of the
  repository is run, because `registration` makes such names mean this package.
- Without it, `DiffusionPipeline.from_pretrained(repo, custom_pipeline=repo, trust_remote_code=True)` runs the code in
  the repository. `custom_pipeline="diffusers_ext_00aa11bb22cc"` does so too, and is better for folders and revisions:
  it names the code of exactly that state.
- A pipeline of diffusers' own classes has no code and needs neither.

Three choices:

- `_class_name` is a string. diffusers also reads the pair ["pipeline", "X"], which loads without the package by
  `trust_remote_code=True` alone, but then everybody must set it. The safe way should be the short one.
- For the same reason there is no `auto_map`: with it, `AutoModel` would refuse to load without that setting.
- Code files are named after their content. diffusers copies the code of all repositories into one folder, and loads
  one module per file name: with equal names, the classes of two repositories would get mixed up.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .bundle import BundlingError, bundle
from .model_card import CODE_FILE
from .provenance import write_provenance
from .registration import LIBRARY, code_name, is_code_name
from .stamp import stamped

INDEX = "model_index.json"
PIPELINE_FILE = "pipeline.py"
COMPILED = "_orig_mod"  # the attribute, and the part of names, under which torch.compile keeps a module
# Libraries that are installed wherever a diffusers pipeline is loaded.
KNOWN_LIBRARIES = ("diffusers", "transformers")


# --- export -----------------------------------------------------------------------------------------------------------


def export(
    pipeline: DiffusionPipeline,
    folder: str | os.PathLike,
    *,
    variant: str | None = None,
    max_shard_size: int | str = "5GB",
    code: bool = True,
) -> Path:
    """Save a pipeline with the code of its classes, so that the folder loads where this package is not installed.

    Weights are safetensors, in several files above `max_shard_size`; their names are those of the network, also if it
    was compiled. Files of an earlier export are replaced, other files in the folder are left alone; with `variant`,
    weights of other variants stay. The new pipeline is written completely before an old file is replaced. The
    configurations don't say from where a part was loaded.

    Args:
        pipeline: any diffusers pipeline. Components may be of your own classes, if they have `save_pretrained` (as
            `ModelMixin`, `SchedulerMixin` and `ConfigMixin` give it) and are defined in a file.
        folder: the folder to write.
        variant: part of the names of the weight files, such as `fp16`.
        max_shard_size: largest file of weights, in bytes or as "5GB".
        code: whether to write the code of the classes; without it the folder loads where they can be imported.

    Returns:
        The folder.

    Raises:
        BundlingError: if the code of a class can't be merged into one file, or a component can't be saved.
        FileExistsError: if `folder` is a file.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"folder '{target}' is a file.")
    if code:
        _check_components(pipeline)
    partial = target / ".export.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        pipeline.save_pretrained(partial, variant=variant, max_shard_size=max_shard_size)
        _forget_places(partial)
        _write_clean_names(partial)
        if code:
            _write_code(pipeline, partial)
        write_provenance(partial)
        _publish(partial, target, variant)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _check_components(pipeline: DiffusionPipeline) -> None:
    """Refuse a component that diffusers would leave out of the folder with a warning only."""
    for name, component in pipeline.components.items():
        if isinstance(component, torch.nn.Module) and not hasattr(_unwrapped(component), "save_pretrained"):
            raise BundlingError(
                f"The {name} can't be saved: {type(_unwrapped(component)).__name__} is a plain torch.nn.Module. Derive "
                "it from diffusers' ModelMixin and ConfigMixin, with @register_to_config on its __init__."
            )


def _unwrapped(component: Any) -> Any:
    """A component without the wrapper of torch.compile."""
    return getattr(component, COMPILED, component)


def _write_clean_names(folder: Path) -> None:
    """Remove torch.compile's wrappers, of the whole network or of blocks in it, from the names in weight files."""
    for file in folder.glob("*/*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            names, metadata = list(weights.keys()), weights.metadata()
        if any(COMPILED in name.split(".") for name in names):
            tensors = {_clean_name(name): tensor for name, tensor in load_file(file).items()}
            save_file(tensors, file, metadata)
    for file in folder.glob("*/*.safetensors.index*.json"):
        index = json.loads(file.read_text(encoding="utf-8"))
        index["weight_map"] = {_clean_name(name): shard for name, shard in index["weight_map"].items()}
        file.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _clean_name(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != COMPILED)


def _forget_places(folder: Path) -> None:
    """Remove from the configurations the places that parts were loaded from, which may name people and projects."""
    for file in (folder / INDEX, *folder.glob("*/*.json")):
        config = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_code(pipeline: DiffusionPipeline, folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    for name, component in pipeline.components.items():
        component_class = type(_unwrapped(component))
        if component is not None and _brings_code(component_class):
            index[name] = [_write_class(component_class, folder / name), component_class.__name__]
    if _brings_code(type(pipeline)):
        library = _write_class(type(pipeline), folder)
        text = stamped(_pipeline_file(library, type(pipeline).__name__))
        (folder / PIPELINE_FILE).write_text(text, encoding="utf-8")
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _brings_code(some_class: type) -> bool:
    return some_class.__module__.partition(".")[0] not in KNOWN_LIBRARIES


def _write_class(some_class: type, folder: Path) -> str:
    """Write the code of a class into a folder, and return the name of the file without its ending."""
    source = _source_of(some_class)
    digest = hashlib.sha256(source.encode()).hexdigest()
    module = some_class.__module__
    ours = module.partition(".")[0] == LIBRARY or is_code_name(module.rpartition(".")[2])
    library = code_name(digest) if ours else f"{module.rpartition('.')[2]}_{digest[:12]}"
    (folder / f"{library}.py").write_text(source, encoding="utf-8")
    return library


def _source_of(some_class: type) -> str:
    """The source of one file with the class and what it needs; the file itself if an export wrote it."""
    module = sys.modules.get(some_class.__module__)
    file = Path(getattr(module, "__file__", None) or "")
    if is_code_name(file.stem) or (CODE_FILE.fullmatch(file.stem) and file.is_file()):
        return file.read_text(encoding="utf-8")
    return bundle(some_class.__module__) + _without_base_pipelines(some_class)


def _without_base_pipelines(some_class: type) -> str:
    """Statements that leave one pipeline class in a module, as diffusers asks for; base classes stay in use."""
    own = [base for base in some_class.__mro__[1:] if issubclass(base, DiffusionPipeline) and _brings_code(base)]
    return "".join(f"\n\ndel {base.__name__}  # diffusers wants one pipeline class in a module\n" for base in own)


def _pipeline_file(library: str, class_name: str) -> str:
    """The file with the same name in all repositories, for `custom_pipeline=repo_id`.

    From the Hub, diffusers keeps one such file per commit. From folders, all share one file and one module, which may
    still have classes of another folder; and Python takes a file with the same length and the same second of change
    for unchanged. So this file clears the module, and its length depends on its content.
    """
    length = 1 + int(hashlib.sha256(library.encode()).hexdigest()[:3], 16)
    ruler = "\n".join("# " + "." * min(100, length - start) for start in range(0, length, 100))
    return f'''"""Imports {class_name}, which `custom_pipeline="{library}"` names directly."""

# Another repository's file of this name may have been loaded as this module.
for _name in [name for name in globals() if not name.startswith("_")]:
    del globals()[_name]

from .{library} import {class_name}  # noqa: E402

# The dots give this file a length of its own, by which Python distinguishes it from files of other repositories.
{ruler}
'''


def _publish(partial: Path, target: Path, variant: str | None) -> None:
    """Move everything into place, `model_index.json` last, and remove parts that only an earlier export had."""
    old = _exported_entries(target)
    entries = sorted(partial.iterdir(), key=lambda path: path.name == INDEX)
    for entry in entries:
        place = target / entry.name
        if entry.is_dir() and place.is_dir() and entry.name not in old:
            _add_files(entry, place)  # a folder of the user that happens to have a component's name
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
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    # Only folders directly in this one: the index may come from somebody else, and these names may be removed.
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
    """Put files beside those of other variants, and replace those of this variant and old code."""
    for old in place.iterdir():
        if f".{variant}." in old.name or f".{variant}-" in old.name or CODE_FILE.fullmatch(old.stem):
            old.unlink()
    _add_files(new, place)


def _add_files(new: Path, place: Path) -> None:
    for file in new.iterdir():
        os.replace(file, place / file.name)
