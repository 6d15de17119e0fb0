"""The batches of a deploy: a canary first, the next only when the ones before allow it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from deploy.batches import Rollout, sizes_left, split_rollouts
from deploy.desired import Desired
from deploy.fleet import each
from deploy.outcomes import Events, HostOutcome, Outcome, count_outcomes, without_details


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is done to hosts; nothing of it raises.

    `survey` looks at a host and returns None where it has changes, its end otherwise. `change` makes them, in
    the batch of this number. `tell` hears of every end.
    """

    survey: Callable[[Desired], HostOutcome | None]
    change: Callable[[Desired, int], HostOutcome]
    tell: Callable[[HostOutcome], object]


@dataclass(kw_only=True)
class _Course:
    """How far a run has come: the numbers that batches got, the hosts that ended, why no more may begin."""

    work: Work
    events: Events
    forks: int
    stop_requested: threading.Event
    numbered: int = 0
    ended: dict[str, HostOutcome] = field(default_factory=dict)
    why_not: str | None = None

    def end(self, outcome: HostOutcome) -> None:
        self.work.tell(outcome)
        # For as long as the run lasts: what nobody reads any more would add up over hundreds of hosts.
        self.ended[outcome.host] = without_details(outcome)

    def skip(self, desired: Desired, reason: str, batch: int) -> None:
        self.end(HostOutcome(host=desired.host, outcome=Outcome.SKIPPED, reason=reason, batch=batch))


def roll_out(
    hosts: Sequence[Desired], work: Work, events: Events, *, forks: int, stop_requested: threading.Event
) -> tuple[HostOutcome, ...]:
    """Every host's end, in the hosts' order: rollout by rollout, batch by batch."""
    course = _Course(work=work, events=events, forks=forks, stop_requested=stop_requested)
    rollouts = split_rollouts(hosts)
    for number, rollout in enumerate(rollouts, 1):
        _roll(rollout, course, sum(len(after.sizes) for after in rollouts[number:]))
    return tuple(course.ended[desired.host] for desired in hosts)


def _roll(rollout: Rollout, course: _Course, later: int) -> None:
    """One rollout; `later` is how many batches the ones after it will have."""
    if course.why_not is not None:
        _skip(rollout.hosts, rollout.sizes, later, course)
        return
    left = rollout.hosts if rollout.is_whole else _survey(rollout.hosts, course)
    total, item = len(left), 0
    course.why_not = _why_not(rollout, course)
    while left and course.why_not is None:
        sizes = sizes_left(rollout.pace.batch, total, len(left), item)
        batch, left = left[: sizes[0]], left[sizes[0] :]
        outcomes = _change(batch, course.numbered + len(sizes) + later, course)
        course.why_not = _why_not(rollout, course)
        # Batches grow with what was proven. Where nothing more begins, the numbers stay those that were told.
        if course.why_not is not None or any(outcome.is_proven for outcome in outcomes):
            item += 1
    if left:
        _skip(left, sizes_left(rollout.pace.batch, total, len(left), item), later, course)


def _survey(hosts: Sequence[Desired], course: _Course) -> tuple[Desired, ...]:
    """Those that have changes, and can be reached; the others are done. Nothing is touched."""
    course.events("survey_started", None, hosts=len(hosts))

    def look(desired: Desired) -> bool:
        if course.stop_requested.is_set():
            return True
        outcome = course.work.survey(desired)
        if outcome is not None:
            course.end(outcome)
        return outcome is None

    different = each(hosts, look, course.forks)
    return tuple(desired for desired, differs in zip(hosts, different, strict=True) if differs)


def _change(batch: Sequence[Desired], of: int, course: _Course) -> tuple[HostOutcome, ...]:
    number = course.numbered = course.numbered + 1
    course.events("batch_started", None, number=number, of=of, hosts=[desired.host for desired in batch])

    def one(desired: Desired) -> HostOutcome:
        if course.stop_requested.is_set():
            course.skip(desired, "interrupted before it was begun", number)
        else:
            course.end(replace(course.work.change(desired, number), batch=number))
        return course.ended[desired.host]

    outcomes = each(batch, one, course.forks)
    counts = count_outcomes(outcomes)
    course.events(
        "batch_done",
        None,
        number=number,
        of=of,
        hosts=len(batch),
        failed=counts[Outcome.FAILED],
        unreachable=counts[Outcome.UNREACHABLE],
    )
    return outcomes


def _why_not(rollout: Rollout, course: _Course) -> str | None:
    """Why no further batch begins; None where it may."""
    if course.stop_requested.is_set():
        return "interrupted"
    own = [course.ended[desired.host] for desired in rollout.hosts if desired.host in course.ended]
    failed = sum(1 for outcome in own if outcome.outcome is Outcome.FAILED and outcome.spends_budget)
    lost = sum(1 for outcome in own if outcome.in_doubt)
    if failed + lost <= rollout.pace.max_failures:
        return None
    said = [f"{failed} failed"] if failed or not lost else []
    said += [f"{lost} lost during the change"] if lost else []
    return f"{', '.join(said)}, at most {rollout.pace.max_failures}"


def _skip(left: Sequence[Desired], sizes: Sequence[int], later: int, course: _Course) -> None:
    """Nothing of these batches is begun."""
    reason, of = course.why_not, course.numbered + len(sizes) + later
    course.events("rollout_stopped", None, batch=course.numbered + 1, of=of, hosts=len(left), reason=reason)
    for size in sizes:
        course.numbered += 1
        for desired in left[:size]:
            text = f"batch {course.numbered} of {of} was not begun: {reason}"
            course.skip(desired, text, course.numbered)
        left = left[size:]
