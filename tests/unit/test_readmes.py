"""README.zh-CN.md says what README.md says: the parts that no translation changes are the same in both."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
ENGLISH = PROJECT / "README.md"
CHINESE = PROJECT / "README.zh-CN.md"

_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}.+\n)+")
_HEADING = re.compile(r"^(?P<level>#+) .+$", re.MULTILINE)
_COMMAND = re.compile(r"`(\./fleet[^`]*)`")
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
_ROW = re.compile(r"^\|.*\|$", re.MULTILINE)
# What a row says in code, and the number that an exit code is.
_CODE = re.compile(r"`[^`]+`|^\| \d+ \|")


def prose(text: str) -> str:
    """The page without its fenced blocks, whose lines are no headings, links or tables."""
    return _FENCED.sub("", text)


def headings(text: str) -> list[re.Match[str]]:
    return list(_HEADING.finditer(prose(text)))


def code_lines(text: str) -> list[str]:
    """The lines of all blocks, the fences too: one that differs is named without its whole block."""
    blocks = [*_FENCED.findall(text), *_INDENTED.findall(prose(text))]
    return [line for block in blocks for line in block.split("\n")]


def commands(text: str) -> list[str]:
    return _COMMAND.findall(prose(text))


def links(text: str) -> list[str]:
    """Every target but those of the two pages, which lead to each other."""
    targets = (found["target"] for found in _LINK.finditer(prose(text)))
    return [target for target in targets if target not in {ENGLISH.name, CHINESE.name}]


def code_of_rows(text: str) -> list[str]:
    return [" ".join(_CODE.findall(row)) for row in _ROW.findall(prose(text))]


def difference(english: list[str], chinese: list[str]) -> str:
    """The first place where the two differ, or nothing."""
    for number, (here, there) in enumerate(zip_longest(english, chinese), start=1):
        if here != there:
            return f"no. {number} is {here!r} in {ENGLISH.name} and {there!r} in {CHINESE.name}"
    return ""


def test_both_readmes_have_headings_of_the_same_levels() -> None:
    pairs = list(zip_longest(*(headings(page.read_bytes().decode()) for page in (ENGLISH, CHINESE))))
    assert pairs, "nothing was found to compare"
    # Titles are translated: whoever reads the failure sees both outlines, side by side.
    outlines = "\n".join(f"{here and here[0]} = {there and there[0]}" for here, there in pairs)
    assert all(here and there and here["level"] == there["level"] for here, there in pairs), outlines


@pytest.mark.parametrize("part", [code_lines, commands, links, code_of_rows])
def test_both_readmes_have_the_same(part: Callable[[str], list[str]]) -> None:
    english, chinese = (part(page.read_bytes().decode()) for page in (ENGLISH, CHINESE))
    assert english, "nothing was found to compare"
    differs = difference(english, chinese)
    assert not differs, f"{part.__name__.replace('_', ' ')}: {differs}"


@pytest.mark.parametrize(("page", "other"), [(ENGLISH, CHINESE), (CHINESE, ENGLISH)])
def test_each_readme_links_to_the_other_in_its_first_lines(page: Path, other: Path) -> None:
    first_lines = page.read_bytes().decode().splitlines()[:3]
    assert f"]({other.name})" in "\n".join(first_lines), f"{page.name} has no link to {other.name}"
