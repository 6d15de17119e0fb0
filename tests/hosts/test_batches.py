"""A fleet, of which three hosts do not stand an upgrade: what stops, what goes back, what is untouched."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from console.changes import deploy_asking, deploy_hosts, exit_code
from console.pace import parse_pace
from console.paths import CANARY
from deploy import apply
from deploy.errors import ExitCode
from deploy.plan import everything
from testbed.demo import WEIGHTS_FILE, WEIGHTS_REPO
from testbed.hosts import NEXT_VERSION, PracticeFleet
from testbed.hosts_host import Host
from testbed.hosts_kinds import Kind
from testbed.mirror import MirrorRepo, start_mirror
from testbed.promises import Ran, broken_after_converge, broken_after_fault
from tests.hosts.site import HostSite, broken, forget_connections
from tests.own_modelfiles import core_cases

HOSTS = int(os.environ.get("FLEET_BATCH_HOSTS", "6"))
# All that a deploy may write, with the times of the last changes, and which process the server is.
TRACES = (
    "find /opt/ollama /etc/systemd/system /usr/local/lib/ollama-fleet /var/lib/ollama-fleet"
    " /usr/share/ollama -printf '%p %i %T@ %C@\\n' | sort; systemctl show -P MainPID ollama;"
    " cat /var/lib/ollama-fleet/journal.jsonl"
)
# An operator's own drop-in, which only the old release gets along with.
DROP_IN = """
mkdir -p /etc/systemd/system/ollama.service.d
printf '[Service]\\nExecStartPre=/bin/sh -c "[ $(readlink /opt/ollama/current) = releases/0.17.5 ]"\\n' \
    >/etc/systemd/system/ollama.service.d/40-operator.conf
