"""What keeps a host from going forward or back: a taken port, other hands, two broken releases."""

from __future__ import annotations

from dataclasses import replace

import pytest

from console.changes import deploy_hosts, show_plans
from console.rollback import rollback_asking
from deploy.errors import EditedByHand, ExitCode, PortTaken
from deploy.rollback import Asked
from testbed.hosts_tree import PYTHON
from testbed.promises import footprint
from tests.hosts.site import HostSite, broken, until

UNITS = "/etc/systemd/system"
EDITED = (f"{UNITS}/ollama.service", f"{UNITS}/ollama.service.d/50-fleet.conf")


def main_pid(site: HostSite, unit: str = "ollama") -> str:
    return site.sh(f"systemctl show -P MainPID {unit}")


def squat(site: HostSite, port: int) -> str:
    """Somebody else listens there; returns the pid."""
    site.sh(f"systemd-run -q --unit=squatter {PYTHON} -m http.server --bind 127.0.0.1 {port}")
    listens = f"grep -q ':{port:04X} 00000000:0000 0A' /proc/net/tcp && echo yes || true"
    until("it listens", lambda: site.sh(listens) == "yes")
    return main_pid(site, "squatter")


@pytest.mark.fault(21)
def test_a_taken_port_names_its_holder_and_neither_is_touched(serving: HostSite) -> None:
    server = main_pid(serving)
    other = squat(serving, 11500)
    serving.settings["ollama_host"] = "127.0.0.1:11500"
    before = footprint(serving.host)
    error = serving.deploy().error
    assert isinstance(error, PortTaken)
    assert f"port `11500` is taken by pid {other}" in error.sentence
    assert (footprint(serving.host), main_pid(serving), main_pid(serving, "squatter")) == (
        before,
        server,
        other,
    )
    serving.check_serves(serving.version)
    serving.sh("systemctl stop squatter")

    del serving.settings["ollama_host"]
    serving.sh("systemctl stop ollama")
    other = squat(serving, 11434)
    error = serving.deploy().error
    assert isinstance(error, PortTaken)
    assert f"port `11434` is taken by pid {other}" in error.sentence
    assert (main_pid(serving), main_pid(serving, "squatter")) == ("0", other)
    serving.sh("systemctl stop squatter")
    serving.check_converges(serving.version)


@pytest.mark.fault(40)
@pytest.mark.parametrize("path", EDITED)
def test_a_file_that_was_edited_by_hand_is_drift_and_kept_until_told_otherwise(
    serving: HostSite, path: str
) -> None:
    server = main_pid(serving)
    serving.sh(f"sed -i s/^Restart=.*/Restart=no/ {path}; printf '# by hand\\n' >>{path}")
    edited = serving.sh(f"cat {path}")
    assert show_plans(serving.run, drift_code=True) is ExitCode.DRIFT
    refused = serving.deploy()
    assert isinstance(refused.error, EditedByHand)
    assert f"`{path}` was edited by hand" in refused.error.sentence
    assert "--overwrite" in str(refused.error.hint)
    assert (serving.sh(f"cat {path}"), main_pid(serving)) == (edited, server)
    serving.check_serves(serving.version)
    serving.overwrite = True
    serving.check_converges(serving.version)
    assert serving.sh(f"cat {path}") != edited
    name = path.rpartition("/")[2]
    kept = serving.sh(f"cat $(ls -t /var/lib/ollama-fleet/backups/{name}.* | head -n 1)")
    assert kept == edited
    assert show_plans(serving.run, drift_code=True) is ExitCode.DONE


@pytest.mark.fault(42)
def test_a_rollback_to_a_release_that_was_removed_is_refused_before_anything_stops(serving: HostSite) -> None:
    old, new = serving.version, serving.want_new_release()
    assert serving.deploy().error is None
    server = main_pid(serving)
    serving.sh(f"rm -r /opt/ollama/releases/{old}")
    assert rollback_asking(serving.run, Asked(), yes=True) is ExitCode.FAILED
    told = serving.output.getvalue().splitlines()
    assert any(f"release `{old}` is no longer on the host" in line for line in told)
    assert main_pid(serving) == server
    serving.check_serves(new)
    serving.check_converges(new)


def test_a_way_back_that_was_taken_and_failed_is_not_told_as_one_to_come(serving: HostSite) -> None:
    old, new = serving.version, serving.want_new_release()
    drop_in = f"{UNITS}/ollama.service.d/40-broken.conf"
    serving.sh(f"printf '[Service]\\nExecStartPre=/bin/false\\n' >{drop_in}; systemctl daemon-reload")
    failed = serving.deploy().error
    assert failed is not None
    told = str(failed.unchanged)
    assert "going back failed too: the `lease` could not bring back what served before" in told
    assert f"release {old} is current again, but ollama.service does not start" in told
    assert "journalctl -u ollama.service" in told
    assert "by itself" not in told
    assert serving.sh("systemctl is-active ollama-fleet-lease.timer || :") == "inactive"
    serving.sh(f"rm {drop_in}; systemctl daemon-reload")
    serving.check_converges(new)


DIES_LATER = """python=
if [ "$1" = serve ]; then (sleep 10; kill -9 $$) & fi
"""


@pytest.mark.fault(23)
def test_a_server_that_dies_ten_seconds_after_its_start_is_taken_back(serving: HostSite) -> None:
    old = serving.version
    serving.want_new_release(broken(serving, "python=\n", DIES_LATER))
    run = replace(serving.run, soak_seconds=15.0)
    (failed,) = deploy_hosts(run, run.hosts(), "deploy")
    # Where the suite takes longer than ten seconds it is the suite that meets the dead server.
    assert failed.error is not None
    assert f"release {old} serves again" in str(failed.error.unchanged)
    serving.check_serves(old)
    serving.check_converges(serving.want_new_release())


# The server of such a release ends at once, from the moment on when the file is there.
FLAWED = """python=
if [ "$1" = serve ] && [ -e /run/broken ]; then echo 'panic: broken'; exit 2; fi
"""


@pytest.mark.fault(43)
def test_a_rollback_to_a_release_as_broken_as_the_current_one_stops_and_says_so(serving: HostSite) -> None:
    flawed = broken(serving, "python=\n", FLAWED)
    serving.want_new_release(flawed)
    assert serving.deploy().error is None
    new = serving.want_new_release(flawed)
    assert serving.deploy().error is None
    serving.sh("touch /run/broken")
    try:
        assert rollback_asking(serving.run, Asked(), yes=True) is ExitCode.FAILED
        told = serving.output.getvalue().splitlines()
        error = next(line for line in reversed(told) if '"event": "error"' in line)
        assert "panic: broken" in error
        # Nobody reads that the host mends itself: it cannot.
        assert "going back failed too" in error
        assert "by itself" not in error
        # One way there, one way back, and systemd's own limit of starts: then it is at rest.
        until("the unit is at rest", lambda: serving.sh("systemctl is-failed ollama || :") == "failed", 60)
        assert serving.current() == new
        assert serving.sh("systemctl is-active ollama-fleet-lease.timer || :") == "inactive"
    finally:
        serving.sh("rm /run/broken")
    serving.check_converges(new)
