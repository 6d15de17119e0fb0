"""Which hosts a `--limit` pattern means: Ansible's patterns (`inventory/manager.py` of ansible-core 2.19)."""

from __future__ import annotations

import difflib
import fnmatch
import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence

from deploy.errors import InventoryError
from deploy.inventory_lines import split_port

_SUBSCRIPT = re.compile(r"^(.+)\[(?:(-?[0-9]+)|([0-9]+)[:-]([0-9]*))\]$")
_LOCALHOST = ("127.0.0.1", "localhost", "::1")
_IMPLICIT = "implicit localhost"  # Ansible's own host for these names, where the inventory has none of them
_WORDS = re.compile(r"(?:[^\s:\[\]]|\[[^\]]*\])+")


def select_names(
    pattern: str, hosts: Collection[str], groups: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    """The names of the hosts that the pattern means, in Ansible's order, each once.

    `hosts` are all names in the order of the file, `groups` maps each group to its hosts at any depth.
    Included patterns come first in the order of writing, then `&` and `!` take away. Other than Ansible,
    which only warns, a part that matches no group and no host is an error; `!localhost` may match nothing, as
    Ansible has a host of that name of its own. Raises InventoryError.
    """
    chosen: dict[str, None] = {}
    for part in _ordered(_split(pattern)):
        if part in hosts:
            chosen[part] = None
            continue
        matches = dict.fromkeys(_match(part[1:] if part[0] in "!&" else part, hosts, groups))
        if part[0] == "!":
            chosen = {name: None for name in chosen if name not in matches}
        elif part[0] == "&":
            chosen = {name: None for name in chosen if name in matches}
        else:
            chosen |= matches
    if _IMPLICIT in chosen:
        raise _unmatched("localhost", hosts, groups)
    return tuple(chosen)


def _split(pattern: str) -> list[str]:
    if "," in pattern:
        parts = pattern.split(",")
    elif split_port(pattern) is not None:
        parts = [pattern]  # colons of an address or a range, not separators
    else:
        parts = _WORDS.findall(pattern)
    return [part.strip() for part in parts if part.strip()]


def _ordered(parts: Iterable[str]) -> list[str]:
    kinds: dict[str, list[str]] = {"": [], "&": [], "!": []}
    for part in parts:
        kinds[part[0] if part[0] in "&!" else ""].append(part)
    return (kinds[""] or ["all"]) + kinds["&"] + kinds["!"]


def _match(pattern: str, hosts: Collection[str], groups: Mapping[str, Sequence[str]]) -> list[str]:
    if not pattern:
        raise InventoryError(
            sentence="a `!` or `&` of the limit is followed by nothing",
            hint="name a host or a group after it",
        )
    expression, subscript = pattern, None
    if pattern[0] != "~" and (subscript := _SUBSCRIPT.match(pattern)):
        expression = subscript[1]
    test = _compile(expression)
    found_groups = [name for name in groups if test.match(name)]
    found = [host for name in found_groups for host in groups[name]]
    if not found_groups or expression[0] == "~" or any(mark in expression for mark in ".?*["):
        found += [name for name in hosts if test.match(name)]
    if not found and expression in _LOCALHOST:
        found = [next((name for name in hosts if name in _LOCALHOST), _IMPLICIT)]
    if not found and not found_groups and expression != "all":
        raise _unmatched(expression, hosts, groups)
    return _apply_subscript(found, subscript, pattern) if subscript and found else found


def _unmatched(expression: str, hosts: Iterable[str], groups: Iterable[str]) -> InventoryError:
    close = difflib.get_close_matches(expression, [*groups, *hosts], n=1)
    return InventoryError(
        sentence=f"no host or group matches `{expression}`",
        hint=f"did you mean `{close[0]}`?" if close else "`./fleet inventory --list` shows hosts and groups",
    )


def _compile(expression: str) -> re.Pattern[str]:
    text = expression[1:] if expression[0] == "~" else fnmatch.translate(expression)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of sets such as [[a]
            return re.compile(text)
    except re.error as error:
        raise InventoryError(
            sentence=f"`{expression}` is no regular expression",
            cause=str(error),
            hint="after `~` the limit is a Python regex",
        ) from error


def _apply_subscript(found: list[str], subscript: re.Match[str], pattern: str) -> list[str]:
    _, index, start, end = subscript.groups()
    try:
        if index is None and end != "0":  # [n:0] is read as [n]
            last = int(end) if end else len(found) - 1
            return found[int(start) : last + 1]
        return [found[int(index if index is not None else start)]]
    except (IndexError, ValueError) as error:
        raise InventoryError(
            sentence=f"`{pattern}` is past the last of {len(found)} hosts",
            hint="the first host has the number 0",
        ) from error
