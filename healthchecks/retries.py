"""Several who are asked at the same time, each again and again, until a deadline that holds if one hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Callable, TypeVar

Value = TypeVar("Value")
Tell = Callable[[float], str]
"""Given the moment at which it must have ended; returns nothing, or why it was in vain."""

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 5.0


def tell_all(tellers: Mapping[str, Tell], seconds: float) -> dict[str, str]:
    """Why each that was in vain was, by its name."""
    failed = dict.fromkeys(tellers, f"no answer within {seconds:g} s")
    until = time.monotonic() + seconds

    def tell(name: str) -> None:
        try:
            failed[name] = tellers[name](until)
        except Exception as problem:  # noqa: BLE001 - the others are told, and its text may have an address
            failed[name] = type(problem).__name__

    # One that hangs, in a name server say, cannot be stopped, only left behind.
    threads = [threading.Thread(target=tell, args=(name,), daemon=True) for name in tellers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return {name: why for name, why in failed.items() if why}


def ask_again(
    ask: Callable[[], Value],
    is_worth_more: Callable[[Value], bool],
    until: float,
    pause: Callable[[float], None],
) -> Value:
    """The last answer: the first that is not worth another try, or that of the last try before `until`."""
    import tenacity

    def last_answer(state: Any) -> Value:
        answer: Value = state.outcome.result()
        return answer

    return tenacity.Retrying(
        retry=tenacity.retry_if_result(is_worth_more),
        wait=tenacity.wait_random_exponential(multiplier=FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS),
        stop=tenacity.stop_before_delay(max(0.0, until - time.monotonic())),
        sleep=pause,
        retry_error_callback=last_answer,
    )(ask)
