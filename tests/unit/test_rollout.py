"""Batches with hosts that need none: what begins, what stops, and what every report says of it."""

from __future__ import annotations

import gc
import io
import json
import os
import re
import threading
import tracemalloc
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.deploy_junit import render_deploy_junit
from console.pace import AskedPace, parse_pace
from console.report_files import check_report_file, write_report_file
from console.rollout import Work, roll_out
from console.run import Run
from deploy.compose import Sources
from deploy.desired import Desired, Pace
from deploy.errors import (
    ExitCode,
    FleetError,
    HostLocked,
    HostUnreachable,
    Interrupted,
    ServiceError,
    UsageError,
    VerifyFailed,
)
from deploy.outcomes import HostOutcome, ModelVerdict, Outcome, count_outcomes, without_details
from deploy.recap import render_recap
from deploy.report import Report
from tests.unit.test_plan import DESIRED

ERRORS: Mapping[str, Callable[[], FleetError]] = {
    "failed": lambda: VerifyFailed(
        sentence="`m:latest` did not pass", cause="rule 4\x00", unchanged="release 0.17.5 serves again"
    ),
    "unreachable": lambda: HostUnreachable(sentence="`box` is not reachable"),
    "lost": lambda: HostUnreachable(sentence="the SSH connection was cut"),
    "locked": lambda: HostLocked(sentence="`box` is locked", unchanged="everything"),
    "lock lost": lambda: HostLocked(sentence="the lock was lost"),
    "interrupted": lambda: Interrupted(sentence="`deploy` was interrupted"),
}


def ended(host: str, how: str) -> HostOutcome:
    if how in ("ok", "changed"):
        steps = 3 if how == "changed" else 0
        return HostOutcome(host=host, outcome=Outcome(how), steps_done=steps, seconds=1.5, version="0.17.7")
    kind = Outcome.UNREACHABLE if how in ("unreachable", "lost") else Outcome.FAILED
    return HostOutcome(
        host=host,
        outcome=kind,
        error=ERRORS[how](),
        in_doubt=how == "lost",
        steps_done=2 if how in ("lost", "lock lost") else 0,
        seconds=0.5,
    )


@dataclass(kw_only=True)
class Fleet:
    """Hosts that end as they are told to: `before` at the look before the batches, `then` in their batch."""

    pace: Pace
    then: list[str]
    before: Mapping[int, str] = field(default_factory=dict)
    stop_after: str | None = None
    stop_requested: threading.Event = field(default_factory=threading.Event)
    events: list[dict[str, Any]] = field(default_factory=list)
    surveyed: list[str] = field(default_factory=list)
    changed: list[tuple[str, int]] = field(default_factory=list)

    @property
    def hosts(self) -> list[Desired]:
        return [replace(DESIRED, host=f"h{n}", pace=self.pace) for n in range(len(self.then))]

    def hear(self, event: str, host: str | None, **fields: Any) -> None:
        self.events.append({"event": event, "host": host, **fields})

    def survey(self, desired: Desired) -> HostOutcome | None:
        self.surveyed.append(desired.host)
        how = self.before.get(int(desired.host[1:]))
        return None if how is None else ended(desired.host, how)

    def change(self, desired: Desired, number: int) -> HostOutcome:
        self.changed.append((desired.host, number))
        if desired.host == self.stop_after:
            self.stop_requested.set()
        return ended(desired.host, self.then[int(desired.host[1:])])

    def run(self, hosts: Iterable[Desired] | None = None, forks: int = 1) -> tuple[HostOutcome, ...]:
        told: list[HostOutcome] = []
        outcomes = roll_out(
            list(self.hosts if hosts is None else hosts),
            Work(survey=self.survey, change=self.change, tell=told.append),
            self.hear,
            forks=forks,
            stop_requested=self.stop_requested,
        )
        assert Counter(one.host for one in told) == Counter(one.host for one in outcomes)
        return outcomes

    def batches(self) -> list[list[str]]:
        return [event["hosts"] for event in self.events if event["event"] == "batch_started"]


def kinds(outcomes: Iterable[HostOutcome]) -> str:
    return " ".join(str(outcome.outcome) for outcome in outcomes)


def test_all_at_once_looks_at_nobody_first() -> None:
    fleet = Fleet(pace=Pace(), then=["changed", "ok", "changed"])
    assert kinds(fleet.run()) == "changed ok changed"
    assert fleet.surveyed == []
    assert fleet.batches() == [["h0", "h1", "h2"]]


