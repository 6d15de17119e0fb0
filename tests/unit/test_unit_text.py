"""systemd's own syntax, read as systemd reads it."""

from __future__ import annotations

import pytest

from deploy.unit_text import assignments, environment_lines, unit_lines, words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        # As `systemctl show` of systemd 252 says it.
        (r'"A=my models" "B=q\"x\$y" OLLAMA_X=1 D=é', ["A=my models", 'B=q"x$y', "OLLAMA_X=1", "D=é"]),
        ("'A=b c' D=e\\ f", ["A=b c", "D=e f"]),
        ('A="b c"d', ["A=b cd"]),
        ("", []),
        ('"open', ["open"]),
    ],
)
def test_words_are_those_of_systemd(text: str, found: list[str]) -> None:
    assert words(text) == found


def test_of_a_variable_that_is_given_twice_the_last_counts() -> None:
    assert assignments('A=1 "A=2 3" B C=') == {"A": "2 3", "C": ""}


def test_a_continued_line_of_a_unit_is_one_and_comments_within_it_are_none() -> None:
    text = "[Service]\n# A=1\nEnvironment = B=2 \\\n# between\n; too\n  C=3\nNice=5\n"
    line = "Environment = B=2    C=3"
    assert list(unit_lines(text)) == [("Environment", "B=2    C=3", line), ("Nice", "5", "Nice=5")]


def test_an_environment_file_is_a_variable_a_line() -> None:
    text = "# A=1\n;B=1\nC = d e \nexport D=1\nE='f g'\nF=g\\\nh\nnothing\nI=\n"
    found = [(name, value) for name, value, _ in environment_lines(text)]
    assert found == [("C", "d e"), ("E", "f g"), ("F", "gh"), ("I", "")]
