"""A host that may not be touched any more: what becomes of it is told."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from deploy.converge import _Course, _left_to_itself
from deploy.steps import EndLease, RemoveLeftovers, Step, SwitchRelease, TakeLease

CLEAN = RemoveLeftovers(reason="a cut run left it", paths=())
TAKE = TakeLease(reason="a release is switched", files=())
SWITCH = SwitchRelease(reason="0.17.5 is current", version="0.17.7", previous="0.17.5")
END = EndLease(reason="verified")


@pytest.mark.parametrize(
    ("done", "running", "told"),
    [
        ([], CLEAN, "what serves; what was fetched and unpacked stays for the next run"),
        ([CLEAN, TAKE], SWITCH, "the host goes back by itself, when its lease runs out or at its next start"),
        ([CLEAN], SWITCH, "nothing was taken back: what the steps so far have made stays as it is"),
        ([CLEAN, TAKE, SWITCH, END], CLEAN, "what was verified and confirmed serves on"),
    ],
)
def test_whose_lock_was_lost_is_told_what_becomes_of_the_host(
    done: Sequence[Step], running: Step, told: str
) -> None:
    assert _left_to_itself(_Course(begun=[*done, running], done=[*done])) == told
