"""A command that is not quoted is refused: half of it would run, on hosts that nobody meant."""

from __future__ import annotations

import pytest

from console.run_argv import check_run_words
from deploy.errors import UsageError


@pytest.mark.parametrize(
    "line",
    [
        ["run", "ls -la"],
        ["run", "uptime", "--yes"],
        ["run", "-y", "--limit", "gpu", "uptime"],
        ["run", "-lgpu", "uptime", "--timeout", "5", "--json"],
        ["run", "--limit=gpu", "uptime", "--timeout=5"],
        ["run"],
        ["chat", "one", "two"],
        [],
    ],
)
def test_one_word_and_flags_around_it_are_a_command(line: list[str]) -> None:
    check_run_words(line)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (["run", "ls", "-la"], "-la"),
        (["run", "--yes", "echo", "status"], "status"),
        (["run", "-l", "gpu", "kill", "-9", "1"], "-9"),
        (["run", "uptime", "--timeout", "5", "status"], "status"),
    ],
)
def test_what_follows_an_unquoted_command_is_refused_with_the_right_spelling(
    line: list[str], word: str
) -> None:
    with pytest.raises(UsageError, match=f"`{word}` stands after the command") as refused:
        check_run_words(line)
    assert str(refused.value.hint).startswith("./fleet run '")