def test_the_canary_is_the_first_host_that_has_changes() -> None:
    fleet = Fleet(pace=Pace(batch=("1", "2")), then=["changed"] * 5, before={0: "ok", 2: "unreachable"})
    assert kinds(fleet.run()) == "ok changed unreachable changed changed"
    assert fleet.surveyed == ["h0", "h1", "h2", "h3", "h4"]
    assert fleet.batches() == [["h1"], ["h3", "h4"]]
    assert [one.batch for one in fleet.run()] == [None, 1, None, 2, 2]


def test_a_failed_canary_leaves_the_others_as_they_are_and_says_why() -> None:
    fleet = Fleet(pace=Pace(batch=("1", "2")), then=["failed", *["changed"] * 4])
    outcomes = fleet.run()
    assert kinds(outcomes) == "failed skipped skipped skipped skipped"
    assert fleet.changed == [("h0", 1)]
    assert outcomes[1].reason == "batch 2 of 3 was not begun: 1 failed, at most 0"
    assert [one.batch for one in outcomes] == [1, 2, 2, 3, 3]
    (stop,) = [event for event in fleet.events if event["event"] == "rollout_stopped"]
    assert stop["hosts"] == 4
    assert stop["reason"] == "1 failed, at most 0"


def test_the_batch_that_runs_is_finished_and_as_many_as_allowed_may_fail() -> None:
    then = ["changed", "failed", "changed", "failed", "changed", "changed", "changed"]
    fleet = Fleet(pace=Pace(batch=("1", "2"), max_failures=1), then=then)
    assert kinds(fleet.run()) == "changed failed changed failed changed skipped skipped"
    assert fleet.batches() == [["h0"], ["h1", "h2"], ["h3", "h4"]]
    done = [event for event in fleet.events if event["event"] == "batch_done"]
    assert [(event["number"], event["of"], event["hosts"], event["failed"]) for event in done] == [
        (1, 4, 1, 0),
        (2, 4, 2, 1),
        (3, 4, 2, 1),
    ]


def test_a_failed_check_of_a_host_without_changes_counts_too() -> None:
    fleet = Fleet(pace=Pace(batch=("1",)), then=["changed"] * 3, before={2: "failed"})
    outcomes = fleet.run()
    assert kinds(outcomes) == "skipped skipped failed"
    assert outcomes[0].reason == "batch 1 of 2 was not begun: 1 failed, at most 0"
    assert fleet.changed == []


def test_a_locked_or_unreachable_host_spends_no_budget_and_a_lost_lock_does() -> None:
    fleet = Fleet(pace=Pace(batch=("2",)), then=["locked", "unreachable", "changed", "lock lost", "changed"])
    assert kinds(fleet.run()) == "failed unreachable changed failed skipped"


def test_a_host_that_was_lost_during_its_change_may_have_been_lost_by_it() -> None:
    fleet = Fleet(pace=Pace(batch=("1",)), then=["lost", "changed"])
    outcomes = fleet.run()
    assert kinds(outcomes) == "unreachable skipped"
    assert outcomes[1].reason == "batch 2 of 2 was not begun: 1 lost during the change, at most 0"


def test_a_batch_that_proved_nothing_is_followed_by_one_of_its_size() -> None:
    fleet = Fleet(pace=Pace(batch=("1", "100%")), then=["unreachable", "locked", "changed", *["changed"] * 4])
    fleet.run()
    assert fleet.batches() == [["h0"], ["h1"], ["h2"], ["h3", "h4", "h5", "h6"]]


def test_ctrl_c_between_batches_begins_no_other() -> None:
    fleet = Fleet(pace=Pace(batch=("1",)), then=["changed"] * 3, stop_after="h0")
    outcomes = fleet.run()
    assert kinds(outcomes) == "changed skipped skipped"
    assert outcomes[2].reason == "batch 3 of 3 was not begun: interrupted"


def test_ctrl_c_in_a_batch_begins_no_other_host() -> None:
    fleet = Fleet(pace=Pace(), then=["changed", "interrupted", "changed"], stop_after="h1")
    outcomes = fleet.run()
    assert kinds(outcomes) == "changed failed skipped"
    assert outcomes[2].reason == "interrupted before it was begun"


def test_ctrl_c_while_hosts_are_looked_at_changes_none() -> None:
    fleet = Fleet(pace=Pace(batch=("1",)), then=["changed"] * 3)
    fleet.stop_requested.set()
    assert kinds(fleet.run()) == "skipped skipped skipped"
    assert (fleet.surveyed, fleet.changed) == ([], [])


