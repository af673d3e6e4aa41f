"""Bundles: what merges does what its modules do, what can't be merged is refused in one sentence."""

import importlib
import inspect
import subprocess
import sys

import pytest
import torch

import diffusers_ext
from diffusers_ext.hub.bundle import BundlingError, bundle

CLASSES = [name for names in diffusers_ext._CLASSES.values() for name in names]


@pytest.fixture
def package(tmp_path, monkeypatch, request):
    """Makes an importable package of modules (path without ending -> source); its name."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"package_{abs(hash(request.node.nodeid))}"

    def make(**modules):
        for module, source in modules.items():
            file = tmp_path / name / f"{module.replace('_', '/')}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            (file.parent / "__init__.py").touch()
            file.write_text(source)
        importlib.invalidate_caches()
        return name

    return make


def run(source):
    names = {"__name__": "bundled"}
    exec(compile(source, "bundled.py", "exec"), names)
    return names


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_class_travels_alone(name):
    """No relative import is left, no name is undefined, and the class's signature is the same."""
    some_class = getattr(diffusers_ext, name)
    source = bundle(some_class.__module__)
    assert "diffusers_ext" not in source.split('"""', 2)[2].replace("# --- diffusers_ext.", "")
    checked = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821,F811,E9", "-"],
        input=source,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout


def test_a_bundled_scheduler_steps_as_the_installed_one(tmp_path, monkeypatch):
    installed = diffusers_ext.SubsequenceDDIMScheduler
    (tmp_path / "bundled_scheduler.py").write_text(bundle(installed.__module__))
    monkeypatch.syspath_prepend(tmp_path)
    bundled = importlib.import_module("bundled_scheduler").SubsequenceDDIMScheduler
    assert bundled is not installed
    assert inspect.signature(bundled.__init__) == inspect.signature(installed.__init__)
    samples = []
    for some_class in (installed, bundled):
        scheduler = some_class(beta_schedule="cosine", subsequence="exp", eta=1.0)
        scheduler.set_timesteps(5)
        sample, generator = torch.ones(1, 1, 4, 4), torch.Generator().manual_seed(0)
        for t in scheduler.timesteps:
            sample = scheduler.step(0.1 * sample, t, sample, generator=generator).prev_sample
        samples.append(sample)
    assert torch.equal(*samples)


def test_dependencies_come_first_once_and_imports_are_merged(package):
    future = "from __future__ import annotations\n"
    name = package(
        base=f'"""Base."""\n{future}import math\nfrom typing import Any\nTWO = math.sqrt(4)\n',
        left=f"{future}import math\nfrom .base import TWO\n\n# why\nFOUR = TWO * math.sqrt(4)\n",
        top=f'"""Top.\n\nMore."""\n{future}from typing import Any, NamedTuple\nfrom .base import TWO\n'
        'from .left import FOUR\n\n__all__ = ["EIGHT"]\nEIGHT: Any = TWO * FOUR\n',
    )
    source = bundle(f"{name}.top")
    assert run(source)["EIGHT"] == 8
    assert source.count(future) == source.count("import math") == source.count("TWO = math.sqrt(4)") == 1
    assert "from typing import Any, NamedTuple" in source
    assert "# why" in source
    assert source.startswith('"""Top.\n')
    assert "__all__" not in source


def test_names_handed_on_by_packages_are_found_where_they_stand(package, tmp_path):
    name = package(
        inner_one="ONE = 1\n", inner_other="OTHER = undefined_name\n", top="from .inner import ONE\nANSWER = ONE + 1\n"
    )
    (tmp_path / name / "inner" / "__init__.py").write_text("from .one import ONE\n")
    source = bundle(f"{name}.top")
    assert run(source)["ANSWER"] == 2
    assert "undefined_name" not in source


def test_imports_inside_functions_are_merged_too(package):
    name = package(base="ONE = 1\n", top="def answer():\n    from .base import ONE\n\n    return ONE + 1\n")
    assert run(bundle(f"{name}.top"))["answer"]() == 2


def test_definitions_that_are_equal_word_for_word_merge(package):
    line = "import logging\nlogger = logging.getLogger('x')\n"
    name = package(base=f"{line}ONE = 1\n", top=f"{line}from .base import ONE\n")
    assert run(bundle(f"{name}.top"))["ONE"] == 1


@pytest.mark.parametrize(
    ("modules", "sentence"),
    [
        ({"base": "X = 1\n", "top": "from .base import X as Y\n"}, "imported under another name"),
        ({"base": "X = 1\n", "top": "from . import base\n"}, "base is a module"),
        ({"base": "X = 1\n", "top": "from .base import *\n"}, r"import \*"),
        ({"base": "X = 1\ndef f(): 1\n", "top": "from .base import X\ndef f(): 2\n"}, "both define f, and differently"),
        ({"base": "from json import load as f\nX = 1\n", "top": "from .base import X\ndef f(): 2\n"}, "both define f"),
        ({"base": "X = 1\ndef sum(a): 0\n", "top": "from .base import X\n"}, "redefines sum"),
        ({"base": "from math import pow\nX = 1\n", "top": "from .base import X\nY = pow(2, 3, 5)\n"}, "redefines pow"),
        ({"top": "import pandas\n"}, "imports pandas, which is not installed"),
        ({"top": "def f():\n    from pandas import x\n"}, "line 2: imports pandas"),
        ({"top": "HERE = __file__\n"}, "__file__ would mean another file"),
        ({"top": "import os; X = 1\n"}, "two statements on one line"),
        ({"base": "def f():\n    from .top import X\n", "top": "from .base import f\nX = 1\n"}, "circular import"),
    ],
)
def test_what_can_not_be_merged_is_refused(package, modules, sentence):
    name = package(**modules)
    with pytest.raises(BundlingError, match=sentence) as caught:
        bundle(f"{name}.top")
    assert "\n" not in str(caught.value)


def test_a_class_of_an_interactive_session_is_refused():
    with pytest.raises(BundlingError, match="__main__ is not a file that can be exported"):
        bundle("__main__")
