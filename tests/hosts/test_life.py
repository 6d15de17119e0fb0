"""The life of a host that systemd runs: deployed, drifted, upgraded, cut, rolled back, adopted, removed."""

from __future__ import annotations

import json
import os
import random
import shlex
import subprocess
import sys
import threading
import time

import pytest

from console.changes import remove_hosts
from console.paths import PROJECT
from console.rollback import rollback_asking
from deploy.errors import EditedByHand, ExitCode
from deploy.outcomes import Outcome
from deploy.remove import Models
from deploy.rollback import Asked
from healthchecks.case import load_cases
from testbed.hosts_kinds import Kind
from testbed.hosts_tree import PYTHON
from testbed.official import official_install
from testbed.promises import ADOPTED, broken_promises
from tests.hosts.site import SIMULATED, HostSite, broken, forget_connections, until
from tests.own_modelfiles import all_cases

DROP_IN = "/etc/systemd/system/ollama.service.d/50-fleet.conf"
# What a lease lasts in these tests, so that nobody waits for three minutes.
SHORT_LEASE = "[Timer]\nOnActiveSec=\nOnActiveSec=4s\n"


def traces(site: HostSite) -> list[str]:
    found = site.sh(
        "find / -xdev \\( -path /proc -o -path /sys -o -path /run -o -path /var/log -o -path /tmp"
        " -o -path /var/tmp -o -path /var/lib/systemd -o -path /root -o -path /home \\) -prune -o -print;"
        " cat /etc/passwd /etc/group; systemctl list-unit-files --no-legend | grep -v transient | sort"
    )
    # useradd and userdel keep a copy of the files before; caches of the linker and of systemd are not ours.
    ignored = ("/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-", "/etc/.pwd.lock", "/var/cache")
    return sorted(line for line in found.splitlines() if not line.startswith(ignored))


@pytest.mark.fault(40)
def test_a_host_lives_from_the_first_deploy_to_a_removal_without_a_trace(site: HostSite) -> None:
    before = traces(site)
    first = site.deploy()
    assert (first.error, first.outcome) == (None, Outcome.CHANGED)
    assert site.plan().is_empty
    second = site.deploy()
    assert (second.outcome, second.steps_done) == (Outcome.OK, 0)
    verified = site.sh("systemd-analyze verify /etc/systemd/system/ollama*.service 2>&1 || true")
    assert verified == ""
    assert site.sh("systemctl is-system-running || true") == "running"

    # Drift by hand: found, named, and an edit is kept until told otherwise.
    site.sh(f"sed -i s/RestartSec=3/RestartSec=30/ {DROP_IN}")
    assert any("edited by hand: line is `RestartSec=30`" in step.reason for step in site.plan().steps)
    refused = site.deploy()
    assert isinstance(refused.error, EditedByHand)
    site.overwrite = True
    assert site.deploy().error is None
    assert "RestartSec=30" in site.sh("cat /var/lib/ollama-fleet/backups/*")
    site.overwrite = False
    site.sh("systemctl disable -q ollama")
    assert site.kinds() == ["EnableUnits"]
    site.sh("systemctl stop ollama")
    assert site.kinds() == ["StartServer", "LoadModel", "VerifyModel", "EnableUnits"]
    assert site.deploy().error is None

    # A reboot, and a server that is killed: it serves with the model loaded, and nobody asked it to.
    site.sh("kill -9 $(systemctl show -p MainPID ollama | cut -d= -f2)")
    until("started again with the model loaded", site.loaded)
    forget_connections()
    site.host.kill9()
    site.host.start()
    site.host.wait_for_ssh()
    until("serves after the boot with the model loaded", site.loaded)

    # An upgrade, and back without a download.
    site.add_release("0.17.7")
    site.version = "0.17.7"
    assert site.deploy().error is None
    assert (site.current(), site.running()) == ("0.17.7", "0.17.7")
    began = time.monotonic()
    assert rollback_asking(site.run, Asked(), yes=True) is ExitCode.DONE, site.output.getvalue()[-2000:]
    assert time.monotonic() - began < 60
    assert (site.current(), site.running()) == ("0.17.5", "0.17.5")

    removed = remove_hosts(site.run, site.run.hosts(), Models.REMOVE)[0]
    assert removed.error is None
    assert set(traces(site)) ^ set(before) == set()
    assert remove_hosts(site.run, site.run.hosts(), Models.REMOVE)[0].steps_done == 0


