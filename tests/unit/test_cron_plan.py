"""The phase `schedule` without systemd: a line in the user's own crontab, and what it starts."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import PurePosixPath

import pytest

from deploy.crontab import cron_files, cron_line, line_mark, line_written_by, why_no_cron
from deploy.desired import AgentFile, Desired, Health, HostPaths
from deploy.facts import CronFacts, FileFact, HostFacts, SecretFact
from deploy.health_config import render_health_config
from deploy.plan import only_install, only_schedule, plan
from deploy.rollback import Asked, going_back, state_before
from deploy.server_plan import choose_release
from deploy.settings import _PERIODS
from deploy.steps import Phase, StopSchedule, WriteCrontab, WriteFile, overwrites, phase_of, subject_of
from deploy.units import Hand
from healthchecks.health_config import parse_config
from tests.unit.test_plan import CONVERGED, kinds
from tests.unit.test_plan import DESIRED as UNSCHEDULED
from tests.unit.test_schedule_plan import paths

AGENT = AgentFile(local_path="/cache/agent.pex", size_bytes=14_000_000, sha256="ab" * 32)
DESIRED = replace(UNSCHEDULED, health=Health(every_minutes=5, agents={"amd64": AGENT}))
BARE = replace(
    CONVERGED,
    tools={"python3": "/usr/bin/python3", "crontab": "/usr/bin/crontab"},
    cron=CronFacts(user="ann", daemon="cron"),
)
LINE = cron_line(DESIRED, 5)
MARK = line_mark(DESIRED.paths.root)


def config_of(desired: Desired, facts: HostFacts) -> str:
    return render_health_config(desired, facts, choose_release(desired, facts))


def scheduled(desired: Desired = DESIRED, facts: HostFacts = BARE) -> HostFacts:
    """The host once the steps of the phase have been made."""
    assert facts.cron is not None
    assert desired.health is not None
    files = {
        str(file.path): FileFact(text=file.text, mode=file.mode, owner="ann")
        for file in cron_files(desired, desired.health.every_minutes)
    }
    config = str(desired.paths.health / "config.json")
    files[config] = FileFact(text=config_of(desired, facts), mode="600", owner="ann")
    line = cron_line(desired, desired.health.every_minutes)
    agents = {agent.name: agent.size_bytes for agent in desired.health.agents.values()}
    return replace(facts, cron=replace(facts.cron, files=files, lines=(line,)), agents=agents)


def with_lines(*lines: str) -> HostFacts:
    facts = scheduled()
    assert facts.cron is not None
    return replace(facts, cron=replace(facts.cron, lines=lines))


def test_a_host_gets_agent_programs_and_configuration_and_last_the_line_that_starts_them() -> None:
    planned = plan(DESIRED, BARE)
    assert kinds(planned) == ["InstallAgent", *["WriteFile"] * 3, "WriteCrontab"]
    assert {phase_of(step) for step in planned.steps} == {Phase.SCHEDULE}
    assert paths(planned) == [
        "/srv/fleet/usr/local/lib/ollama-fleet/health",
        "/srv/fleet/usr/local/lib/ollama-fleet/health-cron",
        "/srv/fleet/var/lib/ollama-fleet/health/config.json",
    ]
    assert subject_of(planned.steps[-1]) == "crontab of ann"
    assert planned.notes == ()
    assert plan(DESIRED, scheduled()).is_empty
    assert kinds(plan(DESIRED, BARE, only_schedule)) == kinds(planned)


@pytest.mark.parametrize(
    ("cron", "why"),
    [
        (None, "there is no crontab"),
        (CronFacts(user="ann"), "no cron daemon runs"),
        (CronFacts(user="ann", daemon="cron", is_refused=True), "crontab does not let ann in"),
    ],
)
def test_a_host_that_has_no_cron_gets_nothing_but_the_command_that_checks_it_from_here(
    cron: CronFacts | None, why: str
) -> None:
    facts = replace(BARE, cron=cron)
    planned = plan(DESIRED, facts)
    assert planned.is_empty
    command = "./fleet health --every 5m --limit h1"
    assert planned.notes == (f"health: nothing on this host starts the checks, {why}; from here: {command}",)
    assert plan(DESIRED, facts, only_schedule).notes == planned.notes
    assert plan(DESIRED, facts, only_install).notes == ()
    assert plan(UNSCHEDULED, facts).notes == ()
    assert parse_config(json.loads(config_of(DESIRED, facts))).files == ()


def test_a_host_whose_cron_daemon_has_ended_keeps_its_line_and_that_is_told() -> None:
    facts = scheduled()
    assert facts.cron is not None
    planned = plan(DESIRED, replace(facts, cron=replace(facts.cron, daemon=None)))
    assert planned.is_empty
    assert "no cron daemon runs" in planned.notes[0]


def test_a_root_that_cron_could_not_read_is_told() -> None:
    root = PurePosixPath("/srv/50%")
    odd = replace(DESIRED, paths=HostPaths(root=root, models_dir=root / "models"))
    assert why_no_cron(odd, BARE) == "cron ends a command at the `%` of /srv/50%"


def test_another_period_writes_program_configuration_and_line_anew() -> None:
    hourly = replace(DESIRED, health=Health(every_minutes=60, agents={"amd64": AGENT}))
    planned = plan(hourly, scheduled())
    assert [path.rpartition("/")[2] for path in paths(planned)] == ["health-cron", "config.json"]
    step = planned.steps[-1]
    assert isinstance(step, WriteCrontab)
    assert (step.line, step.mark, step.backup) == (cron_line(hourly, 60), MARK, None)
    assert not overwrites(step), "we wrote what is there"


@pytest.mark.parametrize(
    "edited",
    [
        f"#{LINE}",
        LINE.replace("/5", "/10"),
        f"@reboot /srv/fleet/usr/local/lib/ollama-fleet/health-cron {MARK}",
    ],
)
def test_a_line_that_somebody_has_edited_is_replaced_on_request_only(edited: str) -> None:
    (step,) = plan(DESIRED, with_lines(edited)).steps
    assert isinstance(step, WriteCrontab)
    assert overwrites(step)
    assert edited in step.reason
    assert step.backup is not None
    assert step.backup.parent == DESIRED.paths.backups
    assert line_written_by(edited) is Hand.OTHER
    assert line_written_by(LINE) is Hand.OURS


def test_a_line_that_is_gone_or_there_twice_is_written_anew() -> None:
    for lines in ((), (LINE, LINE)):
        (step,) = plan(DESIRED, with_lines(*lines)).steps
        assert isinstance(step, WriteCrontab)
        assert not overwrites(step)


def test_off_takes_line_programs_metrics_and_addresses_away_and_leaves_what_was_found() -> None:
    facts = scheduled()
    assert facts.cron is not None
    told = replace(facts.cron, addresses=SecretFact(sha256="0" * 64, mode="600", owner="ann"))
    (step,) = plan(UNSCHEDULED, replace(facts, cron=told)).steps
    assert isinstance(step, StopSchedule)
    assert step.mark == MARK
    assert subject_of(step) == "health checks by cron"
    gone = {
        *(DESIRED.paths.health_program, DESIRED.paths.cron_program, DESIRED.paths.agents),
        PurePosixPath("/srv/fleet/var/lib/prometheus/node-exporter/ollama_fleet.prom"),
        DESIRED.paths.addresses,
    }
    assert set(step.paths) == gone
    assert plan(UNSCHEDULED, BARE).is_empty
    line_only = replace(BARE, cron=CronFacts(user="ann", lines=(LINE,)))
    assert kinds(plan(UNSCHEDULED, line_only)) == ["StopSchedule"]


def test_files_belong_to_the_user_whose_crontab_it_is() -> None:
    facts = scheduled()
    assert facts.cron is not None
    program = str(DESIRED.paths.cron_program)
    files = {**facts.cron.files, program: replace(facts.cron.files[program], owner="eve")}
    (step,) = plan(DESIRED, replace(facts, cron=replace(facts.cron, files=files))).steps
    assert step.reason == "owner is `eve`, desired `ann`"


def test_a_host_that_has_no_systemd_notifies_too() -> None:
    told = replace(DESIRED, health=Health(every_minutes=5, agents={"amd64": AGENT}, addresses="x://y\n"))
    (step,) = plan(told, scheduled()).steps
    assert isinstance(step, WriteFile)
    assert step.file.path == DESIRED.paths.addresses


def test_the_checks_watch_what_cron_starts() -> None:
    config = parse_config(json.loads(config_of(DESIRED, BARE)))
    assert (config.backend, config.every_seconds) == ("process", 300.0)
    assert {file.path for file in config.files} == {
        str(DESIRED.paths.health_program),
        str(DESIRED.paths.cron_program),
    }


def test_going_back_tells_the_checks_what_is_served_now() -> None:
    facts = replace(scheduled(), releases={**CONVERGED.releases, "0.17.4": "c" * 64}, previous="0.17.4")
    back = state_before(DESIRED, facts, Asked(release=True))
    (step,) = [step for step in plan(back, facts, going_back).steps if phase_of(step) is Phase.SCHEDULE]
    assert isinstance(step, WriteFile)
    assert json.loads(step.file.text)["release"] == "0.17.4"


def numbers(field: str, end: int) -> list[int]:
    """crontab(5): what a field of ours stands for, below `end`."""
    span, _, step = field.partition("/")
    first, _, last = span.partition("-")
    if span == "*":
        first, last = "0", str(end - 1)
    return list(range(int(first), int(last or first) + 1, int(step or 1)))


@pytest.mark.parametrize("minutes", sorted(_PERIODS.values()))
def test_every_period_of_an_inventory_comes_exactly_so_often_at_a_moment_of_the_hosts_own(
    minutes: int,
) -> None:
    moments = set()
    for number in range(40):
        desired = replace(DESIRED, host=f"gpu{number}")
        line = cron_line(desired, minutes)
        assert line == cron_line(desired, minutes)
        minute, hour, *days = line.split()[:5]
        assert days == ["*", "*", "*"]
        runs = [60 * h + m for h in numbers(hour, 24) for m in numbers(minute, 60)]
        assert runs == list(range(runs[0], 1440, minutes))
        assert runs[0] < min(minutes, 60)
        moments.add(runs[0])
    assert len(moments) > min(minutes, 60) // 4 or minutes == 1


def test_words_that_a_shell_would_read_otherwise_stay_what_they_are() -> None:
    root = PurePosixPath("/home/ann/it's $HOME `x`")
    odd = replace(DESIRED, host="a$b c", paths=HostPaths(root=root, models_dir=root / "models"))
    command = cron_line(odd, 5).split(" ", 5)[5]
    assert shlex.split(command, comments=True) == [str(odd.paths.cron_program)]
    program = next(file for file in cron_files(odd, 5) if file.path == odd.paths.cron_program)
    call = next(line for line in program.text.splitlines() if line.endswith(" &"))
    assert shlex.split(call)[1:5] == ["run", "a$b c", str(root), str(root / "models")]
    assert line_written_by(cron_line(odd, 5)) is Hand.OURS
