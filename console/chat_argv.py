"""`chat`'s question without a flag."""

from __future__ import annotations

from collections.abc import Sequence

_WITHOUT_VALUE = ("--json", "-j", "--help", "-h")


def with_prompt_flag(argv: Sequence[str]) -> list[str]:
    """`chat [flags] TEXT` as `chat [flags] --prompt=TEXT`: Invoke has no optional positional argument."""
    if list(argv[:1]) != ["chat"]:
        return list(argv)
    words, rest = ["chat"], list(argv[1:])
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            words.append(f"--prompt={word}")
            continue
        words.append(word)
        short_with_value = not word.startswith("--") and len(word) > 2
        if rest and word not in _WITHOUT_VALUE and "=" not in word and not short_with_value:
            words.append(rest.pop(0))
    return words