def test_a_rollout_that_stops_at_its_budget_stops_the_run_and_its_numbers_go_on() -> None:
    fleet = Fleet(pace=Pace(batch=("1",)), then=["changed", "failed", "changed", "changed", "changed"])
    hosts = fleet.hosts
    hosts[3:] = [replace(desired, pace=Pace()) for desired in hosts[3:]]
    outcomes = fleet.run(hosts)
    assert kinds(outcomes) == "changed failed skipped skipped skipped"
    assert [one.batch for one in outcomes] == [1, 2, 3, 4, 4]
    assert outcomes[4].reason == "batch 4 of 4 was not begun: 1 failed, at most 0"
    assert fleet.surveyed == ["h0", "h1", "h2"]


HOWS = ["ok", "changed", "failed", "unreachable", "lost", "locked", "lock lost"]


@given(
    st.lists(st.sampled_from(HOWS), min_size=1, max_size=14),
    st.dictionaries(st.integers(0, 13), st.sampled_from(["ok", "failed", "unreachable"])),
    st.lists(st.sampled_from(["1", "2", "25%", "50%", "100%"]), min_size=1, max_size=3).map(tuple),
    st.integers(0, 3),
    st.integers(1, 4),
)
def test_no_batch_begins_above_the_budget_and_all_reports_count_alike(
    then: list[str], before: dict[int, str], batch: tuple[str, ...], most: int, forks: int
) -> None:
    fleet = Fleet(pace=Pace(batch=batch, max_failures=most), then=then, before=before)
    outcomes = fleet.run(forks=forks)
    assert [one.host for one in outcomes] == [desired.host for desired in fleet.hosts]
    spent = 0
    spent += sum(one.spends_budget for one in outcomes if one.batch is None)
    for number, names in enumerate(fleet.batches(), 1):
        assert spent <= most
        assert [one.host for one in outcomes if one.batch == number] == names
        spent += sum(one.spends_budget for one in outcomes if one.batch == number)
    touched = {host for host, _ in fleet.changed}
    assert touched.isdisjoint(one.host for one in outcomes if one.outcome is Outcome.SKIPPED)
    check_reports_agree(outcomes)


def check_reports_agree(outcomes: tuple[HostOutcome, ...]) -> None:
    """The recap, the JUnit report and the summary, of the same hosts."""
    _, rows = render_recap(outcomes)
    of_recap = Counter(row[1] for row in rows)
    root = ET.fromstring(render_deploy_junit("deploy", outcomes))
    cases = list(root.iter("testcase"))
    tags = Counter(next((child.tag for child in case), "fine") for case in cases)
    assert sorted(row[0] for row in rows) == sorted(str(case.get("name")) for case in cases)
    assert tags["failure"] == of_recap["failed"] == int(root.get("failures", ""))
    assert tags["error"] == of_recap["unreachable"] == int(root.get("errors", ""))
    assert tags["skipped"] == of_recap["skipped"]
    assert tags["fine"] == of_recap["ok"] + of_recap["changed"]
    for suite in root:
        assert int(suite.get("tests", "")) == len(list(suite))
        for tag, name in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            assert int(suite.get(name, "")) == len(list(suite.iter(tag)))
    stdout = io.StringIO()
    Report(as_json=True, stdout=stdout, stderr=io.StringIO()).summary(outcomes)
    summary = json.loads(stdout.getvalue())
    counts = count_outcomes(outcomes)
    for kind in ("changed", "failed", "unreachable"):
        assert summary[kind] == of_recap[kind] == counts[Outcome(kind)]


def test_the_recap_has_those_to_look_at_last_and_what_they_serve() -> None:
    fleet = Fleet(pace=Pace(batch=("2", "1")), then=["failed", "unreachable", "changed"], before={})
    columns, rows = render_recap([*fleet.run(), ended("h9", "ok")])
    assert columns == ["host", "outcome", "release", "steps", "seconds", "batch", "reason"]
    assert [row[1] for row in rows] == ["ok", "skipped", "unreachable", "failed"]
    assert rows[0][2] == "0.17.7"
    assert rows[-1][2] == "-"
    assert rows[-1][-1] == "`m:latest` did not pass; left unchanged: release 0.17.5 serves again"


def test_without_batches_the_recap_has_no_column_for_them() -> None:
    columns, rows = render_recap(Fleet(pace=Pace(), then=["changed", "ok"]).run())
    assert "batch" not in columns
    assert all(len(row) == len(columns) for row in rows)


def test_two_hundred_hosts_are_a_line_each_in_the_recap() -> None:
    then = ["changed"] * 199 + ["failed"]
    stdout = io.StringIO()
    report = Report(as_json=False, stdout=stdout, stderr=io.StringIO())
    report.recap(Fleet(pace=Pace(), then=then).run())
    lines = stdout.getvalue().splitlines()
    assert len(lines) == 202
    assert re.fullmatch(r"h0 +changed +0\.17\.7 +3 +1\.5", lines[2])
    assert lines[-1].startswith("h199  failed")


