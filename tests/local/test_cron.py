"""A host without systemd on this machine checks itself by cron: the line, what it starts, and its end.

Cron itself is scripted here, since the real table belongs to whoever runs the tests: the line is read from
the table and given to a shell, as cron(8) does. tests/hosts/test_cron.py has real ones.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from console.changes import deploy_hosts, remove_hosts
from console.page import write_page
from console.schedule import schedule_asking
from deploy.errors import EditedByHand, ExitCode
from deploy.outcomes import HostOutcome
from deploy.remove import Models
from tests.contract.test_crontab import CRONTAB
from tests.local.conftest import Site

OTHERS = "MAILTO=ann\n17 3 * * *\tbackup 50\\% $HOME  \n"


@pytest.fixture
def table(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The crontab of the user; a process has the name of a cron daemon. Each minute would be a run."""
    tools = site.directory / "cron/bin"
    tools.mkdir(parents=True)
    (tools / "crontab").write_text(CRONTAB)
    (tools / "crontab").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    site.settings["ollama_health_every"] = "1m"
    daemon = tools.parent / "cron"
    sleep = shutil.which("sleep")
    assert sleep is not None
    shutil.copy(sleep, daemon)
    with subprocess.Popen([daemon, "600"]) as process:
        yield tools.parent / "table"
        process.kill()


def deploy(site: Site, *, overwrite: bool = False) -> HostOutcome:
    run = replace(site.run, overwrite=overwrite)
    return deploy_hosts(run, run.hosts(), "deploy")[0]


def run_as_cron(table: Path) -> None:
    """Whatever the table has, once; until all of it has ended."""
    for line in table.read_text().splitlines():
        if "# ollama-fleet: " in line:
            schedule, command = line.split(" * * * * ")
            assert schedule == "*"
            environment = {"PATH": "/usr/bin:/bin", "HOME": os.environ["HOME"]}
            done = subprocess.run(
                ["/bin/sh", "-c", command], env=environment, capture_output=True, check=False
            )
            assert (done.stdout, done.stderr) == (b"", b""), "cron would send a mail"


def history(site: Site) -> list[dict[str, Any]]:
    text = (site.root / "var/lib/ollama-fleet/health/history.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_host_checks_itself_by_cron_and_leaves_nothing_behind(site: Site, table: Path) -> None:
    table.write_text(OTHERS)
    first = deploy(site)
    assert first.error is None
    before, line = table.read_text().rsplit("\n", 2)[:2]
    assert f"{before}\n" == OTHERS
    assert line.endswith(f"# ollama-fleet: {site.root}")
    assert site.plan().is_empty
    assert deploy(site).steps_done == 0
    assert table.read_text() == f"{OTHERS}{line}\n"

    run_as_cron(table)
    health = site.root / "var/lib/ollama-fleet/health"
    report = json.loads((health / "last.json").read_text())
    states = {check["check"]: check["state"] for check in report["checks"]}
    assert [states[name] for name in ("api", "models", "exposure")] == ["pass"] * 3
    assert len(history(site)) == 1
    assert "checks passed in" in (site.root / "var/log/ollama-fleet/health.log").read_text()
    output = site.directory / "fleet.html"
    assert write_page(site.run, output) is ExitCode.DONE
    assert site.events("seen")[-1]["state"] == report["state"]

    # Of two at once the second one leaves.
    with subprocess.Popen(["flock", health / "lock", "cat"], stdin=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        while subprocess.run(["flock", "-n", health / "lock", "true"], check=False).returncode == 0:
            pass
        run_as_cron(table)
        holder.stdin.close()
    assert len(history(site)) == 1

    # A run that finds a fault is red, and the next one comes all the same.
    for process in site.processes():
        process.kill()
        process.wait(10)
    run_as_cron(table)
    run_as_cron(table)
    assert [run["state"] for run in history(site)[1:]] == ["fail", "fail"]

    removed = remove_hosts(site.run, site.run.hosts(), Models.REMOVE)[0]
    assert removed.error is None
    assert table.read_text() == OTHERS
    assert not site.root.exists()
    told = [event["text"] for event in site.events("note")]
    assert any(text.startswith("removed the line in the crontab of ") for text in told)


def test_an_edited_line_is_kept_until_it_is_asked_for_and_off_ends_it(site: Site, table: Path) -> None:
    table.write_text(OTHERS)
    assert deploy(site).error is None
    ours = table.read_text()
    edited = ours.replace("* * * * * /", "#* * * * * /")
    table.write_text(edited)
    refused = deploy(site)
    assert isinstance(refused.error, EditedByHand)
    assert "`crontab of " in refused.error.sentence
    assert table.read_text() == edited
    assert deploy(site, overwrite=True).error is None
    assert table.read_text() == ours
    (kept,) = (site.root / "var/lib/ollama-fleet/backups").iterdir()
    assert kept.read_text() == edited.removeprefix(OTHERS)

    site.settings["ollama_health_every"] = "off"
    assert deploy(site).error is None
    assert table.read_text() == OTHERS
    assert site.plan().is_empty
    assert not (site.root / "usr/local/lib/ollama-fleet/health-cron").exists()


def test_a_user_without_a_table_has_none_after_the_removal(site: Site, table: Path) -> None:
    assert deploy(site).error is None
    assert table.read_text().count("\n") == 1
    assert remove_hosts(site.run, site.run.hosts(), Models.REMOVE)[0].error is None
    assert not table.exists()


def test_a_host_without_cron_is_told_how_it_can_be_checked_and_needs_no_agent(
    site: Site, table: Path
) -> None:
    table.with_name("denied").touch()
    assert deploy(site).error is None
    before = site.files()
    assert schedule_asking(site.run, None, yes=True) is ExitCode.DONE
    assert site.files() == before
    (note,) = site.events("plan")[-1]["notes"]
    assert note.startswith("health: nothing on this host starts the checks, crontab does not let ")
    assert note.endswith("; from here: ./fleet health --every 1m --limit box")
