"""The house: what importing costs, which way the arrows point, what diffusers finds."""

import ast
import re
import subprocess
import sys
import tomllib

import diffusers
import pytest
from conftest import ROOT

import diffusers_ext

PACKAGE = ROOT / "diffusers_ext"

# Who may import whom, inside the package; all may import `files`. Models travel alone, but for the check of values.
ARROWS = {
    "schedulers": {"schedulers", "value_types"},
    "models": {"models", "value_types"},
    "settings": {"settings"},
    "conditions": {"conditions"},
    "objectives": {"objectives", "schedulers"},
    "proofs": {"proofs", "figures", "schedulers"},
    "pipelines": {"pipelines", "conditions", "models", "schedulers"},
    "figures": {"figures"},
    "data": {"data", "models"},
    "modalities": {"modalities", "data", "evaluation", "figures", "pipelines"},
    "editing": {"editing", "conditions", "models", "pipelines", "proofs", "schedulers"},
    "evaluation": {"evaluation", "figures", "hub", "pipelines", "proofs", "schedulers"},
    "hub": {"hub", "conditions", "models", "pipelines", "schedulers", "settings"},
    "training": {
        "training",
        "conditions",
        "data",
        "evaluation",
        "figures",
        "hub",
        "modalities",
        "models",
        "objectives",
        "pipelines",
        "schedulers",
        "settings",
    },
    "demo": {"demo", "conditions", "evaluation", "figures", "pipelines", "proofs", "schedulers"},
    "experiments": {"experiments", "figures", "settings", "training"},
}
ROOMS = sorted(folder.name for folder in PACKAGE.iterdir() if any(folder.rglob("*.py")))


def rooms_imported_by(file, root=ROOT):
    """The first parts of the names below diffusers_ext that a file imports."""
    package = file.relative_to(root).with_suffix("").parts[:-1]
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            names = [module] if module.count(".") else [f"{module}.{alias.name}" for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("diffusers_ext.")}
    return rooms


@pytest.mark.parametrize("room", ARROWS)
def test_arrows_point_one_way(room):
    for file in sorted((PACKAGE / room).rglob("*.py")):
        assert rooms_imported_by(file) - {"files"} <= ARROWS[room], file.name


def test_the_arrow_test_sees_imports(tmp_path):
    file = tmp_path / "diffusers_ext" / "training" / "some.py"
    file.parent.mkdir(parents=True)
    file.write_text("from . import a\nfrom .b import c\nfrom ..pipelines import d\nimport diffusers_ext.models.e\n")
    assert rooms_imported_by(file, tmp_path) == {"training", "pipelines", "models"}


def test_contributing_draws_the_imports_of_now():
    """The tree in CONTRIBUTING.md: below each room those that it imports and that no room below it imports anyway."""
    imports = {room: set() for room in ROOMS}
    for room in ROOMS:
        for file in (PACKAGE / room).rglob("*.py"):
            imports[room] |= rooms_imported_by(file) & set(ROOMS) - {room}

    def below(room):
        return set().union(imports[room], *map(below, imports[room]))  # endless, were there a cycle

    def tree(room, indent=""):
        direct = sorted(each for each in imports[room] if not any(each in below(other) for other in imports[room]))
        return [f"{indent}{room}", *(line for each in direct for line in tree(each, f"{indent}    "))]

    assert "\n".join(tree("cli")) in (ROOT / "CONTRIBUTING.md").read_text()
    assert set(ROOMS) == {"cli", *below("cli")} == {"cli", *ARROWS}


STANDARD = {
    "__future__",
    "collections",
    "contextlib",
    "copy",
    "dataclasses",
    "functools",
    "inspect",
    "itertools",
    "math",
}
STANDARD |= {"numbers", "operator", "typing"}


@pytest.mark.parametrize("file", sorted((PACKAGE / "models").glob("*.py")), ids=lambda f: f.name)
def test_model_files_travel_with_each_other(file):
    """Their own folder and, by the test of arrows, `value_types`, which the exporter merges in."""
    assert libraries_imported_by(file) <= {".", "..", "torch", "diffusers", *STANDARD}


@pytest.mark.parametrize("file", sorted((PACKAGE / "pipelines").glob("*.py")), ids=lambda f: f.name)
def test_pipeline_files_travel_with_each_other(file):
    """Their own folder and, by the test above, `conditions` and `schedulers`, which the exporter merges in."""
    assert libraries_imported_by(file) <= {".", "..", "torch", "diffusers", "numpy", "PIL", *STANDARD}


def libraries_imported_by(file):
    """First parts of the names that a file imports; "." for its own folder, ".." for anything above."""
    libraries = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            libraries.add("." * min(node.level, 2) or node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            libraries |= {alias.name.split(".")[0] for alias in node.names}
    return libraries


def test_every_public_name_resolves_and_diffusers_has_every_class():
    for name in diffusers_ext.__all__:
        assert getattr(diffusers_ext, name) is not None
    for names in diffusers_ext._CLASSES.values():
        for name in names:
            assert getattr(diffusers, name) is getattr(diffusers_ext, name)


def test_public_classes_of_the_rooms_are_all_registered():
    from diffusers import ModelMixin, SchedulerMixin

    from diffusers_ext import models, schedulers

    for module, base in ((models, ModelMixin), (schedulers, SchedulerMixin)):
        found = {
            n for n in module.__all__ if isinstance(getattr(module, n), type) and issubclass(getattr(module, n), base)
        }
        assert found <= set(diffusers_ext._CLASSES["models"] + diffusers_ext._CLASSES["schedulers"])


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'NoSuchThing'"):
        diffusers_ext.NoSuchThing  # noqa: B018


def run(code, environment):
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd="/")
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_imports_neither_torch_nor_diffusers(environment):
    code = (
        "import sys, diffusers_ext.cli.program\nprint([name for name in ('torch', 'diffusers') if name in sys.modules])"
    )
    assert run(code, environment) == "[]\n"


@pytest.mark.parametrize(
    "first",
    [
        "",
        "import diffusers.pipelines.pipeline_utils",
        "import diffusers_ext, importlib.util; importlib.util.find_spec('diffusers')",  # only asked for
    ],
)
def test_registers_before_and_after_diffusers_has_loaded_its_pipelines(environment, first):
    code = first + (
        "\nimport diffusers_ext, diffusers\n"
        "from diffusers.pipelines import pipeline_loading_utils as p\n"
        "assert p.LOADABLE_CLASSES['diffusers_ext'] and diffusers.pipelines.diffusers_ext is diffusers_ext\n"
        "print(diffusers.AnnotatedUNet2DModel.__name__, diffusers.GenerationPipeline.__name__)"
    )
    assert run(code, environment).split() == ["AnnotatedUNet2DModel", "GenerationPipeline"]


def test_the_oldest_versions_tested_are_the_oldest_allowed():
    allowed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    oldest = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", line).groups() for line in allowed)
    lines = [line for line in (ROOT / "constraints-oldest.txt").read_text().splitlines() if not line.startswith("#")]
    for line in lines:
        name, _, version = line.partition("==")
        assert version.removesuffix(".*") == oldest[name], line
    assert len(lines) == 6
