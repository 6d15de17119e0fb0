"""The pace that flags ask for: `--batch` and `--max-failures`, instead of what the inventory says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from deploy.desired import Desired, Pace
from deploy.errors import UsageError

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedPace:
    """What the flags say of the pace, instead of the inventory."""

    batch: tuple[str, ...] | None = None
    max_failures: int | None = None

    def over(self, desired: Desired) -> Desired:
        """The same host at the pace that was asked for."""
        known = desired.pace
        most = known.max_failures if self.max_failures is None else self.max_failures
        return replace(desired, pace=Pace(batch=self.batch or known.batch, max_failures=most))


def parse_pace(batch: str | None, max_failures: str | None) -> AskedPace:
    """The flags, read as the inventory's keys are. Raises UsageError."""
    # With pydantic, which a task that has no such flag need not load for it.
    from deploy.settings import parse_batch, parse_max_failures

    return AskedPace(
        batch=_parse("--batch", batch, parse_batch),
        max_failures=_parse("--max-failures", max_failures, parse_max_failures),
    )


def _parse(flag: str, given: str | None, parse: Callable[[str], Value]) -> Value | None:
    if given is None:
        return None
    try:
        return parse(given)
    except ValueError as error:
        raise UsageError(
            sentence=f"`{flag} {given}` cannot be used",
            expected=str(error),
            actual=f"`{given}`",
            unchanged="everything",
            hint="docs/batches.md",
        ) from error
