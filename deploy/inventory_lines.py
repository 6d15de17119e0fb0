"""One line of an Ansible INI inventory: host patterns, ranges, ports and the types of values.

What is accepted, and what it becomes, is what ansible-core 2.19 does: its `ini` plugin, `parse_address` and
`expand_hostname_range`; the differential tests hold us to it.
"""

from __future__ import annotations

import ast
import re
import shlex
import string
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple


class LineRefused(ValueError):
    """A line, or a part of one, that means nothing; `str()` is the sentence, `hint` what to write instead.

    `line` is set only where the fault lies on another line than the one being read.
    """

    def __init__(self, sentence: str, *, hint: str | None = None, line: int | None = None) -> None:
        super().__init__(sentence)
        self.hint = hint
        self.line = line


class BytesText(str):
    """Text written as a Python bytes literal: Ansible prints it as `{"__ansible_unsafe": ...}`."""

    __slots__ = ()


class HostLine(NamedTuple):
    """What one line below `[group]` says: the hosts, the port of them all, their variables."""

    names: list[str]
    port: int | None
    variables: dict[str, Any]


_MOST_HOSTS_OF_A_LINE = 100_000  # a slip such as gpu[1:1000000000] must not eat the memory

_STEP = r"(?::[0-9]+)?"
_NUMBERS = r"[0-9]+:[0-9]+"
_BYTE = rf"(?:[01]?[0-9]{{1,2}}|2[0-4][0-9]|25[0-5]|\[{_NUMBERS}{_STEP}\])"
_HEX = rf"(?:[0-9a-f]{{1,4}}|\[[0-9a-f]+:[0-9a-f]+{_STEP}\])"
_RANGE = rf"\[(?:[a-z]:[a-z]|{_NUMBERS}){_STEP}\]"
_LABEL = rf"(?:\w|{_RANGE})(?:[\w-]|{_RANGE})*(?<![_-])"
_SHORTENED = [rf"(?:{_HEX}:){{{n}}}(?::{_HEX}){{1,{7 - n}}}" for n in range(1, 7)]
_QUAD = rf"(?:{_HEX}\.){{3}}{_HEX}"
_IPV6 = [
    rf"(?:{_HEX}:){{7}}{_HEX}",
    rf"(?:{_HEX}:){{1,6}}:",
    *_SHORTENED,
    rf":(?::{_HEX}){{1,6}}",
    rf"{_HEX}?::",
    rf"(?:0:){{6}}{_QUAD}",
    rf"::(?:ffff:)?{_QUAD}",
    rf"(?:0:){{5}}ffff:{_QUAD}",
]
_ADDRESS = re.compile(
    rf"^(?:(?:{_BYTE}\.){{3}}{_BYTE}|{'|'.join(_IPV6)}|{_LABEL}(?:\.{_LABEL})*)$", re.IGNORECASE
)
_BRACKETED_PORT = re.compile(r"^\[(.+)\]:([0-9]+)$")
_PLAIN_PORT = re.compile(r"^((?:[^:\[\]]|\[[^\]]*\])*):([0-9]+)$")


def parse_host_line(line: str) -> HostLine:
    """Reads `pattern key=value ...` (stripped, not empty), quoted and commented as in a POSIX shell.

    Raises LineRefused.
    """
    try:
        tokens = shlex.split(line, comments=True)
    except ValueError as error:
        raise LineRefused(
            f"`{line}` cannot be split into words: {error}",
            hint="close the quotation, or escape the quote as \\'",
        ) from error
    if not tokens:
        raise LineRefused(f"`{line}` names no host")
    names, port = parse_host_pattern(tokens[0])
    variables = {}
    for token in tokens[1:]:
        key, equals, value = token.partition("=")
        if not equals:
            raise LineRefused(
                f"`{token}` is not key=value",
                hint="write one host a line, its variables as key=value, and quote values with spaces",
            )
        variables[key] = parse_value(value)
    return HostLine(names, port, variables)


def parse_variable_line(line: str) -> tuple[str, Any]:
    """Reads `key = value` below `[group:vars]`; the value is all after the first `=`. Raises LineRefused."""
    key, equals, value = line.partition("=")
    if not equals:
        raise LineRefused(f"`{line}` is not key=value", hint="a line below [group:vars] must be `key=value`")
    return key.strip(), parse_value(value.strip())


def parse_host_pattern(pattern: str) -> tuple[list[str], int | None]:
    """The hosts that a pattern such as `gpu[01:20:5]:2222` names, in order, and the port of all.

    Raises LineRefused.
    """
    host, port = split_port(pattern) or (pattern, None)
    names = expand_ranges(host) if "[" in host else [host]
    if port is None and pattern.strip().endswith(":"):
        raise LineRefused(
            f"`{pattern}` ends in `:` without a port", hint="an INI inventory has no trailing colons"
        )
    if any(name.strip() == "---" for name in names):
        raise LineRefused("`---` starts a YAML file", hint="write the inventory in Ansible's INI format")
    if "" in names:
        raise LineRefused('`""` is no host name')
    return names, port


