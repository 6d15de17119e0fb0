"""Hosts that check themselves: by timer, after a cut, with Python and without, and no more once it is off."""

from __future__ import annotations

import json
import shutil
import zipfile
from typing import Any

import pytest

from console.agent import describe_agent, make_agents
from console.changes import deploy_hosts, remove_hosts
from console.health import examine
from console.run import with_agents
from deploy.desired import AgentFile, Desired
from deploy.outcomes import HostOutcome
from deploy.plan import only_schedule, plan
from deploy.remove import Models
from deploy.steps import Step
from healthchecks.health_report import HealthReport, State, parse_report
from testbed.hosts_kinds import Kind
from testbed.hosts_machine import CACHE
from testbed.promises import broken_promises
from tests.hosts.site import HostSite, forget_connections, until
from tests.hosts.test_life import traces

STATE = "/var/lib/ollama-fleet/health"
TEXTFILES = "/var/lib/prometheus/node-exporter"
UNIT = "ollama-fleet-health.service"
TIMER = "ollama-fleet-health.timer"


@pytest.fixture(scope="session")
def agents() -> dict[str, AgentFile]:
    """Beside the trees of the hosts, where it outlives the run: it takes minutes to fetch the packages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(CACHE / "agents"))
        return make_agents(["amd64"], print)


def desired(site: HostSite, agents: dict[str, AgentFile]) -> tuple[Desired, ...]:
    return with_agents(site.run.hosts(), agents)


def deploy(site: HostSite, agents: dict[str, AgentFile]) -> HostOutcome:
    return deploy_hosts(site.run, desired(site, agents), "deploy")[0]


def last(site: HostSite) -> HealthReport:
    return parse_report(json.loads(site.sh(f"cat {STATE}/last.json")))


def history(site: HostSite) -> list[dict[str, Any]]:
    return [json.loads(line) for line in site.sh(f"cat {STATE}/history.jsonl").splitlines()]


def states(report: HealthReport) -> dict[str, State]:
    return {result.check: result.state for result in report.checks}


def test_a_host_checks_itself_by_timer_with_nobody_else_there(
    site: HostSite, agents: dict[str, AgentFile]
) -> None:
    site.sh(f"mkdir -p {TEXTFILES}")
    before = traces(site)
    first = deploy(site, agents)
    assert first.error is None
    assert site.plan().is_empty, "another controller without the agent leaves the one that is there"
    assert deploy(site, agents).steps_done == 0
    assert (
        site.sh(f"systemd-analyze verify /etc/systemd/system/{UNIT} /etc/systemd/system/{TIMER} 2>&1") == ""
    )
    assert site.sh(f"stat -c %a {STATE}/config.json") == "600"
    assert site.sh("ls /root/.cache /root/.pex 2>/dev/null || true") == ""

    check_now(site)
    found = states(last(site))
    assert set(found.values()) <= {State.PASS, State.WARN, State.UNKNOWN}, last(site)
    assert [found[name] for name in ("service", "api", "models", "toolcall", "drift")] == [State.PASS] * 5
    assert site.sh(f"journalctl -q -o cat -u {UNIT} | grep -c 'checks passed in'") == "1"
    assert site.sh(f"stat -c %a {TEXTFILES}/*") == "644"
    metrics = site.sh(f"cat {TEXTFILES}/ollama_fleet.prom").splitlines()
    assert 'ollama_fleet_check_success{check="toolcall"} 1.0' in metrics
    assert 'ollama_fleet_unit_active{unit="ollama.service"} 1.0' in metrics
    assert 'ollama_fleet_unit_restarts_total{unit="ollama.service"} 0.0' in metrics
    assert "ollama_fleet_check_interval_seconds 300.0" in metrics
    asked = examine(desired(site, agents)[0], quick=True)
    assert {**states(asked)} == {name: found[name] for name in states(asked)}

    # Every two seconds, by an operator's own drop-in, which is no drift; a check that failed stops no timer.
    every(site, "*:*:0/2")
    site.sh("systemctl stop ollama")
    until("three more runs", lambda: len(history(site)) >= 4)
    assert site.plan().steps[0].reason != "", "the server is to be started"
    assert all("health" not in step.reason for step in site.plan().steps)
    assert states(last(site))["service"] is State.FAIL
    assert site.sh(f"systemctl is-failed {UNIT} || true") in ("failed", "activating")
    site.sh("systemctl start ollama")
    until("green again", lambda: states(last(site))["service"] is not State.FAIL)

    # Another agent takes the place of this one.
    other = with_comment(agents["amd64"], site)
    assert [type(step).__name__ for step in scheduled_steps(site, {"amd64": other})] == ["InstallAgent"]
    assert deploy(site, {"amd64": other}).error is None
    assert site.sh("ls /usr/local/lib/ollama-fleet/agent") == other.name
    known = len(history(site))
    until("the other one runs", lambda: len(history(site)) > known)
    assert "toolcall" in states(last(site))

    removed = remove_hosts(site.run, site.run.hosts(), Models.REMOVE)[0]
    assert removed.error is None
    site.sh(f"rm -r /etc/systemd/system/{TIMER}.d; systemctl daemon-reload")
    assert set(traces(site)) ^ set(before) == set()
    assert site.sh("ls /var/lib/systemd/timers | grep -c fleet || true") == "0"


@pytest.mark.fault(46)
def test_a_run_that_was_missed_is_made_up_for_once_and_none_runs_beside_another(
    site: HostSite, agents: dict[str, AgentFile]
) -> None:
    site.sh(f"mkdir -p {TEXTFILES}")
    assert deploy(site, agents).error is None
    # Once a day, at a time that is far enough from now: what is missed is yesterday's.
    hour = (int(site.sh("date +%H")) + 12) % 24
    every(site, f"*-*-* {hour:02d}:00:00")
    site.sh(f"systemctl start {UNIT} || true")
    known = len(history(site))
    site.sh(f"systemctl stop {TIMER}; touch -d '2 days ago' /var/lib/systemd/timers/stamp-{TIMER}")
    forget_connections()
    site.host.kill9()
    site.host.start()
    site.host.wait_for_ssh()
    until("made up for", lambda: len(history(site)) > known)
    until("it has ended", lambda: site.sh(f"systemctl is-active {UNIT} || true") in ("inactive", "failed"))
    assert len(history(site)) == known + 1
    # Whoever deploys without the agent leaves the one that is there.
    told = broken_promises(site.host, serves=["0.17.5"], new="0.17.5", deploy=site.ran)
    assert told == []

    # By systemd, by hand, by cron: the one that comes second leaves.
    site.sh(f"systemd-run --unit holder flock {STATE}/lock sleep 60")
    until("held", lambda: site.sh(f"flock -n {STATE}/lock true && echo free || echo held") == "held")
    program = site.sh(f"systemctl cat {UNIT} | sed -n 's/^ExecStart=//p'").splitlines()[-1]
    assert site.sh(program) == "another run is under way"
    site.sh("systemctl stop holder")
    assert len(history(site)) == known + 1

    site.settings["ollama_health_every"] = "off"
    assert deploy(site, agents).error is None
    assert site.plan().is_empty
    assert site.sh("systemctl list-unit-files --no-legend 'ollama-fleet-health*' || true") == ""
    assert len(history(site)) == known + 1, "what was found stays"
    assert site.sh(f"ls {TEXTFILES}") == "", "what nobody writes any more is not to be scraped"


@pytest.mark.parametrize("host", [Kind.OLD], indirect=True)
def test_the_agent_runs_on_python_3_9_too(site: HostSite, agents: dict[str, AgentFile]) -> None:
    assert deploy(site, agents).error is None
    assert "3.9." in site.sh("python3 --version")
    check_now(site)
    found = states(last(site))
    assert [found[name] for name in ("service", "api", "models", "toolcall", "drift")] == [State.PASS] * 5
    assert "FixedRandomDelay" not in site.sh(
        f"systemd-analyze verify /etc/systemd/system/{TIMER} 2>&1 || true"
    )


@pytest.mark.parametrize("host", [Kind.POOR], indirect=True)
def test_without_python_a_shell_checks_what_it_can_and_says_what_it_could_not(
    site: HostSite, agents: dict[str, AgentFile]
) -> None:
    assert deploy(site, agents).error is None
    assert "no python3 on this host" in site.output.getvalue()
    assert deploy(site, agents).steps_done == 0
    assert site.sh("ls /usr/local/lib/ollama-fleet/agent 2>/dev/null || true") == ""
    check_now(site)
    report = last(site)
    found = states(report)
    assert [found[name] for name in ("service", "models", "disk", "exposure")] == [State.PASS] * 4
    unchecked = [result for result in report.checks if "no python3" in result.reason]
    assert {"toolcall", "drift"} <= {result.check for result in unchecked}
    assert {result.state for result in unchecked} == {State.UNKNOWN}
    site.sh("systemctl stop ollama")
    site.sh(f"systemctl start {UNIT} || true")
    assert states(last(site))["service"] is State.FAIL
    assert [entry["state"] for entry in history(site)] == ["unknown", "fail"]
    metrics = site.sh(f"cat {STATE}/ollama_fleet.prom").splitlines()
    assert 'ollama_fleet_check_consecutive_failures{check="service"} 1' in metrics
    assert "ollama_fleet_check_interval_seconds 300" in metrics


def check_now(site: HostSite) -> None:
    """As the timer does; nothing may fail."""
    site.sh(f"systemctl start {UNIT} || {{ journalctl -q -o cat -n 30 -u {UNIT} >&2; exit 1; }}")


def every(site: HostSite, calendar: str) -> None:
    """By a drop-in of the operator's own, at once and not at a moment of the host's own."""
    directory = f"/etc/systemd/system/{TIMER}.d"
    text = f"[Timer]\\nOnCalendar=\\nOnCalendar={calendar}\\nRandomizedDelaySec=0\\n"
    site.sh(
        f"mkdir -p {directory}; printf '{text}' >{directory}/test.conf; systemctl daemon-reload;"
        f" systemctl restart {TIMER}"
    )


def with_comment(agent: AgentFile, site: HostSite) -> AgentFile:
    """The same agent by other bytes."""
    path = site.directory / "other.pex"
    shutil.copyfile(agent.local_path, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"another build"
    return describe_agent(path)


def scheduled_steps(site: HostSite, agents: dict[str, AgentFile]) -> tuple[Step, ...]:
    return plan(desired(site, agents)[0], site.facts(), only_schedule).steps
