"""The rollback lease on real hosts: timer, power cut, lock; with a server that only tells what it is."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.hosts_host import Host
from testbed.hosts_kinds import Kind

TEMPLATES = Path(__file__).parents[2] / "deploy/templates"
UNIT = "/etc/systemd/system/ollama.service"
DROP_IN = "/etc/systemd/system/ollama.service.d/50-fleet.conf"
LEASE = "/usr/local/lib/ollama-fleet/lease"
STATE = "/var/lib/ollama-fleet"
DEADLINE_SECONDS = 30.0

KINDS = pytest.mark.parametrize("host", [Kind.POOR, Kind.OLD], ids=lambda kind: kind.name, indirect=True)

# Every start leaves a line that says which release and which settings the server got.
SERVER = """\
#!/bin/sh
echo "$1 ${SETTING:-none}" >>/var/served
exec sleep 100000
"""
UNIT_TEXT = """\
[Unit]
After=network.target

[Service]
ExecStart=/bin/sh /opt/ollama/current/bin/ollama serve
Restart=always

[Install]
WantedBy=default.target
"""

PUT = 'mkdir -p "$(dirname "$1")"; cat >"$1"; chmod "$2" "$1"'
SWITCH = """
set -eu
printf '[Service]\\nEnvironment=SETTING=new\\n' >/etc/systemd/system/ollama.service.d/50-fleet.conf
ln -s releases/0.18.0 /opt/ollama/.current
mv -T /opt/ollama/.current /opt/ollama/current
systemctl daemon-reload
systemctl restart ollama.service
"""


def run(host: Host, script: str, *arguments: str, stdin: str = "") -> str:
    done = host.shell(script, *arguments, stdin=stdin)
    assert done.returncode == 0, done
    return done.stdout.strip()


def put(host: Host, path: str, content: str, mode: str = "0644") -> None:
    run(host, PUT, path, mode, stdin=content)


def served(host: Host) -> list[str]:
    return run(host, "cat /var/served").splitlines()


def until(host: Host, script: str, expected: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while (seen := host.shell(script).stdout.strip()) != expected:
        if time.monotonic() > deadline:
            log = host.shell("journalctl --no-pager -n 30; systemctl list-timers --all --no-pager").stdout
            raise AssertionError(f"`{script}` says `{seen}`, not `{expected}`:\n{log}")
        time.sleep(0.05)


def until_served(host: Host, *expected: str) -> None:
    until(host, "cat /var/served", "\n".join(expected))


def install_lease(host: Host, runs_out_after: str) -> None:
    put(host, LEASE, (TEMPLATES / "lease.sh").read_text(), "0755")
    for name in ("ollama-fleet-lease.service", "ollama-fleet-lease.timer", "ollama-fleet-boot.service"):
        put(host, f"/etc/systemd/system/{name}", (TEMPLATES / name).read_text())
    put(
        host,
        "/etc/systemd/system/ollama-fleet-lease.timer.d/test.conf",
        f"[Timer]\nOnActiveSec=\nOnActiveSec={runs_out_after}\n",
    )
    run(host, "systemctl daemon-reload; systemctl enable ollama-fleet-boot.service")


def install_old_server(host: Host) -> None:
    for version in ("0.17.5", "0.18.0"):
        program = SERVER.replace("$1", version)
        put(host, f"/opt/ollama/releases/{version}/bin/ollama", program, "0755")
    run(host, "ln -s releases/0.17.5 /opt/ollama/current")
    put(host, UNIT, UNIT_TEXT)
    put(host, DROP_IN, "[Service]\nEnvironment=SETTING=old\n")
    run(host, "systemctl daemon-reload; systemctl enable --now ollama.service")
    until_served(host, "0.17.5 old")


def journal(host: Host) -> list[dict[str, str]]:
    return [json.loads(line) for line in run(host, f"cat {STATE}/journal.jsonl").splitlines()]


@contextlib.contextmanager
def locked(host: Host) -> Iterator[None]:
    """What a deploy holds while it works."""
    run(host, f"mkdir -p {STATE}")
    pid = host.init_pid()
    argv = ["nsenter", f"--target={pid}", "--all", "--", "flock", "-n", f"{STATE}/lock", "sh", "-c"]
    holder = subprocess.Popen(
        [*argv, "echo locked; read -r line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        yield
        holder.stdin.close()
        holder.wait(DEADLINE_SECONDS)


@KINDS
def test_a_lease_that_nobody_renews_brings_the_old_release_back(host: Host) -> None:
    install_lease(host, "2s")
    install_old_server(host)
    assert run(host, f"{LEASE} take {UNIT} {DROP_IN}") == "taken"
    run(host, SWITCH)
    until_served(host, "0.17.5 old", "0.18.0 new", "0.17.5 old")
    until(host, f"ls -d {STATE}/lease*", "")
    assert run(host, "systemctl is-active ollama.service") == "active"
    until(host, "systemctl is-active ollama-fleet-lease.timer", "inactive")
    (line,) = journal(host)
    assert (line["result"], line["cause"]) == ("release 0.17.5 is current again", "the lease ran out")


@KINDS
def test_a_lease_does_not_run_out_while_a_deploy_lives_and_does_once_it_is_dead(host: Host) -> None:
    install_lease(host, "1s")
    install_old_server(host)
    with locked(host):
        assert run(host, f"{LEASE} take {UNIT} {DROP_IN}") == "taken"
        run(host, SWITCH)
        asked = (
            "journalctl -u ollama-fleet-lease.service -o cat | grep -c 'a deploy holds the lock' | tr '2-9' 2"
        )
        until(host, asked, "2")
        assert served(host) == ["0.17.5 old", "0.18.0 new"]
        assert run(host, f"ls -d {STATE}/lease") == f"{STATE}/lease"
    until_served(host, "0.17.5 old", "0.18.0 new", "0.17.5 old")


@pytest.mark.fault(7)
@KINDS
def test_a_host_that_loses_power_after_a_switch_comes_back_with_the_old_release_only(host: Host) -> None:
    install_lease(host, "1h")
    install_old_server(host)
    run(host, f"{LEASE} take {UNIT} {DROP_IN}")
    run(host, SWITCH)
    until_served(host, "0.17.5 old", "0.18.0 new")
    host.kill9()
    host.start()
    host.wait_for_system()
    # Not for a moment was the new one started, and the old one has its own settings.
    until_served(host, "0.17.5 old", "0.18.0 new", "0.17.5 old")
    assert run(host, "systemctl is-active ollama.service") == "active"
    assert "SETTING=old" in run(host, "systemctl show -p Environment ollama.service")
    assert run(host, f"ls {STATE}") == "journal.jsonl\nlock"
    assert journal(host)[-1]["cause"] == "the host was started again before the lease had ended"


@KINDS
def test_a_host_that_had_no_server_loses_power_and_starts_none(host: Host) -> None:
    install_lease(host, "1h")
    run(host, f"{LEASE} take {UNIT} {DROP_IN}")
    install_old_server(host)
    host.kill9()
    host.start()
    host.wait_for_system()
    until(host, f"ls {STATE}", "journal.jsonl\nlock")
    assert served(host) == ["0.17.5 old"]
    assert host.shell("systemctl is-active ollama.service").stdout.strip() in {"inactive", "unknown"}
    assert run(host, "systemctl --failed --no-legend --plain") == ""
    assert (
        run(host, "ls -d /etc/systemd/system/*ollama.service* /opt/ollama/current 2>&1 || :").count("No such")
        == 2
    )


@KINDS
def test_a_lease_that_has_ended_lets_the_new_release_live_through_a_power_cut(host: Host) -> None:
    install_lease(host, "1h")
    install_old_server(host)
    run(host, f"{LEASE} take {UNIT} {DROP_IN}")
    run(host, SWITCH)
    assert run(host, f"{LEASE} end") == "ended"
    host.kill9()
    host.start()
    host.wait_for_system()
    until_served(host, "0.17.5 old", "0.18.0 new", "0.18.0 new")
