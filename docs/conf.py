"""Configuration of the documentation: Sphinx with MyST (Markdown and notebooks).

Sphinx was chosen because it reads docstrings, checks every cross reference and link, treats warnings as errors, and is
maintained by a large community; MyST-NB executes the notebooks of the tutorials.
"""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import diffusers_ext  # noqa: E402

project = "diffusers_ext"
author = "the diffusers_ext authors"
copyright = "2026, the diffusers_ext authors"
version = release = diffusers_ext.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
html_theme = "furo"
html_title = "diffusers_ext"
html_static_path = ["_static"]
html_css_files = ["style.css"]

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

# Tutorials are executed when the documentation is built. DOCS_FAST=1 (the default in CI) shortens their trainings.
nb_execution_mode = "force" if os.environ.get("DOCS_EXECUTE", "1") == "1" else "off"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
suppress_warnings = ["mystnb.unknown_mime_type"]
nitpicky = False


# Names of the package that no page of the reference describes, such as those that were added last.
DIRECTIVE = re.compile(r"^\.\. [\w:]+:: diffusers_ext\.(?:\w+\.)*(\w+)$", re.M)


def described():
    """Public names that the pages of the reference describe."""
    pages = (ROOT / "docs" / "reference").glob("*.md")
    return {name for page in pages for name in DIRECTIVE.findall(page.read_text(encoding="utf-8"))}


def further_entries():
    """Directives for the other public names, to be appended to the page of the package."""
    entries = ""
    for name in sorted(set(diffusers_ext.__all__) - described()):
        value = getattr(diffusers_ext, name)
        kind = "autoclass" if isinstance(value, type) else "autofunction" if callable(value) else "py:data"
        entries += f".. {kind}:: diffusers_ext.{name}\n\n"
    return f"\n```{{eval-rst}}\n{entries}```\n" if entries else ""


def add_further_entries(app, docname, source):
    if docname == "reference/package":
        source[0] += further_entries()


def setup(app):
    app.connect("source-read", add_further_entries)
