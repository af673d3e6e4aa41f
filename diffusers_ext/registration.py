"""Makes diffusers know our classes, so that `DiffusionPipeline.from_pretrained` loads what is saved with them.

diffusers looks a class up in three places: a pipeline as an attribute of `diffusers`; a component's library in
`LOADABLE_CLASSES`; and, for a repository on the Hub, a library as an attribute of `diffusers.pipelines`. Importing
those modules costs seconds that `import diffusers_ext` must not cost, so classes are offered to diffusers' own lazy
module by name, and the two tables are filled at the moment when diffusers itself loads them.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import diffusers

LIBRARY = __package__
LOADING_MODULE = "diffusers.pipelines.pipeline_loading_utils"
BASE_NAMES = ("ModelMixin", "SchedulerMixin", "DiffusionPipeline")


def register(names: Iterable[str]) -> None:
    """Offer the public classes `names` of this package to diffusers. Costs no import of diffusers' inner modules.

    Args:
        names: class names, found as attributes of this package.

    Raises:
        ImportError: when diffusers already has another class of one of these names.
    """
    _offer_attributes(list(names))
    loaded = sys.modules.get(LOADING_MODULE)
    if loaded is not None:
        _fill_tables(loaded)
    else:
        sys.meta_path.insert(0, _AfterImport())


def _offer_attributes(names: Sequence[str]) -> None:
    package = sys.modules[LIBRARY]
    lazy = getattr(diffusers, "_class_to_module", None)
    for name in names:
        if lazy is None:  # DIFFUSERS_SLOW_IMPORT: an ordinary module
            setattr(diffusers, name, getattr(package, name))
            continue
        if lazy.get(name, f"pipelines.{LIBRARY}") != f"pipelines.{LIBRARY}":
            raise ImportError(f"diffusers {diffusers.__version__} already has a class named {name}.")
        lazy[name] = f"pipelines.{LIBRARY}"
    # The lazy module resolves "pipelines.diffusers_ext" below its own name; that name is this package.
    sys.modules[f"diffusers.pipelines.{LIBRARY}"] = package


def _fill_tables(loading_utils: Any) -> None:
    loading_utils.LOADABLE_CLASSES[LIBRARY] = {name: ["save_pretrained", "from_pretrained"] for name in BASE_NAMES}
    loading_utils.ALL_IMPORTABLE_CLASSES.update(loading_utils.LOADABLE_CLASSES[LIBRARY])
    setattr(sys.modules["diffusers.pipelines"], LIBRARY, sys.modules[LIBRARY])


class _AfterImport(importlib.abc.MetaPathFinder):
    """Waits for `LOADING_MODULE`, lets the ordinary finders load it, and fills its tables; then steps aside."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != LOADING_MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_fill(module: ModuleType) -> None:
            execute(module)
            _fill_tables(module)

        spec.loader.exec_module = execute_and_fill  # type: ignore[method-assign]
        return spec
