"""A TOML file checked against a pydantic model, every problem with `file:line`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from deploy.errors import FleetError, ModelError, PinError
from deploy.modelfile import raise_problems, suggest

Checked = TypeVar("Checked", bound=pydantic.BaseModel)
InputError = type[ModelError] | type[PinError]
Location = tuple[int | str, ...]

_TABLE = re.compile(r"\s*\[\[?\s*(.+?)\s*\]\]?\s*(?:#.*)?")
_KEY = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+)\s*[=.]""")


class StrictModel(pydantic.BaseModel):
    """Unknown keys are errors, and "1" is no number."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)


def read_toml(path: Path, error: InputError) -> tuple[str, dict[str, Any]]:
    """Path -> text and value. Raises `error`: no such file, not UTF-8, broken TOML (with the line)."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise error(
            sentence=f"`{path.name}` is not there", path=str(path), hint=f"restore `{path.name}`"
        ) from None
    except (OSError, UnicodeDecodeError) as failure:
        raise error(sentence=f"`{path}` cannot be read", path=str(path), cause=str(failure)) from None
    try:
        return text, tomllib.loads(text)
    except tomllib.TOMLDecodeError as failure:
        reason, line = _split_reason(str(failure), text)
        raise error(
            sentence=f"`{path.name}` is not TOML",
            path=str(path),
            line=line,
            cause=reason,
            unchanged="nothing was sent to any host",
            hint=f"correct line {line} of {path}",
        ) from None


def parse_table(
    kind: type[Checked], value: object, path: Path, text: str, at: Location, error: InputError
) -> Checked:
    """A table of the file -> its checked value. Raises `error`, or InputErrors with all wrong keys."""
    try:
        return kind.model_validate(value)
    except pydantic.ValidationError as failure:
        problems: list[FleetError] = [
            _describe(item["type"], item["msg"], item["input"], (*at, *item["loc"]), kind, path, text, error)
            for item in failure.errors(include_url=False)
        ]
        raise_problems(problems, f"file `{path.name}`")
        raise


def find_line(text: str, at: Location) -> int | None:
    """The line (from 1) of a table or key, of its parent where the key itself is missing.

    `at` is (`name`, `key`), or (`name`, index, `key`) for `[[name]]`.
    """
    table, index, keys = str(at[0]), 0, tuple(str(key) for key in at[1:])
    if len(at) > 1 and isinstance(at[1], int):
        index, keys = at[1], keys[1:]
    best: int | None = None
    seen = -1
    inside = False
    for number, line in enumerate(text.splitlines(), start=1):
        header = _TABLE.fullmatch(line)
        if header is not None:
            path = _key_path(header.group(1))
            seen += path == (table,)
            inside = path == (table,) and seen == index
            if inside:
                best = number
            elif keys and path == (table, keys[0]):
                return number
        elif (key := _KEY.match(line)) is not None:
            name = _key_path(key.group(1))[:1]
            if inside and keys and name == keys[:1]:
                return number
            if seen < 0 and best is None and name == (table,):
                best = number
    return best


def _key_path(written: str) -> tuple[str, ...]:
    """`a."b c"` -> ("a", "b c"); empty for what is no key."""
    try:
        value: Any = tomllib.loads(f"[{written}]")
    except tomllib.TOMLDecodeError:
        return ()
    path: list[str] = []
    while value:
        path.extend(value)
        value = value[path[-1]]
    return tuple(path)


def _split_reason(message: str, text: str) -> tuple[str, int]:
    found = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", message, re.DOTALL)
    last = max(1, len(text.splitlines()))
    if found is None:
        return message, last
    return found.group(1), min(int(found.group(2) or last), last)


def _describe(
    kind: str,
    message: str,
    given: object,
    at: Location,
    model: type[pydantic.BaseModel],
    path: Path,
    text: str,
    error: InputError,
) -> FleetError:
    key = ".".join(str(part) for part in at if not isinstance(part, int))
    line = find_line(text, at)
    if kind == "extra_forbidden":
        near = suggest(str(at[-1]), _known_keys(model))
        known = ", ".join(f"`{name}`" for name in _known_keys(model))
        hint = f"did you mean `{near}`?" if near else f"the keys are {known}"
        return error(sentence=f"unknown key `{key}`", path=str(path), line=line, hint=hint)
    if kind == "missing":
        return error(
            sentence=f"the key `{key}` is missing",
            path=str(path),
            line=line,
            hint=f"add `{at[-1]} = ...` to the table",
        )
    shown = repr(given) if isinstance(given, str) else str(given)
    return error(
        sentence=f"`{key}` has a wrong value",
        path=str(path),
        line=line,
        cause=f"{message.removeprefix('Value error, ')}; it is {shown[:120]}",
        hint=f"correct `{at[-1]}` in {path.name}",
    )


def _known_keys(model: type[pydantic.BaseModel]) -> list[str]:
    names: list[str] = []
    for name, field in model.model_fields.items():
        names.append(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, pydantic.BaseModel):
            names.extend(field.annotation.model_fields)
    return names
