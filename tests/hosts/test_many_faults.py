"""One deploy to six hosts, each with a fault of its own: what waits for a silent network waits together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from deploy.errors import ExitCode
from deploy.ssh import STALL_SECONDS
from deploy.ssh_connection import CONNECT_SECONDS, KEEPALIVE_SECONDS, SILENCE_MILLISECONDS
from testbed.hosts import PracticeFleet
from testbed.hosts_kinds import Kind
from testbed.hosts_network import dropping, shaping
from testbed.link_proxy import Link, start_link_proxy
from testbed.mirror import start_mirror
from testbed.promises import broken_after_fault, look
from tests.hosts.fault_site import NEW, OLD, SHORT_LEASE, WAITS, Ended, FaultSite
from tests.hosts.site import untouched

NAMES = ("cut", "hole", "stalled", "expired", "off", "fine")
WEIGHTS_MEGABYTES = 4
STALL_AFTER_BYTES = 3_000_000
KILOBITS_PER_SECOND = 1000
# What is given up after this long is followed by two tries to connect, to go back and to tell the journal.
GIVEN_UP_SECONDS = KEEPALIVE_SECONDS + SILENCE_MILLISECONDS / 1000
assert GIVEN_UP_SECONDS <= 60
BUSY_MACHINE_SECONDS, BOOT_SECONDS = 20, 180
SILENCE_SECONDS = GIVEN_UP_SECONDS + 2 * CONNECT_SECONDS + BUSY_MACHINE_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """The deploy with the faults; `moments` are when they came, in the seconds of its events."""

    site: FaultSite
    ended: Ended
    moments: dict[str, float]
    mended: dict[str, ExitStack]

    def seconds(self, name: str) -> float:
        """From the fault to the end of that host's deploy."""
        return self.ended.at(name) - self.moments[name]


@pytest.fixture(scope="module")
def site(fleet: PracticeFleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultSite]:
    directory = tmp_path_factory.mktemp("many")
    (directory / "home").mkdir()
    with pytest.MonkeyPatch.context() as patch, start_mirror([]) as mirror:
        patch.setenv("HOME", str(directory / "home"))
        patch.setenv("XDG_CACHE_HOME", str(directory / "cache"))
        hosts = {name: fleet.add(Kind.RICH) for name in NAMES}
        made = FaultSite(hosts=hosts, directory=directory, mirror=mirror)
        made.add_releases()
        made.offer_weights()
        try:
            for host in hosts.values():
                host.wait_for_ssh(BOOT_SECONDS)
            yield made
        finally:
            for host in hosts.values():
                fleet.remove(host)


@pytest.fixture(scope="module")
def story(site: FaultSite) -> Iterator[Story]:
    first = site.deploy()
    assert first.exit_code == 0, first.stderr
    site.version = NEW
    site.offer_weights(WEIGHTS_MEGABYTES)
    cut, hole, expired = (site.hosts[name] for name in ("cut", "hole", "expired"))
    for host in (hole, expired):
        assert host.shell(f"{SHORT_LEASE} touch {WAITS}").returncode == 0
    moments, mended = {}, {name: ExitStack() for name in NAMES}
    site.hosts["off"].kill9()
    # Its weights take longer than the others need to get to their server's start.
    mended["cut"].enter_context(shaping(cut.link, KILOBITS_PER_SECOND))
    stalled = mended["stalled"].enter_context(start_link_proxy((site.hosts["stalled"].address, 22)))
    stalled.link = Link(stall_after_bytes=STALL_AFTER_BYTES)
    site.address["stalled"] = ("127.0.0.1", stalled.port)
    mended["stalled"].callback(site.address.clear)
    with ExitStack() as stack, site.running("deploy", "--yes") as running:
        for undo in mended.values():
            stack.enter_context(undo)
        running.until("step_started", "StartServer", "hole")
        mended["hole"].enter_context(dropping(hole.address))
        moments["hole"] = time.monotonic()
        hole.shell(f"rm {WAITS}")
        running.until("step_started", "StartServer", "expired")
        assert expired.shell("chage -E0 admin").returncode == 0
        mended["expired"].callback(expired.shell, "chage -E-1 admin")
        moments["expired"] = time.monotonic()
        expired.shell(f"rm {WAITS}")
        running.until_true("a part of the weights is there", lambda: look(cut).parts != ())
        cut.cut_link()
        mended["cut"].callback(cut.mend_link)
        moments["cut"] = time.monotonic()
        running.until_true("a link has stalled", lambda: stalled.stalled_at is not None)
        ended = running.end()
        assert stalled.stalled_at is not None
        moments["stalled"] = stalled.stalled_at
        yield Story(site=site, ended=ended, moments=moments, mended=mended)


