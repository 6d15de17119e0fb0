"""Random faults at random moments of deploys, and after each all promises. A seed makes the same again."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.chaos_changes import Prepared, prepare
from bench.chaos_faults import UNTIL_THE_END, Scene, honest_codes
from bench.chaos_schedule import MIRROR_FAULTS, Change, Fault, FaultKind, Moment, Round, draw_round
from bench.chaos_site import ChaosSite, chaos_site
from bench.hosts import until
from deploy.errors import CommandFailed
from deploy.report import Report
from testbed.hosts_host import Host, NotInTime
from testbed.hosts_machine import MachineRefused
from testbed.promises import (
    LOCK_SECONDS,
    NOTHING,
    Ran,
    broken_after_converge,
    broken_after_fault,
    broken_to_others,
    footprints,
    look,
)

# The longest that a run may take: a link that is cut for good is given up after 45 s, a lock after 60 s.
RUN_SECONDS = 240.0
# Three of these runs side by side, on a machine that does other things too.
SWITCH_ON_SECONDS = 120.0
# systemd says it when the machine has no inotify instance left for another host.
_NO_INOTIFY = "control group inotify object"
_POLL_SECONDS = 0.01
_TAIL = 12

Events = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a run ended: its code, its events, and which of its faults met it in the middle."""

    exit_code: int
    events: Events
    landed: tuple[Fault, ...]
    other_codes: tuple[int, ...] = ()
    is_hanging: bool = False

    @property
    def errors(self) -> tuple[str, ...]:
        """What each said: of a long cause the first line."""
        told = [event for event in self.events if event["event"] == "error"]
        causes = [(event.get("cause") or "it names no cause").splitlines()[0] for event in told]
        return tuple(f"{event['sentence']} ({cause})" for event, cause in zip(told, causes, strict=True))


