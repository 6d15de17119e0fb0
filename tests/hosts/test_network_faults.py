"""What a network, a login and a controller can do to a deploy, on one host: cut, lost, killed, refused."""

from __future__ import annotations

import io
import ipaddress
import os
import random
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from console.changes import Planned, make_plans
from console.run import Run, make_sources
from deploy.errors import ExitCode, FleetError
from deploy.report import Report
from deploy.sudo import VARIABLE
from testbed.hosts import PracticeFleet
from testbed.hosts_host import Host
from testbed.hosts_kinds import Kind
from testbed.hosts_network import dropping, shaping
from testbed.link_proxy import Link, start_link_proxy
from testbed.mirror import start_mirror
from testbed.promises import broken_after_fault, footprint, look
from tests.hosts.fault_site import SHORT_LEASE, WAITS, Ended, FaultSite
from tests.hosts.site import forget_connections, until, untouched

WEIGHTS_MEGABYTES = 4
# That a transfer goes on and does not begin anew is seen by its bytes; a deploy of weights needs few others.
OVERHEAD_BYTES = 1_500_000


@pytest.fixture(scope="module")
def shared(
    fleet: PracticeFleet, bystander: Host, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FaultSite]:
    """One host for the whole file: every test ends with all promises kept, on one release or the other."""
    directory = tmp_path_factory.mktemp("network")
    (directory / "home").mkdir()
    with pytest.MonkeyPatch.context() as patch, start_mirror([]) as mirror:
        patch.setenv("HOME", str(directory / "home"))
        patch.setenv("XDG_CACHE_HOME", str(directory / "cache"))
        hosts = {"box": fleet.add(Kind.RICH)}
        made = FaultSite(hosts=hosts, others=[bystander], directory=directory, mirror=mirror)
        made.add_releases()
        made.offer_weights()
        try:
            made.box.wait_for_ssh()
            with untouched(bystander):
                yield made
        finally:
            fleet.remove(made.box)


@pytest.fixture
def site(shared: FaultSite, fleet: PracticeFleet) -> FaultSite:
    """`site.version` serves; `site.other` is the release to deploy."""
    shared.settings, shared.address, shared.environment = {}, {}, {}
    shared.box.shell(f"rm -f {WAITS}")
    if look(shared.box).release != shared.version and shared.deploy("--overwrite").exit_code != 0:
        # What a test that failed has left is not the next one's.
        fleet.remove(shared.box)
        shared.hosts["box"] = fleet.add(Kind.RICH)
        shared.box.wait_for_ssh()
        assert shared.deploy().exit_code == 0
    assert shared.box.shell(SHORT_LEASE).returncode == 0
    return shared


def upgrade_stopped(site: FaultSite, stop: str) -> Ended:
    """Deploy the other release; between its switch and its proof this script runs on the host."""
    site.version = site.other
    assert site.box.shell(f"touch {WAITS}").returncode == 0
    with site.running("deploy", "--yes") as running:
        running.until("step_started", "StartServer")
        running.until_true("the switch", lambda: look(site.box).release == site.version)
        site.box.shell(f"rm {WAITS}; {stop}")
        return running.end()


# The cable.


@pytest.mark.fault(1)
def test_a_cable_that_is_plugged_in_again_costs_nothing_but_the_time(site: FaultSite) -> None:
    site.offer_weights(WEIGHTS_MEGABYTES)
    with ExitStack() as stack:
        stack.enter_context(shaping(site.box.link, 8_000))
        running = stack.enter_context(site.running("deploy", "--yes"))
        running.until_true("a part is there", lambda: look(site.box).parts != ())
        site.box.cut_link()
        stack.callback(site.box.mend_link)
        began = time.monotonic()
        running.until_true("three seconds have passed", lambda: time.monotonic() - began > 3)
        assert len(look(site.box).parts) == 1
        site.box.mend_link()
        ended = running.end()
    assert (ended.exit_code, ended.outcome("box")) == (0, "changed"), ended.stderr
    assert site.broken(site.version, new=site.version) == []
    assert_store_is_whole(site)


def assert_store_is_whole(site: FaultSite) -> None:
    """Every blob has the sha256 that is its name."""
    blobs = site.box.shell("cd /usr/share/ollama/.ollama/models/blobs && sha256sum sha256-*").stdout
    sums = [line.split() for line in blobs.splitlines()]
    assert sums
    assert [name for digest, name in sums if name != f"sha256-{digest}"] == []


