"""What only a kernel of its own can show: power cuts, limits of memory, filters, its clock, a bad network."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from console.paths import PROJECT
from console.run import transport_for
from deploy.errors import HostLocked, OutOfMemory
from deploy.host_lock import host_lock
from deploy.outcomes import Outcome
from testbed.hosts_tree import PYTHON
from testbed.machine import Machine
from testbed.machine_image import GATEWAY
from testbed.promises import broken_promises, look
from tests.hosts.site import Site, broken, forget_connections, until
from tests.machine.conftest import RELEASES, other, switch_on

DROP_IN = "/etc/systemd/system/ollama.service.d/50-fleet.conf"
LIMIT = "/etc/systemd/system/ollama.service.d/60-memory.conf"
LEASE = "/usr/local/lib/ollama-fleet/lease"
STATE = "/var/lib/ollama-fleet"
DAY_SECONDS = 86400
# Emulated, a server needs half a minute for what takes it a second; 135 s were seen when its core was shared.
SERVES_SECONDS = 180.0
# What an upgrade fetches and unpacks is fetched and unpacked anew.
FORGET = "rm -rf /opt/ollama/releases/{0} /opt/ollama/previous /var/lib/ollama-fleet/artefacts"
# As a process of the unit: the filter is its cgroup's.
CONNECT_AS_SERVER = f"""
echo $$ >/sys/fs/cgroup/system.slice/ollama.service/cgroup.procs
exec {PYTHON} -c 'import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5).close()
except OSError as error:
    print(type(error).__name__)
else:
    print("connected")' "$1" "$2"
