"""Merge a module and what it imports from its own package into one file that travels alone.

A repository on the Hub has the code of each component in a single file. `bundle` writes that file from the modules as
they are: dependencies first, every statement unchanged, the imports of all modules at the top. Modules that can't be
merged in this way are refused, so a bundle never means anything else than its modules.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, field
from pathlib import Path

from .registration import LIBRARY

# Packages that are installed wherever diffusers is; with others, a repository would not load everywhere.
ALLOWED_PACKAGES = ("torch", "numpy", "diffusers", "PIL")

# Names that mean something else in a bundle than in their module.
_NAMES_OF_A_PLACE = ("__file__", "__path__", "__package__", "__spec__", "__loader__")


class BundlingError(ValueError):
    """The modules can't be merged; the message names the module, the line and the reason."""


@dataclass(frozen=True)
class _Import:
    """One imported name: `from module import name as bound`, or `import module as bound` where name is empty."""

    module: str
    name: str
    bound: str


@dataclass
class _Module:
    """A module, split into its imports and the rest."""

    name: str
    docstring: str
    body: str
    imports: list[_Import] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)
    defined: dict[str, str] = field(default_factory=dict)  # name -> what binds it, to recognise equal definitions


def bundle(module_name: str) -> str:
    """The source of one file that does the same as the module.

    Args:
        module_name: full name of a module that is loaded or can be imported. The modules it imports from its own
            top-level package, from its own folder or from this package are merged into the file. Besides them and the
            standard library it may import `ALLOWED_PACKAGES` only.

    Returns:
        Python source that defines every name of the modules and imports nothing relatively.

    Raises:
        BundlingError: if a module is not a file, imports circularly, gives a name another meaning than another module
            does, uses a name for a place (`__file__`, ...), imports a whole module of the package or `*`, or imports
            another package. The message says which, and where.
    """
    modules = list(_in_order(module_name))
    _check_names(modules)
    parts = [_header(modules), "from __future__ import annotations\n", _merged_imports(modules)]
    for module in modules:
        parts.append(f"# --- {module.name} {'-' * max(0, 113 - len(module.name))}\n")
        parts.append(module.body.strip("\n") + "\n")
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _header(modules: list[_Module]) -> str:
    summary = (modules[-1].docstring.strip().splitlines() or [""])[0]
    listed = "\n".join(f"    {module.name}" for module in modules)
    return f'"""{summary}\n\nMerged from these modules; edit them, not this file:\n\n{listed}\n"""\n'


# --- order ------------------------------------------------------------------------------------------------------------


def _in_order(module_name: str) -> Iterator[_Module]:
    """The module after everything it needs, each once."""
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> Iterator[_Module]:
        if name in path:
            raise BundlingError(f"{' imports '.join((*path, name))}: a circular import can't be merged.")
        if name in done:
            return
        module = _split(name, _source_of(name))
        for needed in module.needs:
            yield from visit(needed, (*path, name))
        done.add(name)
        yield module

    return visit(module_name, ())


# --- one module -------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)  # a run saves its pipeline many times, and its modules stay the same
def _split(name: str, source: str) -> _Module:
    tree = ast.parse(source)
    module = _Module(name, ast.get_docstring(tree) or "", "")
    _check_place_names(module, tree)
    removed: list[ast.stmt] = []
    replaced: dict[int, str] = {}
    for node in tree.body:
        if _is_docstring(node, tree) or _is_dunder_all(node):
            removed.append(node)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            removed.append(node)
            _take_import(module, node)
        else:
            _take_inner_imports(module, node, replaced)
            for bound in _bound_names(node):
                module.defined[bound] = ast.dump(node)
    module.body = _without(module, source, tree, removed, replaced)
    return module


def _source_of(name: str) -> str:
    file = _file_of(name)
    if file is None or name == "__main__":
        raise BundlingError(f"{name} is not a file that can be exported; move the class to a module of its own.")
    return file.read_text(encoding="utf-8")


