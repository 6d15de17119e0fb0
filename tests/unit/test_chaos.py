"""The chaos run: what is drawn from a seed, when a moment has come, and that broken promises are told."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from bench import chaos
from bench.chaos_faults import HONEST, honest_codes
from bench.chaos_schedule import (
    BLOCK,
    FETCHING,
    MIRROR_FAULTS,
    Change,
    Fault,
    FaultKind,
    Moment,
    Round,
    draw_round,
)
from bench.chaos_site import Wanted
from bench.run import choose_seed
from deploy.errors import UsageError
from deploy.report import Report

AT_START = Moment(number=0, of_steps=False, milliseconds=0)
NO_FAULT = Fault(kind=FaultKind.NONE, moment=AT_START, seconds=0)
FIRST_OF_SEED_7 = (
    "upgrade and model of 3, power cut at step 10 + 107 ms, 3.4 s; "
    "SSH sessions killed at event 2 + 15 ms, 2.1 s, then at once"
)
ROUND = Round(number=7, hosts=(0,), change=Change.NOTHING, faults=(NO_FAULT,), drift=0, at_once=True)


def draw(seed: int, rounds: int = 60) -> list[Round]:
    return [draw_round(seed, number, 3) for number in range(1, rounds + 1)]


def test_a_seed_draws_the_same_rounds_again_and_another_seed_others() -> None:
    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


def test_a_seed_that_was_told_by_another_python_means_the_same() -> None:
    assert str(draw_round(7, 1, 3)) == FIRST_OF_SEED_7


def test_a_round_does_not_depend_on_those_before_it() -> None:
    assert draw_round(7, 40, 3) == draw(7)[39]


def test_every_fault_is_the_first_of_one_round_in_a_block() -> None:
    rounds = draw(3, len(BLOCK))
    assert Counter(item.faults[0].kind for item in rounds) == Counter(BLOCK)


def test_one_host_at_least_is_left_out_and_the_mirror_fails_only_when_it_is_asked() -> None:
    for item in draw(1, 300):
        assert 1 <= len(set(item.hosts)) == len(item.hosts) < 3
        if MIRROR_FAULTS & {fault.kind for fault in item.faults}:
            assert item.change in FETCHING


def test_every_fault_has_honest_exit_codes_and_two_have_those_of_both() -> None:
    assert set(HONEST) == set(FaultKind)
    both = honest_codes([FaultKind.CTRL_C, FaultKind.SERVER_KILLED])
    assert {0, 2, 130} <= both
    assert 4 not in both
    assert honest_codes([FaultKind.NONE], Change.FAILING) == {2}


def event(name: str, host: str = "one", **more: Any) -> dict[str, Any]:
    return {"event": name, "host": host, **more}


@pytest.mark.parametrize(
    ("number", "of_steps", "expected"),
    [(0, False, True), (2, False, True), (3, False, False), (2, True, False)],
)
def test_a_moment_counts_the_events_of_its_host_but_no_progress(
    number: int, of_steps: bool, expected: bool
) -> None:
    events = [event("plan"), event("progress"), event("step_started"), event("step_started", "other")]
    moment = Moment(number=number, of_steps=of_steps, milliseconds=0)
    assert chaos.has_come(moment, events, "one") is expected


def test_a_fault_is_in_the_middle_after_something_was_told_of_the_host_and_before_its_end() -> None:
    assert not chaos.is_in_the_middle([event("plan", "other")], "one")
    assert chaos.is_in_the_middle([event("plan"), event("host_done", "other")], "one")
    assert not chaos.is_in_the_middle([event("plan"), event("host_done")], "one")


@dataclass(kw_only=True)
class FakeHost:
    """What is seen of it is `release`; its footprint is another one each time where it is `restless`."""

    name: str
    release: str = "0.17.5"
    restless: bool = False
    is_running: bool = True
    looks: int = 0

    def shell(self, script: str, **_: object) -> subprocess.CompletedProcess[str]:
        self.looks += 1
        said = ""
        if 'echo "release' in script:
            said = f"release {self.release}\nmodels myqwen2:latest\n"
        elif "ExecMainStart" in script:
            said = f"footprint {self.looks if self.restless else 0}\n"
        return subprocess.CompletedProcess([], 0, said, "")

    def init_pid(self) -> int:
        return 1

    def wait_for_ssh(self, _deadline_seconds: float) -> None:
        pass


@dataclass(kw_only=True)
class FakeSite:
    """Every run on it ends as `codes` say, one after the other, and has changed nothing."""

    hosts: list[FakeHost]
    codes: list[int]
    wanted: dict[str, Wanted] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.wanted = {host.name: Wanted() for host in self.hosts}

    def write_inventory(self) -> None:
        pass

    def start(self, words: Sequence[str], hosts: Sequence[FakeHost]) -> subprocess.Popen[str]:
        code = self.codes.pop(0)
        done = json.dumps(event("host_done", hosts[0].name, steps_done=0))
        return subprocess.Popen(
            [sys.executable, "-c", f"import sys; print({done!r}); sys.exit({code})"],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


def play(*hosts: FakeHost, codes: Sequence[int] = (0, 0, 0)) -> tuple[chaos.Played, str]:
    """One round of seed 41 on them, and what was told of it."""
    site: Any = FakeSite(hosts=list(hosts), codes=list(codes))
    played = chaos.play(site, ROUND)
    out = io.StringIO()
    chaos.tell(Report(as_json=False, stdout=out), 41, played)
    return played, out.getvalue()


def test_a_round_in_which_all_promises_hold_is_one_line() -> None:
    played, told = play(FakeHost(name="one"), FakeHost(name="two"))
    assert played.broken == ()
    assert told.startswith("7: nothing of 1, no fault")
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("one", "two", "codes", "broken"),
    [
        (FakeHost(name="one", release="9.9.9"), FakeHost(name="two"), (0, 0, 0), "one serves 9.9.9"),
        (
            FakeHost(name="one"),
            FakeHost(name="two", restless=True),
            (0, 0, 0),
            "two was touched, which was left out",
        ),
        (FakeHost(name="one"), FakeHost(name="two"), (4, 0, 0), "exit code 4, not one of [0]"),
        (FakeHost(name="one"), FakeHost(name="two"), (0, 2, 0), "the next deploy to one ended with 2"),
        (FakeHost(name="one"), FakeHost(name="two"), (0, 0, 2), "the deploy after it ended with 2"),
    ],
    ids=["third state", "another host", "exit code", "second deploy", "third deploy"],
)
def test_a_broken_promise_is_told_with_the_seed_and_the_command_that_plays_it_again(
    one: FakeHost, two: FakeHost, codes: Sequence[int], broken: str
) -> None:
    played, told = play(one, two, codes=codes)
    assert any(sentence.startswith(broken) for sentence in played.broken), played.broken
    assert f"broken: {broken}" in told
    assert "seed 41, round 7: ./fleet bench chaos --seed 41 --from-round 7 --rounds 1" in told
    assert chaos.tell_sum(Report(as_json=False, stdout=io.StringIO()), 41, [played]) == 2


def test_a_run_whose_faults_met_nothing_proves_nothing() -> None:
    played, _ = play(FakeHost(name="one"), FakeHost(name="two"))
    out = io.StringIO()
    assert chaos.tell_sum(Report(as_json=False, stdout=out), 41, [played]) == 2
    assert "this proves nothing" in out.getvalue()


def test_no_seed_is_another_one_each_time_and_0_is_one_like_any_other() -> None:
    assert [choose_seed("0"), choose_seed("7")] == [0, 7]
    assert len({choose_seed(None) for _ in range(20)}) > 1
    with pytest.raises(UsageError, match="`--seed x` is no number"):
        choose_seed("x")
