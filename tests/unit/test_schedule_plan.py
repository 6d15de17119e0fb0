"""The phase `schedule`: what a host gets so that it checks itself, and what its checks are told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import PurePosixPath

import pytest

from deploy.desired import AgentFile, Desired, GpuKind, Health, HostFile, ParameterValue
from deploy.facts import FileFact, HostFacts, SecretFact, StoredModel, UnitState
from deploy.gpu import Gpu, GpuReading, Problem
from deploy.health_config import render_health_config
from deploy.plan import Plan, only_schedule, plan, render_plan
from deploy.rollback import Asked, going_back, state_before
from deploy.server_plan import choose_release
from deploy.steps import InstallAgent, OverwriteFile, Phase, StopSchedule, WriteFile, phase_of
from deploy.units import HEALTH_TIMER, HEALTH_UNIT, calendar_of, health_files, period_text
from healthchecks.health_config import parse_config
from tests.unit.test_plan import kinds
from tests.unit.test_systemd_plan import DESIRED as UNSCHEDULED
from tests.unit.test_systemd_plan import converged, with_systemd

AGENT = AgentFile(local_path="/cache/agent.pex", size_bytes=14_000_000, sha256="ab" * 32)
OTHER = replace(AGENT, sha256="cd" * 32)
DESIRED = replace(UNSCHEDULED, health=Health(every_minutes=5, agents={"amd64": AGENT}))
ACTIVE = UnitState(load_state="loaded", active_state="active", enabled="enabled")
PYTHON = {"python3": "/usr/bin/python3"}
BARE = converged(tools=PYTHON)


def config_of(desired: Desired, facts: HostFacts) -> str:
    return render_health_config(desired, facts, choose_release(desired, facts))


def scheduled(desired: Desired = DESIRED, facts: HostFacts = BARE) -> HostFacts:
    """The host once the steps of the phase have been made."""
    assert facts.systemd is not None
    assert desired.health is not None
    files = {
        str(file.path): FileFact(text=file.text, mode=file.mode)
        for file in health_files(desired, desired.health.every_minutes)
    }
    config = str(desired.paths.health / "config.json")
    files[config] = FileFact(text=config_of(desired, facts), mode="600")
    with_files = with_systemd(
        facts,
        units={**facts.systemd.units, HEALTH_TIMER: ACTIVE},
        files={**facts.systemd.files, **files},
    )
    agents = {agent.name: agent.size_bytes for agent in desired.health.agents.values()}
    return replace(with_files, agents=agents if "python3" in facts.tools else {})


def paths(planned: Plan, kind: type[WriteFile | OverwriteFile] = WriteFile) -> list[str]:
    return [str(step.file.path) for step in planned.steps if isinstance(step, kind)]


def test_a_host_that_is_as_desired_gets_agent_program_units_and_configuration_and_a_started_timer() -> None:
    planned = plan(DESIRED, BARE)
    assert kinds(planned) == ["InstallAgent", *["WriteFile"] * 4, "StartTimer"]
    assert {phase_of(step) for step in planned.steps} == {Phase.SCHEDULE}
    assert paths(planned) == [
        "/usr/local/lib/ollama-fleet/health",
        "/etc/systemd/system/ollama-fleet-health.service",
        "/etc/systemd/system/ollama-fleet-health.timer",
        "/var/lib/ollama-fleet/health/config.json",
    ]
    assert plan(DESIRED, scheduled()).is_empty
    assert kinds(plan(DESIRED, BARE, only_schedule)) == kinds(planned)


def test_a_host_without_python_is_not_sent_what_it_could_not_run_and_that_is_told() -> None:
    facts = converged(tools={})
    planned = plan(DESIRED, facts)
    assert "InstallAgent" not in kinds(planned)
    assert planned.notes == ("health: no python3 on this host, so a shell checks what it can",)
    assert plan(DESIRED, scheduled(facts=facts)).is_empty


def test_without_an_agent_here_the_one_on_the_host_stays_and_without_any_a_shell_does_it() -> None:
    without = replace(DESIRED, health=Health(every_minutes=5))
    there = scheduled()
    assert plan(without, there).is_empty
    planned = plan(without, BARE)
    assert "InstallAgent" not in kinds(planned)
    assert planned.notes == ("health: a shell checks what it can until ./fleet schedule has built the agent",)
    later = scheduled(without)
    assert kinds(plan(DESIRED, later)) == ["InstallAgent"]


@pytest.mark.parametrize(
    "there",
    [
        {OTHER.name: OTHER.size_bytes},
        {AGENT.name: 5},
        {AGENT.name: AGENT.size_bytes, OTHER.name: OTHER.size_bytes},
    ],
)
def test_another_agent_a_part_of_one_or_two_of_them_are_replaced(there: dict[str, int]) -> None:
    assert plan(DESIRED, replace(scheduled(), agents=there)).steps == (
        InstallAgent(reason=f"it is {', '.join(sorted(there))}", agent=AGENT),
    )


def test_another_period_writes_the_timer_anew_and_starts_it_again() -> None:
    hourly = replace(DESIRED, health=Health(every_minutes=60, agents={"amd64": AGENT}))
    planned = plan(hourly, scheduled())
    assert [path.rpartition("/")[2] for path in paths(planned)] == [HEALTH_TIMER, "config.json"]
    assert kinds(planned)[-1] == "StartTimer"
    timer = next(file for file in health_files(hourly, 60) if file.path.name == HEALTH_TIMER)
    assert "\nOnCalendar=0/1:00\nPersistent=true\n" in timer.text


@pytest.mark.parametrize(
    "state", [replace(ACTIVE, active_state="inactive"), replace(ACTIVE, enabled="disabled")]
)
def test_a_timer_that_somebody_has_stopped_is_started(state: UnitState) -> None:
    facts = scheduled()
    assert facts.systemd is not None
    units = {**facts.systemd.units, HEALTH_TIMER: state}
    assert kinds(plan(DESIRED, with_systemd(facts, units=units))) == ["StartTimer"]


def test_a_unit_that_somebody_has_edited_is_told_as_such_and_the_configuration_just_written() -> None:
    facts = scheduled()
    assert facts.systemd is not None
    config, unit = str(DESIRED.paths.health / "config.json"), str(DESIRED.paths.units / HEALTH_UNIT)
    files = dict(facts.systemd.files)
    files[unit] = replace(files[unit], text=files[unit].text.replace("Nice=10", "Nice=0"))
    files[config] = replace(files[config], text="{}")
    planned = plan(DESIRED, with_systemd(facts, files=files))
    assert paths(planned, OverwriteFile) == [unit]
    assert paths(planned) == [config]
    assert {phase_of(step) for step in planned.steps} == {Phase.SCHEDULE}


def test_off_takes_away_what_runs_and_is_then_as_desired() -> None:
    off = replace(DESIRED, health=None)
    (step,) = plan(off, scheduled()).steps
    assert isinstance(step, StopSchedule)
    assert DESIRED.paths.agents in step.paths
    assert DESIRED.paths.units / HEALTH_TIMER in step.paths
    assert DESIRED.paths.health not in step.paths, "what was found stays"
    assert PurePosixPath("/var/lib/prometheus/node-exporter/ollama_fleet.prom") in step.paths
    assert plan(off, BARE).is_empty


def test_off_takes_the_metrics_away_from_where_the_host_was_told_to_write_them() -> None:
    assert DESIRED.health is not None
    asked = replace(
        DESIRED, health=replace(DESIRED.health, textfile_dir=PurePosixPath("/srv/prom"), every_minutes=60)
    )
    config = parse_config(json.loads(config_of(asked, BARE)))
    assert (config.textfile_dir, config.every_seconds) == ("/srv/prom", 3600.0)
    (step,) = plan(replace(DESIRED, health=None), scheduled(asked)).steps
    assert isinstance(step, StopSchedule)
    assert PurePosixPath("/srv/prom/ollama_fleet.prom") in step.paths


def test_the_checks_read_what_the_deploy_writes() -> None:
    config = parse_config(json.loads(config_of(DESIRED, BARE)))
    assert (config.host, config.url, config.unit) == (DESIRED.host, DESIRED.url, "ollama.service")
    (model,) = config.models
    wanted = DESIRED.models[0]
    assert (model.name, model.weights_sha256, model.size_bytes) == (
        wanted.name,
        wanted.weights.sha256,
        wanted.weights.size_bytes,
    )
    assert model.parameters == wanted.modelfile.parameters
    watched = {file.path for file in config.files}
    assert {
        "/etc/systemd/system/ollama.service",
        "/etc/systemd/system/ollama.service.d/50-fleet.conf",
        "/usr/local/lib/ollama-fleet/lease",
        f"/etc/systemd/system/{HEALTH_TIMER}",
    } <= watched


def with_gpus(facts: HostFacts, count: int, problem: Problem | None = None) -> HostFacts:
    gpus = tuple(
        Gpu(
            index=number,
            uuid=f"GPU-{number}",
            name="H100",
            driver="550",
            memory_total_bytes=80 * 1024**3,
            memory_used_bytes=0,
            memory_free_bytes=80 * 1024**3,
        )
        for number in range(count)
    )
    return replace(facts, gpus=GpuReading(gpus=gpus, problem=problem))


def expected_gpus(desired: Desired, facts: HostFacts) -> int | None:
    return parse_config(json.loads(config_of(desired, facts))).gpu_expected_count


def test_a_gpu_that_is_gone_is_still_expected() -> None:
    desired = replace(DESIRED, gpu=GpuKind.NVIDIA)
    eight = with_gpus(BARE, 8)
    assert expected_gpus(desired, eight) == 8
    assert expected_gpus(desired, with_gpus(scheduled(desired, eight), 7)) == 8
    assert expected_gpus(desired, with_gpus(scheduled(desired, eight), 0, Problem.HANGS)) == 8
    assert expected_gpus(desired, with_gpus(BARE, 0, Problem.HANGS)) is None


def test_going_back_tells_the_checks_what_is_served_now_and_nothing_else() -> None:
    releases = {**BARE.releases, "0.17.4": "c" * 64}
    facts = replace(scheduled(), releases=releases, previous="0.17.4")
    back = state_before(DESIRED, facts, Asked(release=True))
    steps = [step for step in plan(back, facts, going_back).steps if phase_of(step) is Phase.SCHEDULE]
    (step,) = steps
    assert isinstance(step, WriteFile)
    assert json.loads(step.file.text)["release"] == "0.17.4"
    never = replace(converged(releases=releases), previous="0.17.4")
    assert not any(phase_of(step) is Phase.SCHEDULE for step in plan(back, never, going_back).steps)


@pytest.mark.parametrize(
    ("minutes", "calendar", "text"),
    [
        (1, "*:0/1", "1m"),
        (30, "*:0/30", "30m"),
        (60, "0/1:00", "1h"),
        (720, "0/12:00", "12h"),
        (1440, "daily", "1d"),
    ],
)
def test_a_period_is_a_calendar_of_systemd(minutes: int, calendar: str, text: str) -> None:
    assert (calendar_of(minutes), period_text(minutes)) == (calendar, text)


def test_a_name_that_systemd_would_read_as_a_variable_stays_what_it_is() -> None:
    odd = replace(DESIRED, host="a$b%c d")
    unit = next(file for file in health_files(odd, 5) if file.path.name == HEALTH_UNIT)
    assert ' "a$$b%%c d" ' in unit.text


def test_the_delay_is_a_part_of_the_period() -> None:
    def delay(files: Iterable[HostFile]) -> str:
        text = next(file.text for file in files if file.path.name == HEALTH_TIMER)
        return text.partition("RandomizedDelaySec=")[2].partition("s")[0]

    assert [delay(health_files(DESIRED, minutes)) for minutes in (1, 5, 60)] == ["12", "60", "300"]


def test_parameters_read_from_the_store_are_told_as_those_of_the_modelfile() -> None:
    """A rollback knows what it went back to from the store only, where Ollama has written 0.0 as 0."""
    (model,) = DESIRED.models
    wanted: dict[str, ParameterValue] = {
        "temperature": 0.0,
        "num_ctx": 4096,
        "stop": ["b", "a"],
        "top_p": 0.8,
    }
    kept = {"num_ctx": 4096, "stop": ["b", "a"], "temperature": 0, "top_p": 0.8}
    stored = StoredModel(
        model_sha256=model.weights.sha256,
        model_bytes=model.weights.size_bytes,
        template=model.modelfile.template,
        parameters=kept,
    )
    asked = replace(model, modelfile=replace(model.modelfile, parameters=wanted))
    told = [
        config_of(replace(DESIRED, models=(one,)), BARE) for one in (asked, replace(asked, stored=stored))
    ]
    assert told[0] == told[1]


ADDRESSES = "slack://T1/A1/kept-secret\n"
NOTIFYING = replace(DESIRED, health=Health(every_minutes=5, agents={"amd64": AGENT}, addresses=ADDRESSES))


def notified(**fields: str) -> HostFacts:
    """The host with the addresses of the inventory, but for these fields."""
    sha256 = hashlib.sha256(ADDRESSES.encode()).hexdigest()
    return with_systemd(scheduled(), addresses=SecretFact(**{"sha256": sha256, "mode": "600", **fields}))


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (scheduled(), "absent"),
        (notified(sha256="0" * 64), "other addresses"),
        (notified(mode="644"), "mode is 644, owner is root"),
        (notified(owner="ollama"), "mode is 600, owner is ollama"),
    ],
)
def test_the_addresses_of_people_are_written_for_root_alone_and_never_shown(
    facts: HostFacts, reason: str
) -> None:
    planned = plan(NOTIFYING, facts)
    (step,) = planned.steps
    assert isinstance(step, WriteFile)
    assert (str(step.file.path), step.file.mode) == ("/var/lib/ollama-fleet/health/notify.urls", "600")
    assert (step.file.text, step.reason, phase_of(step)) == (ADDRESSES, reason, Phase.SCHEDULE)
    for shown in (
        repr(planned),
        repr(NOTIFYING),
        json.dumps(render_plan(planned)),
        config_of(NOTIFYING, facts),
    ):
        assert "secret" not in shown


def test_a_host_that_has_the_addresses_gets_nothing_and_without_the_key_its_own_stay() -> None:
    assert plan(NOTIFYING, notified()).is_empty
    assert plan(DESIRED, notified(sha256="0" * 64)).is_empty


def test_where_nobody_is_to_be_notified_any_more_the_addresses_go() -> None:
    nobody = replace(DESIRED, health=Health(every_minutes=5, agents={"amd64": AGENT}, addresses=""))
    assert plan(nobody, scheduled()).is_empty
    (step,) = plan(nobody, notified()).steps
    assert isinstance(step, WriteFile)
    assert step.file.text == ""
    (stop,) = plan(UNSCHEDULED, notified()).steps
    assert isinstance(stop, StopSchedule)
    assert "/var/lib/ollama-fleet/health/notify.urls" in map(str, stop.paths)
    (stop,) = plan(UNSCHEDULED, scheduled()).steps
    assert isinstance(stop, StopSchedule)
    assert "/var/lib/ollama-fleet/health/notify.urls" not in map(str, stop.paths)


def test_a_host_without_python_is_told_to_notify_nobody() -> None:
    (note,) = plan(NOTIFYING, converged(tools={})).notes
    assert note.endswith("a shell checks what it can, and nobody is notified")