def _file_of(name: str) -> Path | None:
    """The source file of a module; None if it has none, or is neither loaded nor importable."""
    try:
        file = getattr(sys.modules.get(name) or importlib.import_module(name), "__file__", None)
    except ImportError:
        return None
    return Path(file) if file is not None and Path(file).is_file() else None


def _is_docstring(node: ast.stmt, tree: ast.Module) -> bool:
    return node is tree.body[0] and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_dunder_all(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["__all__"]


def _check_place_names(module: _Module, tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in _NAMES_OF_A_PLACE:
            raise BundlingError(f"{_at(module, node)}: {node.id} would mean another file after the export.")


def _at(module: _Module, node: ast.AST) -> str:
    return f"{module.name}, line {getattr(node, 'lineno', '?')}"


def _take_import(module: _Module, node: ast.Import | ast.ImportFrom) -> None:
    """Note an import at the top of a module: to be merged with others', or as a module that comes along."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            _check_package(module, node, alias.name)
            module.imports.append(_Import(alias.name, "", alias.asname or alias.name.partition(".")[0]))
        return
    if node.module == "__future__":
        return
    for alias in node.names:
        if alias.name == "*":
            raise BundlingError(f"{_at(module, node)}: `import *` can't be merged; name what is imported.")
    target = _target(module, node)
    if not _is_own(module, target):
        _check_package(module, node, target)
        module.imports += [_Import(target, alias.name, alias.asname or alias.name) for alias in node.names]
        return
    _take_own_names(module, node, target)


def _take_own_names(module: _Module, node: ast.ImportFrom, target: str) -> None:
    for alias in node.names:
        if alias.asname not in (None, alias.name):
            raise BundlingError(f"{_at(module, node)}: {alias.name} is imported under another name; keep its own.")
        needed = _home_of(alias.name, target)
        if needed is None:
            raise BundlingError(f"{_at(module, node)}: {alias.name} is a module; import names from it instead.")
        if not _is_own(module, needed):  # a class of diffusers that a package hands on
            module.imports.append(_Import(needed, alias.name, alias.name))
        elif needed not in module.needs:
            module.needs.append(needed)


def _target(module: _Module, node: ast.ImportFrom) -> str:
    """Full name of the module that a `from` import names."""
    if not node.level:
        return node.module or ""
    found = sys.modules.get(module.name) or importlib.import_module(module.name)
    package = found.__name__ if hasattr(found, "__path__") else found.__name__.rpartition(".")[0]
    return importlib.util.resolve_name("." * node.level + (node.module or ""), package)


def _is_own(module: _Module, target: str) -> bool:
    """Whether a module is merged into the file: of the same package, of this package, or a file of the same folder."""
    package = target.partition(".")[0]
    if package in (module.name.partition(".")[0], LIBRARY):
        return True
    if package in ALLOWED_PACKAGES or package in sys.stdlib_module_names:
        return False
    file, here = _file_of(target), _file_of(module.name)
    return "." not in module.name and file is not None and here is not None and file.parent == here.parent


def _home_of(name: str, target: str) -> str | None:
    """The module that defines `name`, which a package may import or load on demand; None for a module."""
    module = importlib.import_module(target)
    if not hasattr(module, "__path__"):
        return target
    passed_on = _Module(target, "", "")
    for node in ast.parse(_source_of(target)).body:
        if isinstance(node, ast.ImportFrom) and any(name == (alias.asname or alias.name) for alias in node.names):
            return _home_of(name, _target(passed_on, node))
    return getattr(getattr(module, name, None), "__module__", None)  # a class or function that is loaded on demand


def _check_package(module: _Module, node: ast.AST, target: str) -> None:
    package = target.partition(".")[0]
    if package not in ALLOWED_PACKAGES and package not in sys.stdlib_module_names:
        raise BundlingError(
            f"{_at(module, node)}: imports {package}, which is not installed wherever diffusers is; exported code may "
            f"import {', '.join(ALLOWED_PACKAGES)}, and names from {LIBRARY} (`from {LIBRARY} import ...`)."
        )


def _take_inner_imports(module: _Module, node: ast.stmt, replaced: dict[int, str]) -> None:
    """Keep imports inside functions and other statements; those of merged modules become `pass`."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import):
            for alias in inner.names:
                _check_package(module, inner, alias.name)
        elif isinstance(inner, ast.ImportFrom):
            target = _target(module, inner)
            if not _is_own(module, target):
                _check_package(module, inner, target)
                continue
            _take_own_names(module, inner, target)
            replaced.update(dict.fromkeys(range(inner.lineno, (inner.end_lineno or inner.lineno) + 1), ""))
            replaced[inner.lineno] = " " * inner.col_offset + "pass"


def _without(module: _Module, source: str, tree: ast.Module, removed: list[ast.stmt], replaced: dict[int, str]) -> str:
    """The source without whole statements, and with lines replaced; comments stay."""
    lines = source.splitlines()
    gone: set[int] = set()
    for node in removed:
        span = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        if any(other is not node and (other.lineno in span or other.end_lineno in span) for other in tree.body):
            raise BundlingError(f"{_at(module, node)}: two statements on one line can't be taken apart.")
        gone.update(span)
    kept = [replaced.get(n, line) for n, line in enumerate(lines, start=1) if n not in gone]
    return "\n".join(kept)


# --- names ------------------------------------------------------------------------------------------------------------


def _bound_names(node: ast.stmt) -> Iterator[str]:
    """The names that a top-level statement binds in its module."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
        return
    for inner in _outside_of_functions(node):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, (ast.Store, ast.Del)):
            yield inner.id
        elif isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield inner.name
        elif isinstance(inner, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in inner.names)
        elif isinstance(inner, ast.ExceptHandler) and inner.name:
            yield inner.name


def _outside_of_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            yield from _outside_of_functions(child)


def _check_names(modules: Iterable[_Module]) -> None:
    """Every name must mean the same in all modules; equal definitions do."""
    meanings: dict[str, tuple[str, str]] = {}
    for module in modules:
        names = {*module.defined, *(item.bound for item in module.imports)}
        shadowed = sorted(name for name in names if hasattr(builtins, name))
        if shadowed:
            raise BundlingError(f"{module.name} redefines {shadowed[0]}, a name of Python that other modules may use.")
        bound = [(item.bound, _imported(item)) for item in module.imports]
        for name, meaning in (*bound, *module.defined.items()):
            other, known = meanings.setdefault(name, (module.name, meaning))
            if known != meaning:
                raise BundlingError(
                    f"{other} and {module.name} both define {name}, and differently; rename one of the two."
                )


def _imported(item: _Import) -> str:
    """What an import binds: the same for a class that two modules import from different places."""
    found = getattr(sys.modules.get(item.module), item.name, None) if item.name else None
    home, name = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    return f"import {home} {name}" if home and name else f"import {item.module} {item.name}"


def _merged_imports(modules: Iterable[_Module]) -> str:
    """All imports, each once: standard library first, sorted."""
    names: dict[str, list[str]] = {}
    for item in sorted({item for module in modules for item in module.imports}, key=astuple):
        original = item.name or item.module.partition(".")[0]
        renamed = f" as {item.bound}" if item.bound != original else ""
        if item.name:
            names.setdefault(f"from {item.module}", []).append(item.name + renamed)
        else:
            names[f"import {item.module}{renamed}"] = []
    groups: dict[bool, list[str]] = {True: [], False: []}
    for start, imported in names.items():
        line = f"{start} import {', '.join(imported)}" if imported else start
        groups[start.split()[1].partition(".")[0] in sys.stdlib_module_names].append(_wrapped(line))
    return "\n\n".join("\n".join(lines) for lines in groups.values() if lines)


def _wrapped(line: str) -> str:
    if len(line) <= 120:
        return line
    start, _, names = line.partition(" import ")
    return f"{start} import (\n" + "".join(f"    {name},\n" for name in names.split(", ")) + ")"
