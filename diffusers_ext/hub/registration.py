"""Register our classes with diffusers, so that `DiffusionPipeline.from_pretrained` loads pipelines that use them.

diffusers looks for a class in three places: for a pipeline as an attribute of `diffusers`; for the library of a
component in `LOADABLE_CLASSES`; and, for a repository on the Hub, for a library as an attribute of
`diffusers.pipelines`. Importing those modules takes seconds, which `import diffusers_ext` must not take. So this module
imports nothing of diffusers: classes are offered by name to diffusers' own lazy module when that is imported, and the
two tables are filled when diffusers itself loads them.

A repository that `export` wrote has the code of its components, in files named after their content (`code_name`). Once
this package is imported, such a name means this package: the installed classes are used, the repository's code is not.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

LIBRARY = __package__.partition(".")[0]
LOADING_MODULE = "diffusers.pipelines.pipeline_loading_utils"
PIPELINE_MODULE = "diffusers.pipelines.pipeline_utils"
# From this version on, diffusers asks for trust when code would be run, not when it is found.
NO_EARLY_REFUSAL = (0, 38)
BASE_NAMES = ("ModelMixin", "SchedulerMixin", "DiffusionPipeline")
_CODE_NAME = re.compile(rf"{LIBRARY}_[0-9a-f]{{12}}")


def code_name(digest: str) -> str:
    """The library name, and file name without its ending, of code of this package whose sha256 is `digest`."""
    return f"{LIBRARY}_{digest[:12]}"


def is_code_name(name: str) -> bool:
    """Whether `code_name` made this name."""
    return _CODE_NAME.fullmatch(name) is not None


def register(names: Iterable[str]) -> None:
    """Register the public classes `names` of this package with diffusers: now, or as soon as diffusers is imported.

    Args:
        names: class names, found as attributes of this package.

    Raises:
        ImportError: when diffusers already has another class of one of these names; it may come from the later import.
    """
    offered = list(names)
    _when_imported("diffusers", lambda: _offer_attributes(offered))
    _when_imported(LOADING_MODULE, _fill_tables)
    sys.meta_path.append(_CodeNames())


def _when_imported(module: str, then: Callable[[], None]) -> None:
    if module in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _AfterImport(module, then))


def _offer_attributes(names: Sequence[str]) -> None:
    import diffusers

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


def _fill_tables() -> None:
    import diffusers
    from packaging.version import Version

    loading_utils: Any = sys.modules[LOADING_MODULE]
    loading_utils.LOADABLE_CLASSES[LIBRARY] = {name: ["save_pretrained", "from_pretrained"] for name in BASE_NAMES}
    loading_utils.ALL_IMPORTABLE_CLASSES.update(loading_utils.LOADABLE_CLASSES[LIBRARY])
    pipelines = sys.modules["diffusers.pipelines"]
    setattr(pipelines, LIBRARY, sys.modules[LIBRARY])
    _answer_to_code_names(pipelines)
    if Version(diffusers.__version__).release < NO_EARLY_REFUSAL:
        _spare_installed_components(loading_utils)


def _spare_installed_components(loading_utils: Any) -> None:
    """Let an older diffusers download repositories with code of this package, whose installed classes will be used.

    It refuses any repository with component code before it checks whether the code is needed, so code of this package
    is left out of what it sees.
    """
    name = "_get_custom_components_and_folders"
    find = getattr(loading_utils, name)

    def find_foreign(*arguments: Any, **options: Any) -> tuple[dict[str, str], list[str]]:
        components, folders = find(*arguments, **options)
        foreign = {k: library for k, library in components.items() if library != LIBRARY and not is_code_name(library)}
        return foreign, folders

    for module in (loading_utils, sys.modules.get(PIPELINE_MODULE)):
        if module is not None and hasattr(module, name):
            setattr(module, name, find_foreign)


def _answer_to_code_names(pipelines: Any) -> None:
    """Let `hasattr(diffusers.pipelines, name)` be true for code names: so diffusers asks where a component is from."""
    before = vars(pipelines).get("__getattr__")

    def answer(name: str) -> Any:
        if is_code_name(name):
            return sys.modules[LIBRARY]
        if before is not None:
            return before(name)
        raise AttributeError(f"module 'diffusers.pipelines' has no attribute '{name}'")

    pipelines.__getattr__ = answer  # PEP 562; diffusers' lazy module is asked when this raises


class _CodeNames(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a code name as this package: diffusers before 0.42 imports a component's library by name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if is_code_name(fullname) else None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = sys.modules[LIBRARY]


class _AfterImport(importlib.abc.MetaPathFinder):
    """Waits for a module, lets the ordinary finders load it, and calls `then`; then steps aside.

    Others may ask for the module's spec without importing it, to see whether it is installed. That changes nothing.
    """

    def __init__(self, module: str, then: Callable[[], None]):
        self._module, self._then, self._asks = module, then, False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._module or self._asks:
            return None
        self._asks = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asks = False
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                self._then()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