NEVER_RAN = Ended(exit_code=0, events=(), landed=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One round, as it went; `broken` are sentences, none when all is well."""

    drawn: Round
    ended: Ended
    seconds: float
    broken: tuple[str, ...]


def run(report: Report, *, seed: int, minutes: float, rounds: int, first: int) -> int:
    """Print a line a round and what each fault did; 2 when a promise was broken, or no fault met a run.

    It ends with the round in which the minutes are over, or after so many rounds where they are given.
    """
    report.say(f"seed {seed}")
    # Where a shell has put us into the background it is ignored, and would be in all that we start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    played: list[Played] = []
    with chaos_site(seed, report.say) as site:
        report.say(", ".join(f"{host.name}: {host.kind.name.lower()}" for host in site.hosts))
        for host in site.hosts:
            _converge(site, host)
        deadline = time.monotonic() + 60 * minutes
        number = first
        while number < first + rounds if rounds else time.monotonic() < deadline:
            played.append(play(site, draw_round(seed, number, len(site.hosts))))
            tell(report, seed, played[-1])
            if played[-1].broken:
                # What a broken promise has left must not break the next one's.
                for index in played[-1].drawn.hosts:
                    _converge(site, site.renew(index))
            number += 1
    return tell_sum(report, seed, played)


def play(site: ChaosSite, drawn: Round) -> Played:
    """One round: the change, its faults, and all that was promised afterwards."""
    began = time.monotonic()
    ended, broken = NEVER_RAN, list[str]()
    try:
        hosts = [site.hosts[index] for index in drawn.hosts]
        others = [host for host in site.hosts if host not in hosts]
        before = footprints(others)
        prepared = prepare(site, hosts, drawn, lambda host: _converge(site, host))
        scene = Scene(site=site, host=hosts[0], run=site.start(prepared.words, hosts), flags=prepared.flags)
        try:
            ended = conduct(scene, drawn.faults)
        finally:
            _end(scene.run)
            for fault in drawn.faults:
                scene.mend(fault)
        broken += check_end(ended, drawn)
        _switch_all_on(hosts)
        prepared.wanted(site)
        for host in hosts:
            broken += _check_host(site, host, drawn, prepared, ended)
        broken += broken_to_others(others, before)
    except (CommandFailed, NotInTime, MachineRefused, subprocess.SubprocessError) as failure:
        if _NO_INOTIFY in str(failure):
            # This machine's fault, and no promise of ours: nothing after it would say anything.
            raise
        broken.append(str(failure))
    return Played(drawn=drawn, ended=ended, seconds=time.monotonic() - began, broken=tuple(broken))


def check_end(ended: Ended, drawn: Round) -> list[str]:
    """Whether the run ended, and with a code that its faults deserve."""
    broken = []
    if ended.is_hanging:
        broken.append(f"the run did not end within {RUN_SECONDS:g} s")
    codes = honest_codes([fault.kind for fault in drawn.faults], drawn.change)
    if not ended.is_hanging and ended.exit_code not in codes:
        told = "; ".join(ended.errors) or "it told no error"
        broken.append(f"exit code {ended.exit_code}, not one of {sorted(codes)}: {told}")
    if drawn.change is not Change.NOTHING and ended.exit_code in (2, 4, 5) and not ended.errors:
        broken.append(f"exit code {ended.exit_code} without an error")
    broken += [
        f"the other deploy ended with {code}" for code in ended.other_codes if code not in codes | {0, 5}
    ]
    return broken


def _check_host(site: ChaosSite, host: Host, drawn: Round, prepared: Prepared, ended: Ended) -> list[str]:
    broken = []
    serves = prepared.serves[host.name]
    if drawn.at_once or drawn.change is Change.DRIFT:
        # It may still be on its way back, or wait for the repair of what a hand has removed: no third state.
        release = look(host).release
        if release not in (*serves, NOTHING):
            broken.append(f"{host.name} serves {release}")
    else:
        until(lambda: not look(host).lock, LOCK_SECONDS)
        broken += broken_after_fault(host, serves=serves)
    told: list[Ended] = []

    def deploy() -> Ran:
        told.append(_deploy(site, host, prepared.flags))
        return Ran(exit_code=told[-1].exit_code, changed=_changed(told[-1]))

    broken += broken_after_converge(host, new=site.wanted[host.name].version, deploy=deploy)
    if ended.exit_code == 0 and told and _changed(told[0]):
        steps = [event["step"] for event in told[0].events if event["event"] == "step_started"]
        broken.append(f"the run ended with 0, and the next one changed {host.name}: {', '.join(steps)}")
    broken += [f"on {host.name}: {error}" for deploy_end in told for error in deploy_end.errors]
    failed = host.shell("systemctl list-units --failed --plain --no-legend 'ollama*'").stdout.split("\n")
    # A health check that ran while something was broken has failed rightly, until its next turn.
    serious = [unit for unit in failed if unit and not unit.startswith("ollama-fleet-health.")]
    broken += [f"a unit of {host.name} is left failed: {unit}" for unit in serious]
    left = host.shell("find /srv/store -name '.*' -o -name '*.part'").stdout.split()
    broken += [f"a temporary file is left on {host.name}: {path}" for path in left]
    return broken


def conduct(scene: Scene, faults: Sequence[Fault]) -> Ended:
    """Let the run go on, and each fault happen when its moment has come."""
    events: list[Mapping[str, Any]] = []
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    reader = threading.Thread(target=_read, args=(scene.run, lines), daemon=True)
    reader.start()
    waiting = list(faults)
    due: dict[Fault, float] = {}
    lasting: dict[Fault, float] = {}
    landed: list[Fault] = []
    deadline = time.monotonic() + RUN_SECONDS
    while scene.run.poll() is None and time.monotonic() < deadline:
        events += _take(lines)
        now = time.monotonic()
        for fault in [fault for fault in waiting if has_come(fault.moment, events, scene.host.name)]:
            waiting.remove(fault)
            due[fault] = now + fault.moment.milliseconds / 1000
        for fault in [fault for fault, at in due.items() if at <= now]:
            del due[fault]
            if is_in_the_middle(events, scene.host.name):
                landed.append(fault)
            scene.begin(fault)
            lasting[fault] = time.monotonic() + fault.seconds
        for fault in [fault for fault, at in lasting.items() if at <= now]:
            del lasting[fault]
            if fault.kind not in UNTIL_THE_END:
                scene.mend(fault)
        time.sleep(_POLL_SECONDS)
    is_hanging = scene.run.poll() is None
    _end(scene.run)
    reader.join()
    events += _take(lines)
    # What is set before a run lands when somebody met it.
    landed += [fault for fault in faults if fault.kind in MIRROR_FAULTS and has_met_mirror(events)]
    for fault in faults:
        scene.mend(fault)
    return Ended(
        exit_code=scene.run.returncode,
        events=events,
        landed=tuple(dict.fromkeys(landed)),
        other_codes=tuple(_wait(other) for other in scene.others),
        is_hanging=is_hanging,
    )


def has_come(moment: Moment, events: Events, host: str) -> bool:
    """Whether the events that it counts have been told; progress is told by the clock and does not count."""
    counted = ("step_started",) if moment.of_steps else None
    told = [
        event
        for event in events
        if event.get("host") == host
        and event["event"] != "progress"
        and (counted is None or event["event"] in counted)
    ]
    return len(told) >= moment.number


def is_in_the_middle(events: Events, host: str) -> bool:
    """Something of the host was told, and its end was not."""
    told = [event["event"] for event in events if event.get("host") == host]
    return bool(told) and "host_done" not in told


def has_met_mirror(events: Events) -> bool:
    """A step that asks the mirror began."""
    return any(
        event["event"] == "step_started"
        and event["step"] in ("FetchArchive", "FetchWeights", "UnpackRelease")
        for event in events
    )


def tell(report: Report, seed: int, played: Played) -> None:
    """A line; with a broken promise also how to see it again."""
    drawn, ended = played.drawn, played.ended
    landed = f"{len(ended.landed)} of {len(drawn.faults)} in the middle"
    verdict = "as promised" if not played.broken else "BROKEN"
    report.say(
        f"{drawn.number}: {drawn}: {landed}, exit {ended.exit_code}, {played.seconds:.0f} s, {verdict}"
    )
    replay = f"./fleet bench chaos --seed {seed} --from-round {drawn.number} --rounds 1"
    for promise in played.broken:
        report.say(f"  broken: {promise}")
    if played.broken:
        report.say(f"  seed {seed}, round {drawn.number}: {replay}")
        for event in [event for event in ended.events if event["event"] not in ("case", "progress")][-_TAIL:]:
            report.say(f"    {json.dumps(event, ensure_ascii=False)[:400]}")
    report(
        "bench",
        None,
        what="chaos",
        seed=seed,
        number=drawn.number,
        drawn=str(drawn),
        landed=[str(fault.kind) for fault in ended.landed],
        exit_code=ended.exit_code,
        seconds=round(played.seconds, 1),
        broken=list(played.broken),
        replay=replay,
    )


def tell_sum(report: Report, seed: int, played: Sequence[Played]) -> int:
    """A line a fault; the exit code."""
    drawn: Counter[FaultKind] = Counter()
    landed: Counter[FaultKind] = Counter()
    broken: Counter[FaultKind] = Counter()
    for item in played:
        drawn.update(fault.kind for fault in item.drawn.faults)
        landed.update(fault.kind for fault in item.ended.landed)
        if item.broken:
            broken.update(fault.kind for fault in item.drawn.faults)
    rows = [
        [str(kind), str(drawn[kind]), str(landed[kind]), str(broken[kind])]
        for kind in FaultKind
        if drawn[kind]
    ]
    title = f"{len(played)} rounds of seed {seed}"
    report.table(title, ["fault", "drawn", "in the middle of a run", "rounds with a broken promise"], rows)
    wrong = [str(item.drawn.number) for item in played if item.broken]
    if wrong:
        report.say(f"seed {seed}: promises were broken in the rounds {', '.join(wrong)}")
    elif not any(landed[kind] for kind in FaultKind if kind is not FaultKind.NONE):
        report.say("no fault met a run in the middle: this proves nothing")
        return 2
    else:
        report.say(f"seed {seed}: no promise was broken in {len(played)} rounds")
    return 2 if wrong else 0


def _converge(site: ChaosSite, host: Host) -> None:
    """Undisturbed, before a fault. Raises CommandFailed."""
    done = _deploy(site, host, ())
    if done.exit_code != 0:
        raise CommandFailed(
            sentence=f"an undisturbed `deploy` to `{host.name}` ended with {done.exit_code}",
            cause="\n".join(done.errors),
        )


def _deploy(site: ChaosSite, host: Host, flags: Sequence[str]) -> Ended:
    site.write_inventory()
    started = site.start(("deploy", *flags), [host])
    said, is_hanging = "", False
    try:
        said, _ = started.communicate(timeout=RUN_SECONDS)
    except subprocess.TimeoutExpired:
        is_hanging = True
        _end(started)
    events = [json.loads(line) for line in said.splitlines() if line.endswith("}")]
    return Ended(exit_code=started.returncode, events=events, landed=(), is_hanging=is_hanging)


def _changed(ended: Ended) -> int:
    steps = [event["steps_done"] for event in ended.events if event["event"] == "host_done"]
    return sum(steps)


def _switch_all_on(hosts: Sequence[Host]) -> None:
    for host in hosts:
        if not host.is_running:
            host.start()
    for host in hosts:
        host.wait_for_ssh(SWITCH_ON_SECONDS)


def _read(run: subprocess.Popen[str], lines: queue.SimpleQueue[str]) -> None:
    assert run.stdout is not None
    with run.stdout:
        for line in run.stdout:
            lines.put(line)


def _take(lines: queue.SimpleQueue[str]) -> Iterator[Mapping[str, Any]]:
    while not lines.empty():
        line = lines.get().rstrip()
        # A process that was killed may have been writing.
        if line.endswith("}"):
            yield json.loads(line)


def _end(run: subprocess.Popen[str]) -> None:
    if run.poll() is None:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()


def _wait(other: subprocess.Popen[str]) -> int:
    try:
        other.communicate(timeout=RUN_SECONDS)
    except subprocess.TimeoutExpired:
        _end(other)
    return other.returncode