def test_a_removal_takes_the_directories_that_were_made_for_the_store_and_no_other(site: HostSite) -> None:
    site.sh("mkdir -p /data")
    site.settings["ollama_models_dir"] = "/data/made/for/models"
    assert site.deploy().error is None
    assert remove_hosts(site.run, site.run.hosts(), Models.REMOVE)[0].error is None
    assert site.sh("find /data; id -un ollama 2>&1 || true") == "/data\nid: 'ollama': no such user"
    said = len(site.output.getvalue())
    assert remove_hosts(site.run, site.run.hosts(), Models.REMOVE)[0].steps_done == 0
    assert "kept" not in site.output.getvalue()[said:]
    site.sh("mkdir -p /data/made/for/models")
    remove_hosts(site.run, site.run.hosts(), Models.REMOVE)
    assert "kept /data/made/for/models: it may be somebody else's" in site.output.getvalue()[said:]


@pytest.mark.fault(22)
def test_a_release_that_exits_leaves_the_old_one_serving_and_no_lease(site: HostSite) -> None:
    assert site.deploy().error is None
    site.add_release("0.17.6", broken(site, "python=\n", "python=\necho 'panic: broken'; exit 2\n"))
    site.version = "0.17.6"
    failed = site.deploy()
    assert failed.outcome is Outcome.FAILED
    assert failed.error is not None
    assert "panic: broken" in str(failed.error.cause)
    assert "release 0.17.5 serves again" in str(failed.error.unchanged)
    assert (site.current(), site.running()) == ("0.17.5", "0.17.5")
    assert site.sh("ls /var/lib/ollama-fleet | grep -c lease || true") == "0"
    site.version = "0.17.5"
    assert broken_promises(site.host, serves=["0.17.5"], new="0.17.5", deploy=site.ran) == []


@pytest.mark.fault(22)
def test_a_server_that_always_exits_ends_as_failed(site: HostSite) -> None:
    assert site.deploy().error is None
    site.sh(
        "printf '#!/bin/sh\\nexit 1\\n' >/opt/ollama/releases/0.17.5/bin/ollama; systemctl restart ollama"
    )
    until("the unit is failed", lambda: site.sh("systemctl is-failed ollama || true") == "failed", 60)
    # Its binary is not what was unpacked: a deploy mends it.
    assert site.deploy().error is None
    until("the model is loaded", site.loaded)


def test_a_lease_is_renewed_as_often_as_a_busy_deploy_does_and_its_timer_runs_on(site: HostSite) -> None:
    assert site.deploy().error is None
    lease = "/usr/local/lib/ollama-fleet/lease"
    assert site.sh(f"{lease} take {DROP_IN}") == "taken"
    # systemd's own limit is five starts in ten seconds.
    assert site.sh(f"for i in 1 2 3 4 5 6 7 8 9; do {lease} renew || exit 1; done") == "\n".join(
        ["renewed"] * 9
    )
    assert site.sh("systemctl is-active ollama-fleet-lease.timer") == "active"
    assert site.sh(f"{lease} end") == "ended"


def test_the_models_are_loaded_as_often_as_somebody_asks(site: HostSite) -> None:
    assert site.deploy().error is None
    # systemd's own limit is five starts in ten seconds: a few deploys of a fast machine.
    site.sh("for i in 1 2 3 4 5 6 7 8 9; do systemctl start ollama-fleet-load || exit 1; done")
    assert site.sh("systemctl is-active ollama-fleet-load || true") == "inactive"


