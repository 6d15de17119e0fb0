"""Text of systemd's own syntax as values: lines of units and of environment files, words with quotes."""

from __future__ import annotations

import re
from collections.abc import Iterator

# systemd.syntax(7): a backslash at the end continues a line, comments in between are left out.
_CONTINUED = re.compile(r"\\\n(?:[ \t]*[#;].*\n)*")
_WORD = re.compile(r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\\.|[^\s"'\\])+""")
_PIECE = re.compile(r""""((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'|((?:\\.|[^"'\\])+)|(.)""")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def unit_lines(text: str) -> Iterator[tuple[str, str, str]]:
    """Name, value and whole line of each setting of a unit or a drop-in, continued lines joined."""
    for line in _CONTINUED.sub(" ", text).splitlines():
        name, found, value = line.strip().partition("=")
        if found and not name.startswith(("#", ";")):
            yield name.rstrip(), value.strip(), line.strip()


def environment_lines(text: str) -> Iterator[tuple[str, str, str]]:
    """Name, value and whole line of each variable of an `EnvironmentFile=`: systemd.exec(5)."""
    for line in text.replace("\\\n", "").splitlines():
        name, found, value = line.strip().partition("=")
        if found and _NAME.fullmatch(name.rstrip()):
            yield name.rstrip(), _unquoted(value.strip()), line.strip()


def words(text: str) -> list[str]:
    """The words of a value; `systemctl show` quotes alike."""
    return [_unquoted(word.group()) for word in _WORD.finditer(text)]


def assignments(text: str) -> dict[str, str]:
    """The variables of an `Environment=`; of one that is given twice the last counts."""
    return dict(word.split("=", 1) for word in words(text) if "=" in word)


def _unquoted(word: str) -> str:
    pieces = ("".join(filter(None, found.groups())) for found in _PIECE.finditer(word))
    return "".join(re.sub(r"\\(.)", r"\1", piece) for piece in pieces)
