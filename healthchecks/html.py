"""Pages for people from templates: no script, no other file, readable on a phone and on paper.

What servers and hosts say is hostile input: jinja2 escapes every value, characters that cannot be seen are
shown as their escapes, and each page's own policy allows nothing but its style.
"""

from __future__ import annotations

import importlib.resources
from typing import Any

import jinja2

SHOWN_CHARACTERS = 20_000
"""Of one value: the whole of it is where it came from."""


def render_html(template: str, **values: Any) -> bytes:
    """The page that `templates/TEMPLATE` makes of the values, in UTF-8."""
    source = importlib.resources.files("healthchecks").joinpath(f"templates/{template}")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.finalize = lambda value: visible(value) if isinstance(value, str) else value
    return environment.from_string(source.read_text(encoding="utf-8")).render(**values).encode()


def visible(text: str) -> str:
    """Control characters, lone surrogates and marks that turn text around, as escapes; cut when long."""
    if getattr(text, "__html__", None):
        return text
    shown = text[:SHOWN_CHARACTERS]
    clean = "".join(c if c.isprintable() or c in "\n\t" else _escape(c) for c in shown)
    left = len(text) - len(shown)
    return f"{clean}\n... {left} characters more" if left else clean


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
