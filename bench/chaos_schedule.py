"""What a chaos run does: drawn from its seed alone, before anything runs.

A moment is counted in events of the run, not in seconds: a faster machine meets the same step.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Change(StrEnum):
    """What a round does to its hosts."""

    UPGRADE = "upgrade"
    BOTH = "upgrade and model"
    FAILING = "upgrade that fails"
    MODEL = "model"
    SETTING = "setting"
    ROLLBACK = "rollback"
    RESTART = "restart"
    DRIFT = "drift"
    NOTHING = "nothing"


class FaultKind(StrEnum):
    """What goes wrong meanwhile, and for how long: `seconds` of a Fault."""

    NONE = "none"
    CONTROLLER_KILLED = "controller killed"
    CTRL_C = "Ctrl-C"
    CTRL_C_TWICE = "Ctrl-C twice"
    CONTROLLER_SLEEPS = "controller sleeps"
    POWER_CUT = "power cut"
    POWER_AND_CONTROLLER = "power cut, controller killed"
    REBOOT = "reboot"
    LINK_CUT = "link cut"
    SESSIONS_KILLED = "SSH sessions killed"
    SERVER_KILLED = "server killed"
    LOCK_LOST = "lock's holder killed"
    DISK_FULL = "disk full"
    ANOTHER_DEPLOY = "another deploy"
    MIRROR_REFUSES = "mirror refuses"
    MIRROR_HANGS = "mirror hangs"
    MIRROR_CUTS = "mirror cuts"
    MIRROR_FLIPS = "mirror flips a byte"


MIRROR_FAULTS = frozenset(kind for kind in FaultKind if kind.name.startswith("MIRROR"))
FETCHING = (Change.UPGRADE, Change.BOTH, Change.FAILING)
"""The changes for which the mirror is asked."""
BLOCK = tuple(FaultKind)
"""Each comes once in so many rounds, in another order every time."""
STEPS = {
    Change.UPGRADE: 8,
    Change.BOTH: 10,
    Change.FAILING: 6,
    Change.MODEL: 4,
    Change.SETTING: 6,
    Change.ROLLBACK: 6,
    Change.RESTART: 4,
    Change.DRIFT: 4,
    Change.NOTHING: 0,
}
"""How many steps each has, as seen: a moment is one of them."""
SECOND_FAULT_SHARE = 0.2
BOTH_HOSTS_SHARE = 0.3
AT_ONCE_SHARE = 0.4
STEP_SHARE = 0.7
LONG_CUT_SHARE = 0.15
# A silent connection is given up after 45 s, the lock after 60 s.
LONG_CUT_SECONDS = 65.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """`milliseconds` after the `number`-th event of the host; 0 is the start of the run.

    `of_steps`: only beginning steps are counted; otherwise every event, of which the suite has most.
    """

    number: int
    of_steps: bool
    milliseconds: int

    def __str__(self) -> str:
        return f"{'step' if self.of_steps else 'event'} {self.number} + {self.milliseconds} ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One misfortune; `seconds` is how long it lasts, or until its second half comes."""

    kind: FaultKind
    moment: Moment
    seconds: float

    def __str__(self) -> str:
        if self.kind is FaultKind.NONE:
            return "no fault"
        return f"{self.kind} at {self.moment}, {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A change of the hosts with these indices, the first of which the faults meet.

    `drift` chooses what is done by hand, or which release fails. `at_once`: the next deploy does not wait
    until the host has helped itself.
    """

    number: int
    hosts: tuple[int, ...]
    change: Change
    faults: tuple[Fault, ...]
    drift: int
    at_once: bool

    def __str__(self) -> str:
        hosts = "+".join(str(index + 1) for index in self.hosts)
        faults = "; ".join(map(str, self.faults))
        return f"{self.change} of {hosts}, {faults}, {'then at once' if self.at_once else 'then waits'}"


def draw_round(seed: int, number: int, host_count: int) -> Round:
    """The round with this number, which counts from 1; it does not depend on the rounds before it."""
    order = list(BLOCK)
    block, place = divmod(number - 1, len(BLOCK))
    random.Random(f"{seed} block {block}").shuffle(order)
    draw = random.Random(f"{seed} round {number}")
    kinds = [order[place]]
    if kinds[0] is not FaultKind.NONE and draw.random() < SECOND_FAULT_SHARE:
        kinds.append(draw.choice([kind for kind in BLOCK if kind not in (FaultKind.NONE, kinds[0])]))
    change = draw.choice(FETCHING if MIRROR_FAULTS.intersection(kinds) else _CHANGES)
    first = draw.randrange(host_count)
    others = [index for index in range(host_count) if index != first]
    # One at least is left out: it must not be touched.
    beside = [draw.choice(others)] if host_count > 2 and draw.random() < BOTH_HOSTS_SHARE else []
    return Round(
        number=number,
        hosts=(first, *beside),
        change=change,
        faults=tuple(_draw_fault(draw, kind, change) for kind in kinds),
        drift=draw.randrange(1000),
        at_once=draw.random() < AT_ONCE_SHARE,
    )


# What is likely to go wrong has more places.
_CHANGES: Sequence[Change] = (*Change, Change.FAILING, Change.BOTH, Change.SETTING)


def _draw_fault(draw: random.Random, kind: FaultKind, change: Change) -> Fault:
    is_long = draw.random() < LONG_CUT_SHARE
    seconds = draw.uniform(0.2, 5.0)
    moment = _draw_moment(draw, change)
    if kind in MIRROR_FAULTS:
        # Before anything is asked for, until the end.
        moment = Moment(number=0, of_steps=False, milliseconds=0)
    if is_long and kind in (FaultKind.LINK_CUT, FaultKind.CONTROLLER_SLEEPS):
        seconds = LONG_CUT_SECONDS
    return Fault(kind=kind, moment=moment, seconds=seconds)


def _draw_moment(draw: random.Random, change: Change) -> Moment:
    milliseconds = draw.randrange(400)
    steps = STEPS[change]
    if steps and draw.random() < STEP_SHARE:
        return Moment(number=draw.randint(1, steps), of_steps=True, milliseconds=milliseconds)
    return Moment(number=draw.randint(0, 3 * steps or 1), of_steps=False, milliseconds=milliseconds)