systemctl daemon-reload
"""
OPERATORS = "/etc/systemd/system/ollama.service.d/40-operator.conf"
MODELS = ("canary:latest",)
TEXT_CALLS = "python=\nif [ -e /etc/answers-text ]; then export OLLAMA_SIMULATED_FAULT=text-calls; fi\n"


@dataclass(kw_only=True)
class FleetSite(HostSite):
    """Several practice hosts under one inventory, named `h0`, `h1` and so on."""

    hosts: list[Host]

    def write(self) -> Path:
        inventory = super().write()
        lines = [
            f"h{number} ansible_host={host.address} ansible_user={host.user}"
            for number, host in enumerate(self.hosts)
        ]
        text = inventory.read_text()
        (box,) = [line for line in text.splitlines() if line.startswith("box ")]
        inventory.write_text(text.replace(box, "\n".join(lines)))
        return inventory

    def on_all(self, script: str) -> list[str]:
        def one(host: Host) -> str:
            done = host.shell(script)
            assert done.returncode == 0, done.stderr
            return done.stdout

        with ThreadPoolExecutor(HOSTS) as pool:
            return list(pool.map(one, self.hosts))

    def events(self, name: str) -> list[dict[str, Any]]:
        found = map(json.loads, self.output.getvalue().splitlines())
        return [event for event in found if event["event"] == name]


@pytest.fixture
def many(fleet: PracticeFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FleetSite]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights = MirrorRepo(repo=WEIGHTS_REPO, revisions={"master": {WEIGHTS_FILE: CANARY}})
    hosts: list[Host] = []
    try:
        with start_mirror([weights]) as mirror:
            hosts += [fleet.add(Kind.RICH) for _ in range(HOSTS)]
            made = FleetSite(
                host=hosts[0], hosts=hosts, directory=tmp_path, mirror=mirror, modelfiles=core_cases(tmp_path)
            )
            made.settings["ollama_models"] = "canary"
            made.add_release("0.17.5")
            for host in hosts:
                host.wait_for_ssh()
            yield made
    finally:
        forget_connections()
        for host in hosts:
            fleet.remove(host)


@pytest.mark.fault(44)
def test_three_hosts_fail_in_different_ways_and_the_rest_is_never_touched(
    many: FleetSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = replace(many.run, forks=HOSTS)
    assert deploy_asking(first, "deploy", everything, yes=True, verify=False) is ExitCode.DONE
    crashes, text, dies = many.hosts[1:4]
    assert crashes.shell(DROP_IN).returncode == 0
    assert text.shell("touch /etc/answers-text").returncode == 0
    many.add_release(NEXT_VERSION, broken(many, "python=\n", TEXT_CALLS))
    many.version = NEXT_VERSION
    emit = apply.Site.emit

    def die_when_watched(self: apply.Site, event: str, **fields: object) -> None:
        emit(self, event, **fields)
        if (self.host, event) == ("h3", "soak"):
            assert dies.shell("kill -9 $(systemctl show -P MainPID ollama)").returncode == 0

    monkeypatch.setattr(apply.Site, "emit", die_when_watched)
    before = many.on_all(TRACES)
    many.output.seek(0)
    many.output.truncate()

    junit = many.directory / "deploy.xml"
    run = replace(many.run, forks=HOSTS, soak_seconds=2.0, pace=parse_pace("1,4,100%", "2"))
    code = deploy_asking(run, "deploy", everything, yes=True, verify=False, junit=junit)

    assert code is ExitCode.FAILED
    outcomes = {event["host"]: event["outcome"] for event in many.events("host_done")}
    failed, changed = ["h1", "h2", "h3"], ["h0", "h4"]
    untouched = [f"h{number}" for number in range(5, HOSTS)]
    expected = dict.fromkeys(failed, "failed") | dict.fromkeys(changed, "changed")
    assert outcomes == expected | dict.fromkeys(untouched, "skipped")
    said = {event["host"]: event["sentence"] for event in many.events("error")}
    assert said["h1"] == "`ollama.service` could not be started"
    assert said["h2"] == "`canary:latest` did not pass verification"
    assert said["h3"].startswith(f"the server of release `{NEXT_VERSION}` ended ")
    assert {event["unchanged"] for event in many.events("error")} == {
        "release 0.17.5 serves again, as before"
    }
    batches = [(event["number"], event["hosts"]) for event in many.events("batch_started")]
    assert batches == [(1, ["h0"]), (2, ["h1", "h2", "h3", "h4"])]
    (stop,) = many.events("rollout_stopped")
    assert (stop["batch"], stop["of"], stop["reason"]) == (3, 3, "3 failed, at most 2")

    # Seen on the hosts themselves.
    releases = [line.strip() for line in many.on_all("readlink /opt/ollama/current")]
    new = {0, 4}
    assert releases == [
        f"releases/{NEXT_VERSION}" if number in new else "releases/0.17.5" for number in range(HOSTS)
    ]
    answers = many.on_all(
        "/opt/ollama/current/bin/ollama --version; ls -d /var/lib/ollama-fleet/lease 2>/dev/null || :;"
        " systemctl is-active ollama"
    )
    for number, answer in enumerate(answers):
        assert (NEXT_VERSION if number in new else "0.17.5") in answer
        assert "/lease" not in answer
        assert answer.split()[-1] == "active"
    assert many.on_all(TRACES)[5:] == before[5:]
    for number, host in enumerate(many.hosts):
        serves = NEXT_VERSION if number in new else "0.17.5"
        assert broken_after_fault(host, serves=[serves], models=MODELS) == []

    # The recap is of the same outcomes as the summary: both are compared with JUnit.
    root = ET.fromstring(junit.read_bytes())
    tags = {case.get("name"): [child.tag for child in case] for case in root.iter("testcase")}
    assert tags == {
        **{name: ["failure"] for name in failed},
        **{name: [] for name in changed},
        **{name: ["skipped"] for name in untouched},
    }
    (summary,) = many.events("summary")
    counts = Counter(outcomes.values())
    assert {name: summary[name] for name in ("changed", "failed", "skipped")} == counts
    assert (summary["hosts"], summary["ok"], summary["unreachable"]) == (HOSTS, 0, 0)
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == (str(HOSTS), "3", "0")

    # Once the causes are gone the next deploy brings all of them there, and the one after it changes none.
    monkeypatch.setattr(apply.Site, "emit", emit)
    assert crashes.shell(f"rm {OPERATORS}; systemctl daemon-reload").returncode == 0
    assert text.shell("rm /etc/answers-text").returncode == 0

    def deploy() -> Ran:
        run = replace(many.run, forks=HOSTS)
        ended = deploy_hosts(run, run.hosts(), "deploy")
        return Ran(exit_code=exit_code(ended), changed=sum(outcome.steps_done for outcome in ended))

    ends = deploy(), deploy()
    for host in many.hosts:
        once = iter(ends).__next__
        assert broken_after_converge(host, new=NEXT_VERSION, deploy=once, models=MODELS) == []
