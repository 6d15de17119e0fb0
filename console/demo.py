"""`demo`: the whole job on this machine; and the parts of the testbed one by one."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

from console.changes import count_cases, deploy_hosts, exit_code, ollama_word, remove_hosts
from console.paths import CANARY, MODELFILES
from console.run import Run, refused_binary
from console.smoke import SmokeTask, show_suite, smoke_hosts
from deploy.compose import Sources
from deploy.errors import ExitCode, HostLocked, Interrupted, NotConverged, PortTaken
from deploy.fleet import interrupts
from deploy.outcomes import HostOutcome, Outcome
from deploy.remove import Models
from deploy.report import Report
from testbed.demo import (
    DemoRunning,
    DemoSite,
    UnusableBinary,
    demo_directory,
    demo_site,
    free_port,
    write_inventory,
)

PORT_ATTEMPTS = 3


def run_demo(report: Report, *, keep: bool, database: Path | None) -> ExitCode:
    """Deploy onto this machine from the testbed, twice, play the suite, and take everything away again."""
    directory = demo_directory()
    try:
        with demo_site(directory, CANARY) as site:
            for note in site.notes:
                report("note", None, text=note)
            outcomes = _play(report, site, database, keep=keep)
    except UnusableBinary as error:
        raise refused_binary(error) from error
    except DemoRunning as running:
        raise HostLocked(
            sentence=f"another demo runs in `{directory}`",
            cause=f"it holds {running}",
            unchanged="everything",
            hint="wait for it, or set XDG_STATE_HOME to another directory",
        ) from None
    if keep:
        _tell_what_stays(report, site)
    report.summary(outcomes, **count_cases(outcomes), **ollama_word(outcomes))
    return exit_code(outcomes)


def _play(report: Report, site: DemoSite, database: Path | None, *, keep: bool) -> tuple[HostOutcome, ...]:
    run = Run(
        report=report,
        sources=Sources(inventory=site.inventory, modelfiles=MODELFILES, pins=site.pins),
        limit=None,
        forks=1,
        stop_requested=threading.Event(),
        endpoint=site.endpoint,
        database=database,
    )
    with interrupts(run.stop_requested, report):
        try:
            return _deploy_twice_and_smoke(run, site)
        except KeyboardInterrupt:
            # The second Ctrl-C: at once. The next demo begins with what this one leaves.
            keep = True
            raise
        finally:
            if not keep:
                remove_hosts(run, run.hosts(), Models.REMOVE)
                # Under the demo's lock: a demo that waits for nothing could be making it anew.
                shutil.rmtree(site.directory, ignore_errors=True)


def _deploy_twice_and_smoke(run: Run, site: DemoSite) -> tuple[HostOutcome, ...]:
    first = _deploy_on_free_port(run, site)
    if exit_code(first):
        return first
    run.report("note", None, text="deploying a second time: nothing may change")
    second = deploy_hosts(run, run.hosts(), "deploy")
    _check_unchanged(second)
    smoked = smoke_hosts(run, run.hosts(), SmokeTask(database=run.database))
    show_suite(run.report, [told for one in smoked for told in one.reports])
    if run.stop_requested.is_set():
        raise Interrupted(sentence="`demo` was interrupted", hint="./fleet demo")
    # What changed is told by the first deploy, what works by the suite over the served name.
    return tuple(_joined(one, other.outcome) for one, other in zip(first, smoked, strict=True))


def _deploy_on_free_port(run: Run, site: DemoSite) -> tuple[HostOutcome, ...]:
    """A free port can be taken between choosing and using it; another one is chosen then."""
    outcomes = deploy_hosts(run, run.hosts(), "deploy")
    for _ in range(PORT_ATTEMPTS):
        if not any(isinstance(outcome.error, PortTaken) for outcome in outcomes):
            break
        write_inventory(site.inventory, free_port(), site.server)
        outcomes = deploy_hosts(run, run.hosts(), "deploy")
    return outcomes


def _check_unchanged(outcomes: Sequence[HostOutcome]) -> None:
    changed = [outcome for outcome in outcomes if outcome.outcome is not Outcome.OK]
    if changed:
        raise NotConverged(
            sentence="the second `deploy` of the demo was not empty",
            host=changed[0].host,
            actual=f"{changed[0].steps_done} changes",
            expected="0 changes",
        )


def _joined(deployed: HostOutcome, smoked: HostOutcome) -> HostOutcome:
    return HostOutcome(
        host=deployed.host,
        outcome=smoked.outcome if smoked.outcome is Outcome.FAILED else deployed.outcome,
        steps_done=deployed.steps_done,
        seconds=deployed.seconds,
        verdicts=smoked.verdicts,
        version=deployed.version,
    )


def _tell_what_stays(report: Report, site: DemoSite) -> None:
    inventory = site.inventory
    report("note", None, text=f"kept: {site.directory}")
    for task in ("status", "plan", "smoke", "remove --models"):
        report("note", None, text=f"  ./fleet {task} --inventory {inventory}")
