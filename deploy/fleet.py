"""Many hosts at once: a bounded number of them, each with its own outcome."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from types import FrameType
from typing import TypeVar

from deploy.report import Report

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

WAKE_SECONDS = 0.2

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(items: Sequence[Item], work: Callable[[Item], Result], forks: int) -> tuple[Result, ...]:
    """`work` for every item, at most `forks` at once; the results in the items' order.

    An exception of one is raised when all have ended. The threads are daemons, unlike those of
    `concurrent.futures`: a second Ctrl-C must not wait for a step that takes minutes.
    """
    todo: SimpleQueue[tuple[Item, Future[Result]]] = SimpleQueue()
    futures: list[Future[Result]] = []
    for item in items:
        futures.append(Future())
        todo.put((item, futures[-1]))

    def drain() -> None:
        while True:
            try:
                item, future = todo.get_nowait()
            except Empty:
                return
            try:
                future.set_result(work(item))
            except BaseException as error:  # noqa: BLE001 - it is raised again by `result` below
                future.set_exception(error)

    for _ in range(max(1, min(forks, len(items)))):
        threading.Thread(target=drain, daemon=True).start()
    # The kernel may give a signal to any thread, and its handler waits until this one wakes.
    while wait(futures, timeout=WAKE_SECONDS).not_done:
        pass
    return tuple(future.result() for future in futures)


@contextmanager
def interrupts(stop_requested: threading.Event, report: Report) -> Iterator[None]:
    """The first Ctrl-C asks for a stop after the running step, the second one ends at once.

    SIGTERM (a cancelled job) and SIGHUP (a closed terminal) mean the same.
    """

    def handle(_number: int, _frame: FrameType | None) -> None:
        if stop_requested.is_set():
            report.hurry()
            raise KeyboardInterrupt
        stop_requested.set()
        report.say_at_once("stopping after the running step; press Ctrl-C again to stop at once")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: signal.signal(number, handle) for number in _STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
