"""What is known of single versions of Ollama: faults that no operator can mend but by another version.

A fault stands here only with the versions in which somebody saw it, and it is told from its like by all that
the reply shows of it. What it is not, it does not excuse.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class KnownFault:
    """A fault of the Ollama versions from `since` up to, not including, `before`; None is no such end.

    `label` is Ollama's issue or pull request about it, `about` what the server does, `rules` what it breaks.
    `loses`: of what the model wrote, something does not arrive.
    """

    label: str
    about: str = ""
    rules: tuple[int, ...] = ()
    since: tuple[int, int, int] | None = None
    before: tuple[int, int, int] | None = None
    loses: bool = False

    def concerns(self, server: str | None) -> bool:
        """Is `server` ("ollama/0.17.5") one of those? Never for a server that is not known or not Ollama."""
        found = re.match(r"ollama/v?(\d{1,9})\.(\d{1,9})\.(\d{1,9})", server or "", re.IGNORECASE)
        if found is None:
            return False
        version = tuple(int(part) for part in found.groups())
        late_enough = self.since is None or version >= self.since
        return late_enough and (self.before is None or version < self.before)


_STATED = re.compile(r"[A-Za-z][\w.-]*/v?\d+\.\d+\.\d+(?:[.+-][\w.+-]*)?", re.ASCII)


def states_version(server: str) -> bool:
    """Is this a name and a version, as "ollama/0.17.5"? The known faults are told apart by three numbers."""
    return _STATED.fullmatch(server) is not None


# The first three were mended by #17485 in 0.32.6: recorded from 0.17.5 and 0.24.0, gone in 0.32.15.
ROLE_IN_EVERY_DELTA = KnownFault(
    "ollama#17485", "the role `assistant` comes in every delta of a stream", (36,), before=(0, 32, 6)
)
CREATED_PER_CHUNK = KnownFault(
    "ollama#17485", "`created` is taken anew for every chunk of a stream", (35,), before=(0, 32, 6)
)
LENGTH_OVERWRITTEN = KnownFault(
    "ollama#17485",
    "the finish reason `length` becomes `tool_calls` once a whole call came, though the rest was cut",
    (62,),
    before=(0, 32, 6),
)
# Arguments pass through map[string]any (Ollama tools/tools.go); recorded from 0.17.5 and 0.24.0. The report
# is of another parser, with the same cause.
NUMBERS_AS_FLOAT64 = KnownFault(
    "ollama#18421", "numbers in arguments pass through float64, so that integers above 2^53 change", (27,)
)
# Recorded from 0.17.5 and 0.24.0; #18374 turns it into an error, and came after 0.33.3. Nothing at all comes
# where the guard strikes while a call is held back: seen on 0.17.5, 0.24.0 and 0.32.15.
NO_FINAL_MESSAGE = KnownFault(
    "ollama#7547",
    "after more than 30 equal tokens there is no final message: no finish reason (`null`) and usage 0, 0, 0;"
    " where they were held back, no text, model and role either, and the `created` of the year 1",
    (3, 5, 6, 11),
    before=(0, 33, 4),
    loses=True,
)
NO_FINAL_CHUNK = KnownFault(
    "ollama#17118",
    "the same in a stream: it ends with its last delta, without finish reason, usage and `data: [DONE]`;"
    " where all was held back, the body is empty",
    (31, 32, 44, 47),
    before=(0, 33, 4),
    loses=True,
)
# Recorded from all three versions, open.
SWALLOWED = KnownFault(
    "ollama#17274",
    "where tools were sent and what the model wrote is no call that can be parsed, it is thrown away: empty"
    " text, no call, finish reason `stop`",
    (12,),
    loses=True,
)
TOOL_CHOICE_IGNORED = KnownFault("ollama#17921", "`tool_choice` is no field of a request", (59,))
# Seen with 0.20.2 and 0.20.4; the recordings of 0.17.5 and 0.24.0 count from 0 as they should.
INDEX_ALWAYS_0 = KnownFault(
    "ollama#15457",
    "in a stream every call has the index 0",
    (39,),
    since=(0, 20, 2),
    before=(0, 20, 5),
)
NO_INDEX = KnownFault("ollama#7881", "the calls of a stream have no index", (37,), before=(0, 4, 7))

# Ollama takes tokens for equal that differ in blanks around them, and stops after more than 30.
_ENDLESS = re.compile(r"(.{1,32}?)\1{29,}\Z")
_LONGEST_ENDLESS = 32 * 31
_FEWEST_BLANKS = 30
ZERO_TIME_SECONDS = -62_135_596_800
"""What `created` is where nobody set it: the first second of the year 1."""


def ends_in_repetition(text: str) -> bool:
    """Is the end of `text` one short piece, 30 times or more?"""
    tail = text[-4 * _LONGEST_ENDLESS :]
    if not tail[-_FEWEST_BLANKS:].strip():
        return len(tail) >= _FEWEST_BLANKS
    return _ENDLESS.search("".join(tail.split())[-_LONGEST_ENDLESS:]) is not None


KNOWN_FAULTS = (
    ROLE_IN_EVERY_DELTA,
    CREATED_PER_CHUNK,
    LENGTH_OVERWRITTEN,
    NUMBERS_AS_FLOAT64,
    NO_FINAL_MESSAGE,
    NO_FINAL_CHUNK,
    SWALLOWED,
    TOOL_CHOICE_IGNORED,
    INDEX_ALWAYS_0,
    NO_INDEX,
)