@pytest.fixture(autouse=True)
def fine_is_left_alone(story: Story) -> Iterator[None]:
    """What mends another host, and deploys to it, leaves the one alone that had no fault."""
    with untouched(story.site.hosts["fine"]):
        yield


def test_the_host_without_a_fault_is_done_whatever_becomes_of_the_others(story: Story) -> None:
    """It is also what rows 2, 3, 35 and 45 promise of other hosts."""
    assert story.ended.outcome("fine") == "changed"
    assert story.site.broken(NEW, new=NEW, name="fine") == []


@pytest.mark.fault(2)
def test_a_cable_that_is_never_plugged_in_again_ends_in_time_and_the_old_release_serves(story: Story) -> None:
    cut = story.site.hosts["cut"]
    assert story.ended.outcome("cut") == "unreachable"
    assert story.seconds("cut") < SILENCE_SECONDS
    assert len(look(cut).parts) == 1
    story.mended["cut"].close()
    assert story.site.broken(OLD, new=NEW, name="cut") == []


@pytest.mark.fault(3)
def test_a_black_hole_is_noticed_by_the_keepalive_and_the_host_goes_back_by_itself(story: Story) -> None:
    hole = story.site.hosts["hole"]
    assert story.ended.outcome("hole") == "unreachable"
    assert story.seconds("hole") < SILENCE_SECONDS
    # Nobody can reach it, and it serves what is proven all the same.
    assert broken_after_fault(hole, serves=[OLD, NEW]) == []
    story.mended["hole"].close()
    assert story.site.broken(OLD, NEW, new=NEW, name="hole") == []
    journal = hole.shell("cat /var/lib/ollama-fleet/journal.jsonl").stdout
    assert "the lease ran out" in journal


@pytest.mark.fault(4)
def test_a_link_that_stalls_is_given_up_within_a_minute_and_its_host_is_named(story: Story) -> None:
    """By whoever notices first: the kernel, since nothing is taken from it, or our own patience."""
    assert story.ended.outcome("stalled") == "unreachable"
    assert story.ended.error("stalled")["kind"] == "HostUnreachable"
    assert story.seconds("stalled") < STALL_SECONDS + 2 * CONNECT_SECONDS + BUSY_MACHINE_SECONDS
    story.mended["stalled"].close()
    assert story.site.broken(OLD, new=NEW, name="stalled") == []


@pytest.mark.fault(35)
def test_an_account_that_expires_meanwhile_fails_its_own_host_only(story: Story) -> None:
    assert story.ended.outcome("expired") in ("failed", "unreachable")
    assert "expired" in str(story.ended.error("expired"))
    story.mended["expired"].close()
    assert story.site.broken(OLD, NEW, new=NEW, name="expired") == []


@pytest.mark.fault(45)
def test_a_host_that_is_off_from_the_start_is_unreachable_which_is_not_failed(story: Story) -> None:
    ended, off = story.ended, story.site.hosts["off"]
    assert ended.outcome("off") == "unreachable"
    assert "no SSH connection" in ended.error("off")["sentence"]
    assert ended.error("off")["unchanged"] == "everything"
    assert ended.exit_code == ExitCode.UNREACHABLE
    summary = ended.events[-1][1]
    assert (summary["hosts"], summary["changed"]) == (len(NAMES), 1)
    off.start()
    off.wait_for_ssh()
    assert story.site.broken(OLD, new=NEW, name="off") == []