def split_port(text: str) -> tuple[str, int | None] | None:
    """Host and port of a network address, ranges allowed; None where the text is no address at all.

    Both forms are tried one after the other, so `[a:1]:2` is host `a` and port 1, as in Ansible.
    """
    host, port = text, None
    for form in (_BRACKETED_PORT, _PLAIN_PORT):
        if match := form.match(host):
            try:
                host, port = match[1], int(match[2])
            except ValueError:  # more digits than Python converts
                return None
    return (host, port) if _ADDRESS.match(host) else None


def expand_ranges(pattern: str) -> list[str]:
    """All names of a pattern with `[first:last:step]` ranges, the leftmost range varying slowest.

    A range that counts down is empty, as in Ansible. Raises LineRefused.
    """
    done: list[str] = []
    waiting = [pattern]
    while waiting:
        name = waiting.pop()
        if "[" not in name:
            done.append(name)
            continue
        waiting += reversed(_expand_first_range(name, pattern))
        if len(done) + len(waiting) > _MOST_HOSTS_OF_A_LINE:
            raise LineRefused(f"`{pattern}` names more than {_MOST_HOSTS_OF_A_LINE} hosts")
    return done


def _expand_first_range(name: str, pattern: str) -> list[str]:
    # Ansible marks the brackets with `|` and splits there: a pattern with a `|` of its own is refused.
    parts = name.replace("[", "|", 1).replace("]", "|", 1).split("|")
    if len(parts) != 3:
        raise LineRefused(
            f"`{pattern}` has an unbalanced bracket", hint="a range is [first:last] or [first:last:step]"
        )
    head, bounds, tail = parts
    limits = bounds.split(":")
    if len(limits) not in (2, 3):
        raise LineRefused(
            f"`[{bounds}]` in `{pattern}` is no range", hint="a range is [first:last] or [first:last:step]"
        )
    first, last = limits[0] or "0", limits[1]
    if not last:
        raise LineRefused(
            f"range `[{bounds}]` in `{pattern}` has no end", hint=f"write it, as in [{first}:20]"
        )
    width = len(first) if len(first) > 1 and first[0] == "0" else 0
    if width and width != len(last):
        raise LineRefused(
            f"range `[{bounds}]` in `{pattern}` mixes widths",
            hint=f"write the end as {last.zfill(width)[:width]}, too",
        )
    return [head + item.zfill(width) + tail for item in _count(first, last, limits[2:], bounds, pattern)]


def _count(first: str, last: str, step: Sequence[str], bounds: str, pattern: str) -> Iterable[str]:
    letters = string.ascii_letters
    try:
        if first in letters and last in letters:
            start, end = letters.index(first), letters.index(last)
            if start <= end:
                try:
                    return letters[start : end + 1 : int(step[0]) if step else 1]
                except ValueError:
                    pass  # as in Ansible, such a range is then tried as a numeric one
            else:
                raise LineRefused(
                    f"range `[{bounds}]` in `{pattern}` counts down", hint="a-z come before A-Z"
                )
        numbers = range(int(first), int(last) + 1, int(step[0]) if step else 1)
    except LineRefused:
        raise
    except ValueError as error:
        raise LineRefused(
            f"`[{bounds}]` in `{pattern}` is no range of numbers or of single letters",
            hint="for example [01:20], [1:9:2] or [a:f]",
        ) from error
    if numbers[_MOST_HOSTS_OF_A_LINE:]:  # len() overflows for the largest
        raise LineRefused(f"`{pattern}` names more than {_MOST_HOSTS_OF_A_LINE} hosts")
    return map(str, numbers)


def parse_value(text: str) -> Any:
    """A Python literal where the text is one (tuples and sets become lists), else the text itself.

    Raises LineRefused for a literal that Python can read but not build, such as `{{ 1 }}` (a set in a set).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    except (TypeError, MemoryError, RecursionError) as error:
        raise LineRefused(
            f"`{text[:60]}` cannot be read as a value: {error}", hint="quote it to have it as text"
        ) from error
    return _plain(value, text)


def _plain(value: Any, text: str) -> Any:
    if isinstance(value, bytes):
        return BytesText(value.decode("utf-8", "surrogateescape"))
    if isinstance(value, (list, tuple, set)):
        return [_plain(item, text) for item in value]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, (str, int, float, type(None))):
                raise LineRefused(f"`{text[:60]}` has a key that is neither text nor a number: `{key!r}`")
        return {key: _plain(item, text) for key, item in value.items()}
    if isinstance(value, complex):
        return str(value)
    if value is ...:
        return "..."
    if isinstance(value, int):
        try:
            str(value)
        except ValueError as error:
            raise LineRefused(f"`{text[:60]}` is too large a number to be shown") from error
    return value
