"""Many hosts at once: a bounded number of them, each with its own outcome."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from deploy.errors import ExitCode
from deploy.outcomes import HostOutcome

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(items: Sequence[Item], work: Callable[[Item], Result], forks: int) -> tuple[Result, ...]:
    """`work` for every item, at most `forks` at once; the results in the items' order."""
    with ThreadPoolExecutor(max_workers=max(1, min(forks, len(items) or 1))) as pool:
        return tuple(pool.map(work, items))


def exit_code_of(outcomes: Sequence[HostOutcome]) -> ExitCode:
    """The largest of the hosts' codes."""
    return max((outcome.exit_code for outcome in outcomes), default=ExitCode.DONE)


@contextmanager
def interrupts(stop_requested: threading.Event, tell: Callable[[str], None]) -> Iterator[None]:
    """The first Ctrl-C asks for a stop after the running step, the second one ends at once."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        if stop_requested.is_set():
            raise KeyboardInterrupt
        stop_requested.set()
        tell("stopping after the running step; press Ctrl-C again to stop at once")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)