@pytest.mark.parametrize(
    "end",
    [
        pytest.param("controller", marks=pytest.mark.fault(8)),
        pytest.param("link", marks=pytest.mark.fault(2)),
        pytest.param("reboot", marks=pytest.mark.fault(7)),
    ],
)
def test_a_switch_that_nobody_confirms_is_taken_back_by_the_host(site: HostSite, end: str) -> None:
    assert site.deploy().error is None
    # A drop-in of the operator's own is no drift of ours.
    timer = "/etc/systemd/system/ollama-fleet-lease.timer.d"
    site.sh(f"mkdir -p {timer}; printf '{SHORT_LEASE}' >{timer}/short.conf; systemctl daemon-reload")
    # It takes its time to start, so that the deploy is certainly between switch and verify when it is cut.
    site.add_release("0.17.7", broken(site, "python=\n", "python=\nsleep 3\n"))
    site.version = "0.17.7"
    inventory = site.write()
    limits = ["--limit=box", "--inventory", str(inventory)]
    command = [sys.executable, str(PROJECT), "deploy", "--yes", "--json", *limits]
    environment = {**os.environ, "MODELSCOPE_ENDPOINT": site.mirror.url}
    with (
        (site.directory / "deploy.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environment) as deploy,
    ):
        try:
            until("the switch is made", lambda: site.current() == "0.17.7" or deploy.poll() is not None)
            assert deploy.poll() is None, (site.directory / "deploy.log").read_text()[-2000:]
            forget_connections()
            if end == "link":
                site.host.cut_link()
            deploy.kill()
            deploy.wait(10)
            if end == "reboot":
                site.host.kill9()
                site.host.start()
        finally:
            deploy.kill()
    if end == "link":
        # The holder of the lock lives for a minute without a heartbeat; then the lease runs out.
        until("the old release is back", lambda: site.current() == "0.17.5", 120)
        site.host.mend_link()
    site.host.wait_for_ssh()
    until("the old release is back", lambda: site.current() == "0.17.5")
    until("it serves", lambda: site.running() == "0.17.5")
    until("with its model", site.loaded)
    told = [json.loads(line) for line in site.sh("cat /var/lib/ollama-fleet/journal.jsonl").splitlines()]
    assert [entry["what"] for entry in told][-1] == "revert"
    assert broken_promises(site.host, serves=["0.17.5"], new="0.17.7", deploy=site.ran) == []


@pytest.mark.fault(7)
@pytest.mark.parametrize("number", range(int(os.environ.get("FLEET_HOST_KILLS", "1"))))
def test_a_host_that_loses_power_at_any_moment_of_an_upgrade_serves_old_or_new(
    site: HostSite, number: int
) -> None:
    """`FLEET_HOST_KILLS` times, each at another moment: processes end, the page cache stays."""
    assert site.deploy().error is None
    site.add_release("0.17.7")
    site.version = "0.17.7"
    inventory = site.write()
    command = [
        sys.executable,
        str(PROJECT),
        "deploy",
        "--yes",
        "--soak=0",
        "--json",
        "--limit=box",
        "--inventory",
        str(inventory),
    ]
    environment = {**os.environ, "MODELSCOPE_ENDPOINT": site.mirror.url}
    moment = random.Random(f"{number} {time.time()}").uniform(0.8, 4.0)
    with (
        (site.directory / "deploy.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environment) as deploy,
    ):
        threading.Event().wait(moment)
        site.host.kill9()
        deploy.kill()
    forget_connections()
    site.host.start()
    site.host.wait_for_ssh()
    broken = broken_promises(site.host, serves=["0.17.5", "0.17.7"], new="0.17.7", deploy=site.ran)
    assert broken == [], f"cut at {moment:.2f} s"
    assert site.facts().leftovers == ()


def install_officially(site: HostSite) -> None:
    archive = site.directory / "plain"
    archive.write_text(SIMULATED.read_text().replace("python=\n", f"python='{PYTHON}'\n", 1))
    install = official_install(archive.read_bytes())
    done = subprocess.run(
        [*site.host.ssh_argv(), "sudo", shlex.join(install.argv)], input=install.archive, check=False
    )
    assert done.returncode == 0


def test_an_official_installation_that_did_not_run_is_given_back_so(site: HostSite) -> None:
    install_officially(site)
    site.sh("systemctl disable -q --now ollama")
    assert site.deploy().error is None
    assert site.plan().is_empty
    assert site.sh("systemctl is-enabled ollama; systemctl is-active ollama") == "enabled\nactive"
    assert remove_hosts(site.run, site.run.hosts(), Models.REMOVE)[0].error is None
    state = site.sh("systemctl is-enabled ollama || true; systemctl is-active ollama || true")
    assert state == "disabled\ninactive"
    assert site.sh("ls -d /var/lib/ollama-fleet 2>&1 || true").endswith("No such file or directory")


@pytest.mark.fault(39)
def test_an_official_installation_is_adopted_upgraded_and_given_back(site: HostSite) -> None:
    install_officially(site)
    assert "FetchArchive" not in site.kinds()
    assert site.deploy().error is None
    site.check_converges(ADOPTED)
    unit = site.sh("cat /etc/systemd/system/ollama.service")
    assert "/usr/local/bin/ollama" in site.sh("systemctl show -p ExecStart ollama")
    site.add_release("0.17.7")
    site.version = "0.17.7"
    assert site.deploy().error is None
    site.check_converges("0.17.7")
    assert rollback_asking(site.run, Asked(), yes=True) is ExitCode.DONE
    assert "/usr/local/bin/ollama" in site.sh("systemctl show -p ExecStart ollama")
    assert remove_hosts(site.run, site.run.hosts(), Models.REMOVE)[0].error is None
    assert site.sh("cat /etc/systemd/system/ollama.service") == unit
    assert site.sh("systemctl is-active ollama") == "active"


@pytest.mark.parametrize("host", [Kind.POOR, Kind.PASSWORD, Kind.OLD, Kind.NEW], indirect=True)
def test_hosts_of_every_other_kind_get_the_whole_job_too(
    site: HostSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEET_SUDO_PASSWORD", "practice")
    site.modelfiles = all_cases(site.directory / "whole")
    first = site.deploy()
    assert first.error is None
    assert len(first.verdicts["myqwen2"].cases) == 2 * len(load_cases())
    assert site.plan().is_empty
