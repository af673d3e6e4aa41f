"""Markdown from text that others wrote: every value is escaped unless it is marked as Markdown."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

import jinja2


class Markdown(str):
    """Text that is Markdown already; `escaped` leaves it alone."""


_SPECIAL = {**{char: f"\\{char}" for char in "\\`*[]{}#|~$"}, "<": "&lt;", ">": "&gt;", "&": "&amp;", "@": "&#64;"}
_HARMLESS_CODE = re.compile(r"[\w ./,:=+()-]+", re.ASCII)


def plain(value: object) -> str:
    """The value as text on one line, without control characters and invisible ones."""
    text = "".join(" " if unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp") else char for char in str(value))
    return " ".join(text.split())


def escaped(value: object) -> Markdown:
    """The value as Markdown that shows it literally: no images, links, headings, tags, tables or formulas.

    An underscore inside a word and an exclamation mark mean nothing by themselves and stay as they are.
    """
    if isinstance(value, Markdown):
        return value
    text = "".join(_SPECIAL.get(char, char) for char in plain(value))
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)
    return Markdown(text.replace("://", ":&#47;&#47;").replace("www.", "www&#46;"))


def code(value: object) -> Markdown:
    """A name in code font; one with unusual characters is shown as escaped text."""
    text = plain(value)
    return Markdown(f"`{text}`") if _HARMLESS_CODE.fullmatch(text) else escaped(text)


def python(value: object) -> Markdown:
    """The value as a Python literal on one line, for a block of code."""
    return Markdown(json.dumps(value, ensure_ascii=False).replace("`", "\\u0060"))


def markdown(template: str, **values: Any) -> Markdown:
    """The template, which is Markdown, filled with escaped values; numbers may be formatted in it."""
    numbers = (int, float)
    return Markdown(template.format(**{k: v if isinstance(v, numbers) else escaped(v) for k, v in values.items()}))


def environment() -> jinja2.Environment:
    """Templates whose values are escaped by default; `| code` and `| python` say otherwise."""
    made = jinja2.Environment(finalize=escaped, undefined=jinja2.StrictUndefined, autoescape=False)
    made.filters.update(code=code, python=python)
    return made
