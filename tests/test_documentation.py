"""Commands and snippets in README, docs and docstrings name what exists; those of the scripts run as printed.

Every fenced block of the Markdown files, and every indented command line of the scripts' docstrings, is read. A command
is checked by the program's own parser; those of the training scripts are run, shortened by added flags.
"""

import ast
import builtins
import re
import runpy
import shlex
import textwrap
from importlib.util import find_spec

import pytest
from conftest import ROOT

import diffusers_ext
from diffusers_ext.cli.program import COMMANDS
from diffusers_ext.cli.train import run_script
from diffusers_ext.settings import parse, settings_of, without_effect
from diffusers_ext.settings.parsing import build
from diffusers_ext.training import TrainingArguments, parse_arguments

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
SCRIPTS = sorted((ROOT / "train").glob("*.py"))
FENCE = re.compile(r"^( *)```(\{code-cell\}|\w*)[^\n]*\n(.*?)^\1```", re.M | re.S)
DEFAULTS = {"train_conditional.py": {"condition": "class"}, "train_autoencoder.py": {"task": "autoencoder"}}
SHELLS, PYTHON = ("bash", "sh", "shell", "console"), ("python", "py", "{code-cell}")
PROGRAMS = ("python", "accelerate", "torchrun", "diffusers-ext", "make")


def blocks(languages):
    """(page, code) of every fenced block in these languages."""
    found = []
    for page in PAGES:
        for _, language, code in FENCE.findall(page.read_text(encoding="utf-8")):
            if language in languages:
                found.append((page.name, textwrap.dedent(code)))
    return found


def commands(code):
    """The command lines of a shell block, as lists of words; continued lines joined, comments and prompts dropped."""
    lines = code.replace("\\\n", " ").splitlines()
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [each for each in map(without_variables, words) if each and each[0] in PROGRAMS]


def without_variables(words):
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words


def documented():
    """(where, words) of every command line that is documented."""
    found = [(page, words) for page, code in blocks(SHELLS) for words in commands(code)]
    for script in SCRIPTS:
        indented = re.findall(r"^    (\S.*)$", ast.get_docstring(ast.parse(script.read_text("utf-8"))), re.M)
        found += [(script.name, words) for words in commands("\n".join(indented))]
    return found


def script_and_flags(words):
    """(name of the training script, its flags) of a command line, or None."""
    for place, word in enumerate(words):
        if re.search(r"(^|^train/)train_\w+\.py$", word):
            return word.rpartition("/")[2], words[place + 1 :]
    return None


@pytest.mark.parametrize(("where", "words"), documented(), ids=lambda value: value if isinstance(value, str) else None)
def test_a_documented_command_is_understood(where, words):
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        assert {word for word in words[1:] if "=" not in word} <= set(targets)
    elif words[0] == "diffusers-ext":
        check_command(words[1:])
    elif (found := script_and_flags(words)) is not None:
        assert (ROOT / "train" / found[0]).is_file()
        check_training(found[1], **DEFAULTS.get(found[0], {}))
    elif words[0] == "python" and len(words) > 1 and not words[1].startswith("-"):
        assert (ROOT / words[1]).is_file(), f"{where}: there is no {words[1]}"


def check_command(words):
    if not words or any(word.startswith("--help") or word == "--version" for word in words):
        return
    name = next(name for name in COMMANDS if name.split() == words[: len(name.split())])
    rest = words[len(name.split()) :]
    if name == "train":
        check_training(["--recipe", *rest] if rest and not rest[0].startswith("-") else rest)
    elif name != "recipes":
        settings = COMMANDS[name].load()[1]
        if rest and hasattr(settings, "POSITIONAL") and not rest[0].startswith("-"):
            rest = [f"--{settings.POSITIONAL}", *rest]
        values, others = parse(settings, rest, name)
        assert not others
        build(settings, values)


def check_training(flags, **defaults):
    if not any(flag.startswith("--help") for flag in flags):
        without_effect(parse_arguments([flag for flag in flags if flag != "..."], **defaults))


def bound(tree):
    """Names that a snippet binds anywhere: by assignment, import, definition, or as an argument."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).split(".")[0])
    return found


def undefined(snippets):
    """Names that the snippets of a page use, in order, and that nothing before or inside has bound."""
    known, missing = set(dir(builtins)), set()
    for code in snippets:
        tree = ast.parse(code)
        known |= bound(tree)
        missing |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - known
    return missing


def test_snippets_use_names_that_they_define():
    pages = {}
    for page, code in blocks(PYTHON):
        pages.setdefault(page, []).append(code)
    assert {page: missing for page, codes in pages.items() if (missing := undefined(codes))} == {}
    assert undefined(["import a\na.b(c)", "d = c"]) == {"c"}


def test_the_reference_has_every_public_name():
    conf = runpy.run_path(str(ROOT / "docs" / "conf.py"))
    added = set(conf["DIRECTIVE"].findall(conf["further_entries"]()))
    assert conf["described"]() >= {"Trainer", "NoisePath", "PRESETS", "DiffusionPipeline"}
    assert conf["described"]() | added >= set(diffusers_ext.__all__)


def gives(module, name):
    """Whether `from module import name` works: an attribute, or a module inside a package."""
    return hasattr(module, name) or (hasattr(module, "__path__") and find_spec(f"{module.__name__}.{name}") is not None)


@pytest.mark.parametrize(("page", "code"), blocks(PYTHON), ids=lambda value: value.split("\n")[0][:40])
def test_a_documented_snippet_names_what_exists(page, code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "diffusers_ext":
            module = __import__(node.module, fromlist=["_"])
            assert all(gives(module, alias.name) for alias in node.names), f"{page}: {ast.unparse(node)}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "diffusers_ext":
            assert hasattr(diffusers_ext, node.attr), f"{page}: {ast.unparse(node)}"
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[0] == "TrainingArguments":
            given = {keyword.arg for keyword in node.keywords if keyword.arg is not None}
            assert given <= set(settings_of(TrainingArguments)), f"{page}: {ast.unparse(node)}"


SHORT = [
    "--train_split",
    "train[:16]",
    "--train_batch_size",
    "8",
    "--max_train_steps",
    "1",
    "--validation_size",
    "2",
    "--eval_batch_size",
    "1",
    "--ddpm_num_inference_steps",
    "1",
    "--logger",
    "none",
    "--mixed_precision",
    "no",
    "--guidance_scale",
    "1",
    "--output_dir",
    "out",
    "--overwrite_output_dir",
]
OF_SCRIPTS = [(where, words) for where, words in documented() if where.startswith("train_")]


@pytest.mark.slow
@pytest.mark.parametrize(("where", "words"), OF_SCRIPTS, ids=lambda value: value if isinstance(value, str) else None)
def test_commands_of_docstrings_run(where, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name, flags = script_and_flags(words)
    shortened = flags if any(flag.startswith("--help") for flag in flags) else [*flags, *SHORT]
    assert run_script(shortened, **DEFAULTS.get(name, {})) == 0, capsys.readouterr().err


def test_blocks_and_commands_are_found():
    assert commands("A=1 $ ls\n$ diffusers-ext sample --model x \\\n  --seed 1  # a comment\n") == [
        ["diffusers-ext", "sample", "--model", "x", "--seed", "1"]
    ]
    assert {where for where, _ in documented()} >= {"README.md", "train_unconditional.py", "train_conditional.py"}
    assert blocks(PYTHON)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_to_a_file_leads_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [target for target in targets if target and "://" not in target and not (page.parent / target).exists()]
    assert not missing