"""
CONNECT = CONNECT_AS_SERVER.replace("echo $$ >", ": echo $$ #")


def test_a_power_cut_takes_what_was_not_synced_and_leaves_what_was(machine: Machine) -> None:
    """Or the cuts of the other tests would show nothing: in a container both files are there."""
    done = machine.shell(
        "printf kept >/var/kept; sync /var/kept /var; printf lost >/var/lost; cat /var/kept /var/lost"
    )
    assert done.stdout == "keptlost"
    machine.kill9()
    switch_on(machine)
    assert machine.shell("cat /var/kept; cat /var/lost 2>/dev/null || true").stdout == "kept"


@pytest.mark.fault(6, 7)
@pytest.mark.parametrize("number", range(int(os.environ.get("FLEET_MACHINE_CUTS", "1"))))
def test_a_power_cut_in_any_step_of_an_upgrade_leaves_the_old_release_or_the_new_one(
    site: Site, machine: Machine, number: int
) -> None:
    """`FLEET_MACHINE_CUTS` times, each at another moment; `FLEET_MACHINE_SEED` chooses them again."""
    seed = os.environ.get("FLEET_MACHINE_SEED") or str(time.time_ns())
    chosen = random.Random(f"{seed} {number}")
    site.version = other(site.version)
    site.sh(FORGET.format(site.version))
    step = chosen.randrange(len(site.plan().steps))
    moment = chosen.uniform(0, 2)
    where = cut_in_step(site, machine, step, moment)
    switch_on(machine)
    told = broken_promises(
        machine, serves=RELEASES, new=site.version, deploy=site.ran, within_seconds=SERVES_SECONDS
    )
    journal = machine.shell("journalctl -b --no-pager --lines=40 -u 'ollama*'").stdout if told else ""
    assert told == [], f"cut {moment:.2f} s after the start of {where}; FLEET_MACHINE_SEED={seed}\n{journal}"


def cut_in_step(site: Site, machine: Machine, step: int, moment_seconds: float) -> str:
    """Deploy, and cut the power so long after this step was begun; which one that was."""
    command = [sys.executable, str(PROJECT), "deploy", "--yes", "--json", "--inventory", str(site.write())]
    environment = {**os.environ, "MODELSCOPE_ENDPOINT": site.mirror.url}
    begun: list[str] = []
    forget_connections()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True
    ) as deploy:
        assert deploy.stdout is not None
        said = []
        for line in deploy.stdout:
            said.append(line)
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "step_started":
                begun.append(f"{event['phase']} {event['step']}")
            if len(begun) > step:
                break
        assert len(begun) > step, "".join(said)[-2000:]
        threading.Event().wait(moment_seconds)
        machine.kill9()
        deploy.kill()
    return begun[-1]


@pytest.mark.fault(25)
def test_a_server_that_the_kernel_kills_for_its_memory_is_named_and_the_old_one_serves(site: Site) -> None:
    before = site.version
    export = "python=\nexport OLLAMA_SIMULATED_FAULT=memory=400\n"
    site.add_release("0.17.6", broken(site, "python=\n", export))
    site.sh(f"printf '[Service]\\nMemoryMax=200M\\n' >{LIMIT}; systemctl daemon-reload")
    try:
        site.version = "0.17.6"
        failed = site.deploy()
        assert failed.outcome is Outcome.FAILED
        assert isinstance(failed.error, OutOfMemory), str(failed.error)
        assert "out of memory (OOM)" in failed.error.sentence
        assert "`MemoryMax=209715200` of `ollama.service` (200 MiB)" in str(failed.error.cause)
        assert f"release {before} serves again" in str(failed.error.unchanged)
        assert "Memory cgroup out of memory: Killed process" in site.sh("dmesg")
        until("the old release serves with its model", site.loaded, SERVES_SECONDS)
        assert (site.current(), site.running()) == (before, before)
        site.version = before
        assert site.plan().is_empty
    finally:
        site.sh(f"rm {LIMIT}; systemctl daemon-reload")


def test_the_server_reaches_loopback_and_nothing_else(site: Site) -> None:
    """`IPAddressDeny=any` of our drop-in: in containers it may have no effect."""
    with listening() as port:
        shell = site.host.shell
        assert shell(CONNECT, GATEWAY, str(port)).stdout == "connected\n"
        # A packet that a cgroup's filter drops is lost without a word, and sent again.
        assert shell(CONNECT_AS_SERVER, GATEWAY, str(port)).stdout == "TimeoutError\n"
        assert shell(CONNECT_AS_SERVER, "127.0.0.1", "11434").stdout == "connected\n"


@contextlib.contextmanager
def listening() -> Iterator[int]:
    """A port of this machine's loopback, which the emulated one reaches by the network of qemu."""
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.fault(31)
def test_a_clock_that_leaps_by_a_day_changes_no_lease_no_lock_and_no_deploy(site: Site) -> None:
    desired = site.run.hosts()[0]
    with own_clock(site):
        assert site.sh(f"{LEASE} take {DROP_IN}") == "taken"
        for days in (1, -2):
            leap(site, days)
            assert site.sh("systemctl is-active ollama-fleet-lease.timer") == "active"
            # As a heartbeat of a deploy: what it arms anew must not have run out either.
            assert site.sh(f"{LEASE} renew") == "renewed"
        assert site.sh("systemctl is-active ollama-fleet-lease.timer") == "active"
        assert site.sh(f"{LEASE} end") == "ended"

        site.version = other(site.version)
        # By a connection of its own: a deploy closes the one of a host that it is done with.
        with (
            transport_for(desired).fresh() as another,
            host_lock(another, desired.paths.lock, "a test"),
        ):
            for days in (2, -2):
                leap(site, days)
                refused = site.deploy()
                assert isinstance(refused.error, HostLocked)
                assert re.search(r", (\d+ s|1 min) ago\)$", refused.error.sentence), refused.error.sentence

        # A day back: everything that the host has is younger than its clock.
        changed = site.deploy()
        assert (changed.error, changed.outcome) == (None, Outcome.CHANGED)
        leap(site, 2)
        again = site.deploy()
        assert (again.error, again.outcome) == (None, Outcome.OK)
        assert look(site.host).leases == ()


@contextlib.contextmanager
def own_clock(site: Site) -> Iterator[None]:
    """The machine's clock is set back in the end to what it was, and what has passed since."""
    began, then = time.monotonic(), int(site.sh("date +%s"))
    try:
        yield
    finally:
        site.sh(f"date -s @{then + round(time.monotonic() - began)}")


def leap(site: Site, days: int) -> None:
    site.sh(f'date -s "@$(($(date +%s) + {days * DAY_SECONDS}))"')