@pytest.mark.fault(1)
def test_a_copy_that_was_cut_goes_on_with_its_part(site: FaultSite) -> None:
    site.offer_weights(WEIGHTS_MEGABYTES)
    with start_link_proxy((site.box.address, 22), Link(cut_after_bytes=3_500_000)) as proxy:
        site.address["box"] = ("127.0.0.1", proxy.port)
        failed = site.deploy()
        assert failed.exit_code == ExitCode.UNREACHABLE, failed.stderr
        assert "was cut" in failed.error("box")["sentence"]
        assert broken_after_fault(site.box, serves=[site.version]) == []
        (part,) = look(site.box).parts
        there = int(site.box.shell(f"stat -c %s {part}").stdout)
        before = proxy.sent_bytes
        assert site.deploy().exit_code == 0
        whole = WEIGHTS_MEGABYTES * 1_000_000
        assert there > 1_000_000
        assert proxy.sent_bytes - before < whole - there + OVERHEAD_BYTES + 2_000_000
    site.address.clear()
    assert site.broken(site.version, new=site.version) == []
    assert_store_is_whole(site)


@pytest.mark.fault(4)
def test_a_slow_link_that_loses_packets_is_only_slow(site: FaultSite) -> None:
    old, site.version = site.version, site.other
    host = site.box
    with (
        start_link_proxy((host.address, 22), Link(delay_seconds=0.04)) as proxy,
        dropping(host.address, 5),
        shaping(host.link, 2_000),
    ):
        site.address["box"] = ("127.0.0.1", proxy.port)
        ended = site.fleet("install", "--yes")
    assert ended.exit_code == 0, ended.stderr
    site.address.clear()
    assert site.broken(old, new=site.version) == []


@pytest.mark.fault(5)
def test_a_deploy_whose_session_is_killed_reconnects_to_go_back_and_fails(site: FaultSite) -> None:
    old = site.version
    ended = upgrade_stopped(site, "pkill -9 -f '^sshd: admin'")
    assert ended.exit_code in (ExitCode.UNREACHABLE, ExitCode.LOCKED), ended.stderr
    assert site.broken(old, site.version, new=site.version) == []


@pytest.mark.fault(6)
def test_a_host_that_reboots_between_switch_and_proof_is_back_on_the_old_release(site: FaultSite) -> None:
    old = site.version
    ended = upgrade_stopped(site, "systemctl reboot")
    assert ended.exit_code == ExitCode.UNREACHABLE, ended.stderr
    site.box.wait_for_ssh()
    assert broken_after_fault(site.box, serves=[old]) == []
    assert site.broken(old, new=site.version) == []


# The controller.


@pytest.mark.fault(8)
@pytest.mark.parametrize("number", range(int(os.environ.get("FLEET_HOST_KILLS", "1"))))
def test_a_controller_that_is_killed_at_any_moment_leaves_old_or_new(site: FaultSite, number: int) -> None:
    old, site.version = site.version, site.other
    moment = random.uniform(0.5, 8.0)
    with site.start("deploy", "--yes") as deploy:
        try:
            deploy.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            deploy.kill()
            deploy.communicate()
    status = site.fleet("status")
    assert status.exit_code == 0, (moment, status.stderr)
    assert status.of("box", "status")[0]["release"] in (old, site.version), moment
    assert site.broken(old, site.version, new=site.version) == [], f"killed after {moment:.2f} s"


@pytest.mark.fault(33)
def test_the_lock_of_a_controller_that_was_killed_is_taken_over_and_told(site: FaultSite) -> None:
    old, site.version = site.version, site.other
    # As long as in earnest: a lease that runs out takes the lock over itself.
    long_lease = "rm -r /etc/systemd/system/ollama-fleet-lease.timer.d; systemctl daemon-reload"
    assert site.box.shell(f"{long_lease}; touch {WAITS}").returncode == 0
    with site.running("deploy", "--yes") as running:
        running.until("step_started", "StartServer")
        pid = running.process.pid
    site.box.shell(f"rm {WAITS}")
    until("the lock is free", lambda: look(site.box).lock == "")
    again = site.deploy()
    assert again.exit_code == 0, again.stderr
    assert re.search(rf"took over the lock of .*\(pid {pid}, deploy, ", again.notes)
    assert site.broken(old, site.version, new=site.version) == []


