"""Hosts on which systemd does not run the server check themselves by a real cron: Debian's, and busybox's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from console.changes import remove_hosts
from deploy.desired import AgentFile
from deploy.outcomes import Outcome
from deploy.remove import Models
from testbed.hosts_kinds import Kind
from tests.hosts.site import HostSite, until
from tests.hosts.test_health import agents as agents  # noqa: PLC0414 - a fixture of this file too
from tests.hosts.test_health import deploy

MINUTES = 150.0
"""For two runs, a minute apart: a cron starts what it has at the beginning of a minute."""
OTHERS = "# mine\nMAILTO=admin\n17 3 * * *\tbackup 50\\% $HOME `x`  \n"


def without_systemd(site: HostSite, root: str) -> None:
    site.settings.update(ollama_service="process", ollama_root=root, ollama_health_every="1m")


def history(site: HostSite, root: str) -> list[dict[str, Any]]:
    path = f"{root}/var/lib/ollama-fleet/health/history.jsonl"
    return [json.loads(line) for line in site.sh(f"cat {path} 2>/dev/null || true").splitlines()]


def states(site: HostSite, root: str) -> dict[str, str]:
    report = json.loads(site.sh(f"cat {root}/var/lib/ollama-fleet/health/last.json"))
    return {check["check"]: check["state"] for check in report["checks"]}


def test_debians_cron_starts_the_agent_of_a_user_without_root(
    site: HostSite, agents: dict[str, AgentFile]
) -> None:
    root = "/home/admin/fleet"
    without_systemd(site, root)
    site.sh(f"printf '%s' '{OTHERS}' | su admin -c 'crontab -'")
    first = deploy(site, agents)
    assert first.error is None
    assert "no cron daemon runs; from here: ./fleet health --every 1m --limit box" in site.output.getvalue()
    assert site.plan().is_empty
    assert site.sh("crontab -l -u admin") == OTHERS.strip()

    site.sh("systemctl start cron")
    assert site.kinds() == ["WriteFile"] * 3 + ["WriteCrontab"]
    assert deploy(site, agents).error is None
    assert site.plan().is_empty
    assert deploy(site, agents).steps_done == 0
    table = site.sh("crontab -l -u admin")
    assert table.startswith(OTHERS)
    assert table.endswith(f"# ollama-fleet: {root}")
    assert site.sh("crontab -l 2>&1 || true") == "no crontab for root"

    until("two runs by cron", lambda: len(history(site, root)) >= 2, MINUTES)
    found = states(site, root)
    assert [found[name] for name in ("service", "api", "models", "toolcall", "drift")] == ["pass"] * 5
    log = site.sh(f"cat {root}/var/log/ollama-fleet/health.log")
    assert "checks passed in" in log
    assert "the last run was" not in log
    assert site.sh("ls /var/mail /var/spool/mail 2>/dev/null | grep admin || true") == ""

    site.sh("systemctl stop cron")
    removed = remove_hosts(site.run, site.run.hosts(), Models.REMOVE)[0]
    assert removed.error is None
    assert site.sh("crontab -l -u admin") == OTHERS.strip()
    assert site.sh(f"test -e {root} && echo there || echo gone") == "gone"


@pytest.mark.parametrize("host", [Kind.POOR], indirect=True)
def test_cron_of_busybox_starts_what_a_shell_can_check(site: HostSite) -> None:
    root = "/srv/fleet"
    without_systemd(site, root)
    site.sh("ln -sf /bin/busybox /usr/bin/crontab; mkdir -p /var/spool/cron/crontabs; busybox crond")
    site.sh(f"printf '%s' '{OTHERS}' | crontab -")
    first = site.deploy()
    assert (first.error, first.outcome) == (None, Outcome.CHANGED)
    assert "no python3 on this host" in site.output.getvalue()
    assert site.plan().is_empty
    table = site.sh("cat /var/spool/cron/crontabs/root")
    assert table.startswith(OTHERS)

    until("two runs by cron", lambda: len(history(site, root)) >= 2, MINUTES)
    found = states(site, root)
    assert [found[name] for name in ("models", "disk", "exposure")] == ["pass"] * 3
    assert found["toolcall"] == "unknown"

    edited = table.replace("* * * * * /", "*/2 * * * * /")
    site.sh(f"printf '%s\\n' '{edited}' | crontab -")
    assert "edited by hand" in site.plan().steps[0].reason
    site.overwrite = True
    assert site.deploy().error is None
    assert site.sh("cat /var/spool/cron/crontabs/root") == table

    site.settings["ollama_health_every"] = "off"
    assert site.deploy().error is None
    assert site.sh("cat /var/spool/cron/crontabs/root") == OTHERS.strip()
    assert len(history(site, root)) >= 2, "what was found stays"

    # Without any other line the user has no table in the end.
    site.sh("crontab -r")
    site.settings["ollama_health_every"] = "5m"
    assert site.deploy().error is None
    assert "-59/5 * * * * /srv/fleet/" in site.sh("crontab -l")
    assert remove_hosts(site.run, site.run.hosts(), Models.REMOVE)[0].error is None
    assert "No such file" in site.sh("crontab -l 2>&1 || true")
