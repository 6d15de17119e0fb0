"""What becomes a message: each change once, each recovery once, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from healthchecks.health import CheckResult, HealthReport, State
from healthchecks.notices import BODY_BYTES, TITLE_BYTES, Notice, checks_of, clip, make_notice
from tests.unit.health_host import CONFIG

NAMES = ("service", "api", "disk")
STATES = list(State)


def report_of(states: dict[str, State]) -> HealthReport:
    results = tuple(CheckResult(name, state, f"{name} is {state}") for name, state in states.items())
    return HealthReport("gpu01", "2026-11-26T03:00:00Z", 0.1, results, {})


def notices_of(runs: Sequence[dict[str, State]]) -> list[Notice | None]:
    known: tuple[str, ...] = ()
    made = []
    for states in runs:
        notice = make_notice(known, report_of(states), NAMES)
        known = known if notice is None else notice.failing
        made.append(notice)
    return made


@given(st.lists(st.fixed_dictionaries({name: st.sampled_from(STATES) for name in NAMES}), max_size=12))
def test_every_sequence_of_states_is_told_by_one_message_a_change_and_one_a_recovery(
    runs: list[dict[str, State]],
) -> None:
    told: dict[str, list[str]] = {name: [] for name in NAMES}
    for notice in notices_of(runs):
        for line in notice.body.splitlines() if notice is not None else ():
            word, _, rest = line.partition(" ")
            if word in ("FAIL", "OK"):
                told[rest.partition(":")[0]].append(word)
    for name in NAMES:
        expected: list[str] = []
        for state in (states[name] for states in runs):
            if state is State.FAIL and expected[-1:] != ["FAIL"]:
                expected.append("FAIL")
            elif state in (State.PASS, State.WARN) and expected[-1:] == ["FAIL"]:
                expected.append("OK")
        assert told[name] == expected


def test_a_message_says_host_check_reason_hint_evidence_and_what_fails_now() -> None:
    failed = CheckResult(
        "disk",
        State.FAIL,
        "no space\nis left",
        "./fleet prune",
        {"free_bytes": 12, "of": ["a"], "path": "/x"},
    )
    report = HealthReport(
        "gpu01", "2026-11-26T03:00:00Z", 0.1, (failed, *report_of({"api": State.WARN}).checks), {}
    )
    notice = make_notice(("api", "service"), report, ("api", "disk", "service"))
    assert notice == Notice(
        title="ollama-fleet gpu01: disk failed; api recovered",
        body="FAIL disk: no space is left\n  hint: ./fleet prune\n  seen: free_bytes=12, path=/x\n"
        "OK api: api is warn\nfailing now: disk, service\ngpu01, 2026-11-26T03:00:00Z",
        at="2026-11-26T03:00:00Z",
        has_problem=True,
        failing=("disk", "service"),
    )


def test_a_problem_of_a_check_that_this_host_no_longer_has_ends() -> None:
    notice = make_notice(("gpu_truth",), report_of({"api": State.PASS}), ("api",))
    assert notice is not None
    assert notice.body.startswith("OK gpu_truth: no longer checked on this host\nnothing fails now\n")
    assert not notice.has_problem
    assert make_notice(("generate",), report_of({"api": State.PASS}), ("api", "generate")) is None, (
        "a quick run leaves it out"
    )


def test_the_checks_of_a_host_are_those_that_concern_it() -> None:
    assert {"service", "gpu_truth"} <= checks_of(CONFIG)


@given(
    st.lists(
        st.builds(
            CheckResult,
            check=st.text("abc_", min_size=1, max_size=40),
            state=st.just(State.FAIL),
            reason=st.text(max_size=400),
            hint=st.none() | st.text(max_size=400),
            evidence=st.dictionaries(st.text(max_size=9), st.text(max_size=200), max_size=3),
        ),
        min_size=1,
        max_size=12,
        unique_by=lambda result: result.check,
    ),
    st.text(min_size=1, max_size=300),
)
def test_no_message_is_longer_than_the_shortest_service_takes_and_none_calls_people(
    results: list[CheckResult], host: str
) -> None:
    notice = make_notice((), HealthReport(host, "2026-11-26T03:00:00Z", 0.1, tuple(results), {}), ())
    assert notice is not None
    assert len(notice.title.encode()) <= TITLE_BYTES
    assert len(notice.body.encode()) <= BODY_BYTES
    assert not {"<", ">"} & {*notice.title, *notice.body}
    assert "failing now" in notice.body
    assert len(notice.failing) == len(results)


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("a b", 3, "a b"),
        ("a\n b", 9, "a b"),
        ("abcdef", 5, "ab..."),
        ("ééé", 5, "é..."),
        ("<!here>", 20, "‹!here›"),
        ("\udcff", 5, "?"),
    ],
)
def test_a_text_is_cut_between_two_characters(text: str, limit: int, expected: str) -> None:
    assert clip(text, limit) == expected