@pytest.mark.fault(9)
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_finishes_the_step_and_twice_stops_at_once(site: FaultSite, times: int) -> None:
    old, site.version = site.version, site.other
    assert site.box.shell(f"touch {WAITS}").returncode == 0
    with site.running("deploy", "--yes") as running:
        running.until("step_started", "StartServer")
        running.interrupt()
        if times == 2:
            running.process.send_signal(signal.SIGINT)
            running.process.wait(60)
        site.box.shell(f"rm {WAITS}")
        ended = running.end()
    assert ended.exit_code == ExitCode.INTERRUPTED, ended.stderr
    assert ended.events[-1][1]["event"] == "summary"
    finished = [told["step"] for told in ended.of("box", "step_done")]
    assert ("StartServer" in finished) is (times == 1)
    serves = [old] if times == 1 else [old, site.version]
    assert broken_after_fault(site.box, serves=serves) == []
    assert site.broken(*serves, new=site.version) == []


# The login.

SUDOERS = "/etc/sudoers.d/admin"
SUDO_THAT_REFUSES = {
    "nobody knows the user": (f"echo 'root ALL=(ALL) ALL' >{SUDOERS}", "practice"),
    "the password is wrong": (f"echo 'admin ALL=(ALL) ALL' >{SUDOERS}", "wrong"),
    "there is no password": (f"echo 'admin ALL=(ALL) ALL' >{SUDOERS}", ""),
    "it wants a terminal": (f"echo 'Defaults requiretty' >>{SUDOERS}", "practice"),
}


@pytest.mark.fault(34)
@pytest.mark.parametrize(("by_hand", "password"), SUDO_THAT_REFUSES.values(), ids=SUDO_THAT_REFUSES)
def test_a_sudo_that_refuses_ends_the_deploy_before_anything_is_changed(
    site: FaultSite, by_hand: str, password: str
) -> None:
    old, before = site.version, footprint(site.box)
    site.version, site.environment = site.other, {VARIABLE: password}
    kept = site.box.shell(f"cat {SUDOERS}").stdout
    assert site.box.shell(by_hand).returncode == 0
    try:
        ended = site.deploy()
    finally:
        site.box.shell(f"cat >{SUDOERS}", stdin=kept)
    assert ended.exit_code == ExitCode.FAILED, ended.stderr
    assert "`sudo` on `box`" in ended.error("box")["sentence"]
    assert ended.error("box")["unchanged"] == "everything"
    assert footprint(site.box) == before
    site.environment = {}
    assert site.broken(old, new=old) == []


@pytest.mark.fault(36)
def test_a_host_whose_key_has_changed_is_refused_with_both_fingerprints(site: FaultSite) -> None:
    before, key = footprint(site.box), "/etc/ssh/ssh_host_ed25519_key"
    site.box.shell(
        f"mkdir /root/kept; cp -p {key}* /root/kept; rm {key}*; ssh-keygen -q -t ed25519 -N '' -f {key}"
    )
    try:
        site.box.shell("systemctl restart ssh")
        ended = site.deploy()
    finally:
        site.box.shell("mv -f /root/kept/* /etc/ssh; rmdir /root/kept; systemctl restart ssh")
        site.box.wait_for_ssh()
    assert ended.exit_code == ExitCode.UNREACHABLE, ended.stderr
    error = ended.error("box")
    assert "has changed" in error["sentence"]
    fingerprints = {error["expected"], error["actual"]}
    assert len(fingerprints) == 2
    assert all("SHA256:" in fingerprint for fingerprint in fingerprints)
    assert footprint(site.box) == before
    assert site.broken(site.version, new=site.version) == []


@pytest.mark.fault(48)
@pytest.mark.parametrize(("noise", "code"), [("echo welcome", 2), ("echo welcome >&2", 0)])
def test_a_startup_file_that_prints_corrupts_nothing(site: FaultSite, noise: str, code: int) -> None:
    """On standard output it cannot be told from a reply, and is refused; the other one is nobody's reply."""
    old, before = site.version, footprint(site.box)
    site.version = site.other
    file = "/home/admin/.bashrc"
    kept = site.box.shell(f"cat {file}").stdout
    site.box.shell(
        f"cat - {file} >{file}.new && mv {file}.new {file}; chown admin: {file}", stdin=f"{noise}\n"
    )
    try:
        ended = site.deploy()
    finally:
        site.box.shell(f"cat >{file}", stdin=kept)
    assert ended.exit_code == code, ended.stderr
    if code == 0:
        assert site.broken(site.version, new=site.version) == []
        return
    error = ended.error("box")
    assert "the login shell on `box` does not do what it is told" in error["sentence"]
    assert "welcome" in error["cause"]
    assert footprint(site.box) == before
    assert site.broken(old, new=old) == []