def test_a_suite_of_the_junit_report_is_a_batch() -> None:
    fleet = Fleet(pace=Pace(batch=("1",)), then=["failed", "changed", "changed"], before={2: "ok"})
    root = ET.fromstring(render_deploy_junit("deploy", fleet.run()))
    assert [suite.get("name") for suite in root] == [
        "deploy: in no batch",
        "deploy: batch 1",
        "deploy: batch 2",
    ]
    (failure,) = root.iter("failure")
    assert failure.get("type") == "VerifyFailed"
    assert "left unchanged: release 0.17.5 serves again" in str(failure.text)
    assert r"rule 4\x00" in str(failure.text)
    (skipped,) = root.iter("skipped")
    assert skipped.get("message") == "batch 2 of 2 was not begun: 1 failed, at most 0"


def test_what_is_kept_of_a_host_that_is_done_is_small() -> None:
    """Its cases and the frames of its error would be hundreds of KiB a host."""

    def fail() -> HostOutcome:
        cases = tuple(
            {"case": f"case {n}", "passed": n % 2 == 0, "findings": ["x" * 2000]} for n in range(80)
        )
        verdict = ModelVerdict(passed=False, cases=cases, rates=dict.fromkeys(range(63), (1, 2)))
        held = bytearray(1_000_000)
        try:
            raise OSError(len(held))
        except OSError as cause:
            try:
                raise ServiceError(sentence="it ended") from cause
            except ServiceError as error:
                return HostOutcome(
                    host="box", outcome=Outcome.FAILED, error=error, verdicts={"m": verdict}, steps_done=3
                )

    gc.collect()
    tracemalloc.start()
    try:
        kept = [without_details(fail()) for _ in range(20)]
        gc.collect()
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes / len(kept) < 8 * 1024
    assert kept[0].verdicts["m"].count == (40, 40)
    assert kept[0].exit_code is ExitCode.FAILED


@pytest.mark.parametrize(
    ("batch", "most", "said"),
    [
        ("0", None, "`--batch 0` cannot be used"),
        ("1;5", None, "counts or percentages of hosts, such as 1,5,25%"),
        ("101%", None, "`--batch 101%`"),
        (None, "-1", "a whole number from 0"),
        (None, "25%", "`--max-failures 25%` cannot be used"),
    ],
)
def test_a_pace_that_cannot_be_meant_is_refused_as_in_the_inventory(
    batch: str | None, most: str | None, said: str
) -> None:
    with pytest.raises(UsageError) as refused:
        parse_pace(batch, most)
    assert said in str(refused.value)


def test_a_report_that_could_not_be_kept_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    check_report_file("--junit", None)
    check_report_file("--junit", tmp_path / "deploy.xml")
    assert list(tmp_path.iterdir()) == []
    # /proc takes no file, from root neither.
    for path in (tmp_path, tmp_path / "nowhere/deploy.xml", Path("/proc/deploy.xml")):
        with pytest.raises(UsageError, match="cannot be written"):
            check_report_file("--junit", path)


def test_a_report_goes_through_a_link_and_into_a_pipe_and_replaces_neither(tmp_path: Path) -> None:
    link, pipe = tmp_path / "link.xml", tmp_path / "pipe"
    link.symlink_to(tmp_path / "deploy.xml")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        for path in (link, pipe):
            check_report_file("--junit", path)
            write_report_file(path, b"<testsuites/>")
        assert os.read(reader, 100) == b"<testsuites/>"
    finally:
        os.close(reader)
    assert (link.is_symlink(), pipe.is_fifo()) == (True, True)
    assert (tmp_path / "deploy.xml").read_bytes() == b"<testsuites/>"
    assert len(list(tmp_path.iterdir())) == 3


def test_a_window_of_less_than_no_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`--soak -1` is no time"):
        Run(
            report=Report(as_json=True),
            sources=Sources(inventory=tmp_path, modelfiles=tmp_path, pins=tmp_path),
            limit=None,
            forks=1,
            stop_requested=threading.Event(),
            soak_seconds=-1.0,
        )


def test_a_flag_wins_over_the_inventory_and_no_flag_leaves_it() -> None:
    host = replace(DESIRED, pace=Pace(batch=("1", "50%"), max_failures=2))
    assert parse_pace(None, None).over(host) == host
    assert parse_pace("5", None).over(host).pace == Pace(batch=("5",), max_failures=2)
    assert parse_pace(None, "0").over(host).pace == Pace(batch=("1", "50%"), max_failures=0)
    assert AskedPace() == parse_pace(None, None)