# The inventory.

CANARY_FILE = "/tmp/pwned-by-an-inventory"
# Without a blank, so that it passes for one word.
RUN = f"touch${{IFS}}{CANARY_FILE}"
HOSTILE = (
    f"$({RUN})",
    f"`{RUN}`",
    f";{RUN};",
    f"';{RUN};'",
    f'";{RUN};"',
    f"a\n{RUN}",
    f"-oProxyCommand={RUN}",
    "../../../../etc/passwd",
    "\u202eetc/passwd\u202c",
    "🦙🦙",
    "x" * 4096,
    "%h%n{{7*7}}",
)
LINES = {
    "a name": "{}",
    "an address": "box ansible_host={}",
    "a user": "box ansible_host=ADDRESS ansible_user={}",
    "a port": "box ansible_host=ADDRESS ansible_port={}",
    "a key": "box ansible_host=ADDRESS ansible_ssh_private_key_file={}",
    "a release": "box ansible_host=ADDRESS ollama_version={}",
    "a model": "box ansible_host=ADDRESS ollama_models={}",
    "a store": "box ansible_host=ADDRESS ollama_models_dir=/{}",
    "a root": "box ansible_host=ADDRESS ollama_root=/{}",
    "a setting": "box ansible_host=ADDRESS ollama_keep_alive={}",
    "a word of their own": "box ansible_host=ADDRESS theirs={}",
}
getaddrinfo = socket.getaddrinfo


def addresses_only(host: str, *rest: object, **more: object) -> object:
    """No name of theirs is looked up at anybody's name server."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise socket.gaierror(socket.EAI_NONAME, "nobody knows it") from None
    return getaddrinfo(host, *rest, **more)  # type: ignore[arg-type]


def plan_for(site: FaultSite, host: str) -> list[Planned]:
    """What a plan makes of this line of an inventory; empty where it is refused before anybody is asked."""
    inventory = site.write()
    head, _, settings = inventory.read_text().partition("[all:vars]")
    assert "box " in head
    inventory.write_text(f"[all]\n{host}\n\n[all:vars]\nansible_user=admin{settings}")
    run = Run(
        report=Report(as_json=True, stdout=io.StringIO(), stderr=io.StringIO()),
        sources=make_sources(str(inventory), None),
        limit=None,
        forks=1,
        stop_requested=threading.Event(),
        endpoint=site.mirror.url,
    )
    try:
        hosts = run.hosts()
    except FleetError:
        return []
    return list(make_plans(run, hosts))


@pytest.mark.fault(37)
@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_hostile_inventory_is_refused_or_taken_literally_and_runs_nothing(
    site: FaultSite, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = footprint(site.box)
    monkeypatch.setattr("socket.getaddrinfo", addresses_only)
    for value in HOSTILE:
        plans = plan_for(site, line.format(value).replace("ADDRESS", site.box.address))
        forget_connections()
        # Taken literally it is a host that cannot be reached, or a plan that says what it read.
        assert all(planned.error is not None or planned.plan is not None for planned in plans), value
        assert not Path(CANARY_FILE).exists(), value
    assert site.box.shell(f"find / -xdev -name '{Path(CANARY_FILE).name}' -not -path '/proc/*'").stdout == ""
    assert footprint(site.box) == before


@pytest.mark.fault(37, 38)
def test_a_deploy_under_the_c_locale_brings_unicode_and_shell_to_a_host_as_they_are(site: FaultSite) -> None:
    """Host and store have names with everything in them; what is made there has exactly these names."""
    old, name = site.version, "büro-模型-🦙"
    store = f"/srv/modèles 模型 $(touch {CANARY_FILE}) ; 🦙"
    host = site.hosts.pop("box")
    site.hosts[name] = host
    site.settings = {"ollama_models_dir": store}
    site.environment = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    try:
        ended = site.deploy()
        assert (ended.exit_code, ended.outcome(name)) == (0, "changed"), ended.stderr
        assert host.shell('ls "$1/blobs"', store).stdout.count("sha256-") > 0
        assert broken_after_fault(host, serves=[old]) == []
        third = site.deploy()
        assert (third.exit_code, third.outcome(name)) == (0, "ok"), third.stderr
    finally:
        site.hosts["box"] = site.hosts.pop(name)
    assert host.shell(f"ls {CANARY_FILE}").stdout == ""
    assert not Path(CANARY_FILE).exists()
    site.settings, site.environment = {}, {}
    assert site.broken(old, new=old) == []
