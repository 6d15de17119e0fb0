"""The tasks that change hosts: each shows its plan, asks, acts and tells every host's outcome."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from console.pin import cache_directory
from console.report_files import check_report_file, write_report_file
from console.rollout import Work, roll_out
from console.run import Run, keep_away_while_asking, may_change, transport_for
from console.served import check_served
from deploy import services, systemd
from deploy.converge import Edits, Options, converge, probe_host, survey
from deploy.desired import Desired, GpuKind, ServiceBackend
from deploy.errors import ExitCode, FleetError, Interrupted, UsageError, designed_error, errors_of
from deploy.facts import HostFacts, ServerProcess
from deploy.fleet import each, interrupts
from deploy.host_lock import host_lock
from deploy.journal import Journal
from deploy.outcomes import (
    HostOutcome,
    ModelVerdict,
    Outcome,
    Verify,
    VerifyRequest,
    count_outcomes,
    without_details,
)
from deploy.plan import Plan, Selection, everything, only_service, plan, render_plan
from deploy.remove import Models, doomed_things, remove_host
from deploy.rollback import check_confirmed, current_server
from deploy.transport import Transport

Ended = TypeVar("Ended")


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A host's plan, or the error that keeps it from having one."""

    host: str
    plan: Plan | None = None
    error: FleetError | None = None

    @property
    def changes(self) -> bool:
        return self.plan is not None and not self.plan.is_empty

    def outcome(self, otherwise: Outcome) -> HostOutcome:
        """Failed with the error; `otherwise` where there is a plan."""
        outcome = otherwise if self.error is None else outcome_of_error(self.error)
        return HostOutcome(host=self.host, outcome=outcome, error=self.error)


def make_plans(run: Run, hosts: Sequence[Desired], selection: Selection = everything) -> tuple[Planned, ...]:
    """Every host's plan, told as it comes; one host's error does not hide the others. Changes nothing."""

    def look(desired: Desired) -> Plan:
        transport = transport_for(desired)
        try:
            return plan(desired, probe_host(desired, transport), selection)
        finally:
            if len(hosts) > run.forks:
                # They wait for their turn; a few go on with the same connection.
                transport.close()

    def one(desired: Desired) -> Planned:
        try:
            with errors_of(desired.host):
                found = look(desired)
        except FleetError as error:
            run.report.error(error)
            return Planned(host=desired.host, error=error)
        fields = render_plan(found)
        run.report("plan", fields.pop("host"), **fields)
        return Planned(host=desired.host, plan=found)

    return each(hosts, one, run.forks)


def show_plans(run: Run, *, drift_code: bool) -> ExitCode:
    """`plan`: tell every host's plan; with `drift_code` end with 3 when there is something to change."""
    planned = make_plans(run, run.hosts())
    different = sum(1 for item in planned if item.changes)
    outcomes = [item.outcome(Outcome.OK) for item in planned]
    steps = sum(len(item.plan.steps) for item in planned if item.plan is not None)
    run.report.summary(outcomes, to_change=different, steps=steps)
    drift = ExitCode.DRIFT if drift_code and different else ExitCode.DONE
    return max(exit_code(outcomes), drift)


def deploy_asking(
    run: Run,
    task: str,
    selection: Selection,
    *,
    yes: bool,
    verify: bool,
    junit: Path | None = None,
    wish: Callable[[Desired], Desired] | None = None,
) -> ExitCode:
    """`deploy` and its single phases, in the batches of the inventory; `wish` asks for more than it says."""
    check_report_file("--junit", junit)
    hosts = run.hosts()
    planned: tuple[Planned, ...] = ()
    if wish is not None:
        hosts, planned = _wished(run, hosts, wish)
    if not yes:
        refused = {item.host for item in planned}
        planned += make_plans(run, [desired for desired in hosts if desired.host not in refused], selection)
    ended: dict[str, HostOutcome] = {}

    def end(outcome: HostOutcome, tell: Callable[[Run, HostOutcome], HostOutcome] = tell_outcome) -> None:
        ended[outcome.host] = without_details(tell(run, outcome))

    def tell_all() -> ExitCode:
        outcomes = tuple(ended[desired.host] for desired in hosts)
        run.report.recap(outcomes)
        written = _write_junit(run, junit, task, outcomes)
        counts = count_outcomes(outcomes)
        more = {"ok": counts[Outcome.OK], "skipped": counts[Outcome.SKIPPED]}
        run.report.summary(outcomes, **more, **count_cases(outcomes), **ollama_word(outcomes))
        return max(exit_code(outcomes), written)

    begun: dict[str, int] = {}
    try:
        is_agreed = _are_agreed(run, planned)
        for item in planned:
            # Nor did anybody agree to a plan that could not be made, though the host may be reached by now.
            if item.plan is None or not is_agreed:
                reason = "nobody agreed" if item.error is None else None
                end(replace(item.outcome(Outcome.SKIPPED), reason=reason), tell_end)
        if is_agreed:
            left = [desired for desired in hosts if desired.host not in ended]
            deploy_in_batches(run, left, task, selection, verify=verify, begin=begun.__setitem__, end=end)
    except KeyboardInterrupt:
        for desired in hosts:
            if desired.host not in ended:
                end(_cut_short(desired, task, begun.get(desired.host)))
        tell_all()
        raise
    code = tell_all() if is_agreed else max(tell_all(), ExitCode.USAGE)
    interrupted = run.stop_requested.is_set() and Outcome.SKIPPED in {item.outcome for item in ended.values()}
    return max(code, ExitCode.INTERRUPTED if interrupted else ExitCode.DONE)


def _cut_short(desired: Desired, task: str, batch: int | None) -> HostOutcome:
    """What is known of a host that Ctrl-C has left where it was; one of no batch was looked at, at most."""
    if batch is None:
        return HostOutcome(host=desired.host, outcome=Outcome.SKIPPED, reason="stopped before it was begun")
    error = Interrupted(
        sentence=f"`{task}` was stopped at once",
        host=desired.host,
        cause="Ctrl-C, twice",
        hint=f"./fleet status --limit {desired.host}",
    )
    return HostOutcome(
        host=desired.host, outcome=Outcome.FAILED, error=error, reason="stopped at once", batch=batch
    )


def _wished(
    run: Run, hosts: Sequence[Desired], wish: Callable[[Desired], Desired]
) -> tuple[tuple[Desired, ...], tuple[Planned, ...]]:
    """The hosts as they are wished; of those that could not be looked at, the errors, which are told."""

    def one(desired: Desired) -> Desired | FleetError:
        try:
            with errors_of(desired.host):
                return wish(desired)
        except FleetError as error:
            run.report.error(error)
            return error

    found = each(hosts, one, run.forks)
    pairs = list(zip(hosts, found, strict=True))
    errors = [
        Planned(host=desired.host, error=item) for desired, item in pairs if isinstance(item, FleetError)
    ]
    return tuple(desired if isinstance(item, FleetError) else item for desired, item in pairs), tuple(errors)


def _are_agreed(run: Run, planned: Sequence[Planned]) -> bool:
    """Whether a person agrees to the plans, none of which failed. A host out of reach keeps nobody back."""
    outcomes = [item.outcome(Outcome.SKIPPED).outcome for item in planned]
    changes = any(item.changes for item in planned)
    return Outcome.FAILED not in outcomes and (not changes or may_change(run.report, yes=False))


def _write_junit(run: Run, path: Path | None, task: str, outcomes: Sequence[HostOutcome]) -> ExitCode:
    """A report that cannot be kept hides no host's end: that is told all the same."""
    if path is None:
        return ExitCode.DONE
    from console.deploy_junit import render_deploy_junit

    try:
        write_report_file(path, render_deploy_junit(task, outcomes))
    except OSError as error:
        designed = designed_error(error)
        run.report.error(designed)
        return designed.exit_code
    return ExitCode.DONE


def deploy_in_batches(
    run: Run,
    hosts: Sequence[Desired],
    task: str,
    selection: Selection = everything,
    *,
    verify: bool = False,
    begin: Callable[[str, int], object],
    end: Callable[[HostOutcome], object],
) -> None:
    """Converge the hosts at their pace; `end` hears of each, `begin` of those that are changed, and when."""
    with _converging(run, hosts, task, selection, verify=verify) as options:

        def look(desired: Desired) -> HostOutcome | None:
            run.report("host_started", desired.host)
            return _on_host(desired, lambda transport: survey(desired, transport, options))

        def change(desired: Desired, number: int) -> HostOutcome:
            run.report("host_started", desired.host, batch=number)
            begin(desired.host, number)
            return _on_host(desired, lambda transport: converge(desired, transport, options))

        run.report.begin(len(hosts))
        keep_away_while_asking(run.report)
        roll_out(
            hosts,
            Work(survey=look, change=change, tell=end),
            run.report,
            forks=run.forks,
            stop_requested=run.stop_requested,
        )


def deploy_hosts(
    run: Run, hosts: Sequence[Desired], task: str, selection: Selection = everything, *, verify: bool = False
) -> tuple[HostOutcome, ...]:
    """Converge every host at once; with `verify` a host that needed no change runs the suite too."""
    with _converging(run, hosts, task, selection, verify=verify) as options:

        def one(desired: Desired) -> HostOutcome:
            outcome = _on_host(desired, lambda transport: converge(desired, transport, options))
            return tell_outcome(run, outcome)

        return each(hosts, one, run.forks)


def _on_host(desired: Desired, work: Callable[[Transport], Ended]) -> Ended | HostOutcome:
    """What came of the work. The connection is closed with it: hundreds of them would be kept otherwise."""
    try:
        with errors_of(desired.host), closing(transport_for(desired)) as transport:
            return work(transport)
    except FleetError as error:
        return failed_outcome(desired, error)


@contextmanager
def _converging(
    run: Run, hosts: Sequence[Desired], task: str, selection: Selection, *, verify: bool
) -> Iterator[Options]:
    believed = partial(_believed, hosts)
    with _prover(run) as suite, interrupts(run.stop_requested, run.report):
        prove = believed(suite)
        yield Options(
            task=task,
            verify=prove,
            check=prove if verify else believed(check_served),
            events=run.report,
            stop_requested=run.stop_requested,
            selection=selection,
            endpoint=run.endpoint,
            cache=cache_directory(),
            edits=Edits.OVERWRITE if run.overwrite else Edits.KEEP,
            soak_seconds=run.soak_seconds,
        )


def _believed(hosts: Sequence[Desired], verify: Verify) -> Verify:
    """Where GPUs are to compute, the driver is believed, not the server; nobody else loads its checks."""
    if all(desired.gpu is not GpuKind.NVIDIA for desired in hosts):
        return verify
    from console.gpu_checks import believing_the_driver

    return believing_the_driver(verify, {desired.host: desired for desired in hosts}, transport_for)


@contextmanager
def _prover(run: Run) -> Iterator[Verify]:
    """The suite; loaded, and given its database, when the first model is proven: most converges prove none.

    Raises UsageError at once for a database that was given and cannot be used.
    """
    opened: list[Path] = []
    opening = threading.Lock()

    def stop_if_asked() -> None:
        if run.stop_requested.is_set():
            raise Interrupted(
                sentence="the suite was interrupted",
                cause="Ctrl-C; the play that was running has been finished",
                hint="run the same command again",
            )

    with ExitStack() as stack:

        def database() -> Path:
            from console.proof import smoke_database

            with opening:
                if not opened:
                    opened.append(stack.enter_context(smoke_database(run.database)))
            return opened[0]

        def prove(request: VerifyRequest) -> ModelVerdict:
            from console.proof import verify_model

            return verify_model(request, database(), run.report, stop_if_asked)

        if run.database is not None:
            database()
        yield prove


def service_asking(run: Run, action: str, *, yes: bool) -> ExitCode:
    """`service`: `converge`, or the operations `start`, `stop` and `restart`."""
    match action:
        case "converge" | "start":
            return deploy_asking(run, "service", only_service, yes=yes, verify=False)
        case "restart":
            return deploy_asking(run, "service", only_service, yes=yes, verify=False, wish=_retire_servers)
        case "stop":
            return _stop_asking(run, yes=yes)
    raise UsageError(
        sentence=f"`service {action}` is no action",
        unchanged="everything",
        hint="./fleet service converge|start|stop|restart",
    )


def _retire_servers(desired: Desired) -> Desired:
    """The same release by another process: a restart is a plan like any other."""
    facts = probe_host(desired, transport_for(desired))
    server = current_server(desired, facts)
    retired = tuple(running.process for running in facts.servers)
    return replace(desired, server=replace(server, retired=retired))


def _stop_asking(run: Run, *, yes: bool) -> ExitCode:
    hosts = run.hosts()
    running = _announce(
        run, hosts, lambda _, facts: [f"would stop pid {server.process.pid}" for server in facts.servers]
    )
    if running and not may_change(run.report, yes=yes):
        run.report.summary([HostOutcome(host=desired.host, outcome=Outcome.SKIPPED) for desired in hosts])
        return ExitCode.USAGE
    outcomes = each(hosts, lambda desired: tell_outcome(run, _stop(desired, run)), run.forks)
    run.report.summary(outcomes)
    return exit_code(outcomes)


def _stop(desired: Desired, run: Run) -> HostOutcome:
    def stop() -> int:
        transport = transport_for(desired)
        journal = Journal(
            transport=transport, path=desired.paths.journal, what="service stop", events=run.report
        )
        with host_lock(transport, desired.paths.lock, "service stop", journal):
            facts = probe_host(desired, transport)
            check_confirmed(desired, facts)
            servers = facts.servers
            for server in servers:
                with journal.changing([f"the server, pid {server.process.pid}"]):
                    _stop_one(desired, transport, server)
                run.report("note", desired.host, text=f"stopped pid {server.process.pid}")
        return len(servers)

    return _outcome_of(desired, stop)


def _stop_one(desired: Desired, transport: Transport, server: ServerProcess) -> None:
    """By systemd where it would start the server again at once; it stays enabled and starts at boot."""
    if desired.server.backend is ServiceBackend.SYSTEMD:
        systemd.stop(transport)
    else:
        services.stop_server(transport, server.process)


def remove_asking(run: Run, *, yes: bool, models: bool) -> ExitCode:
    """`remove`: everything of ours, the model store only when asked."""
    hosts = run.hosts()
    store = Models.REMOVE if models else Models.KEEP
    doomed = _announce(
        run,
        hosts,
        lambda desired, facts: tuple(
            f"would remove {thing}" for thing in doomed_things(desired, transport_for(desired), facts, store)
        ),
    )
    if doomed and not may_change(run.report, yes=yes):
        run.report.summary([HostOutcome(host=desired.host, outcome=Outcome.SKIPPED) for desired in hosts])
        return ExitCode.USAGE
    outcomes = remove_hosts(run, hosts, store)
    run.report.summary(outcomes)
    return exit_code(outcomes)


def remove_hosts(run: Run, hosts: Sequence[Desired], models: Models) -> tuple[HostOutcome, ...]:
    """Remove without asking."""

    def one(desired: Desired) -> int:
        transport = transport_for(desired)
        return remove_host(desired, transport, lambda: probe_host(desired, transport), run.report, models)

    return each(
        hosts, lambda desired: tell_outcome(run, _outcome_of(desired, lambda: one(desired))), run.forks
    )


def _announce(
    run: Run, hosts: Sequence[Desired], things: Callable[[Desired, HostFacts], Sequence[str]]
) -> int:
    """Tell what would become of every host; returns how many things. A host that cannot say fails later."""

    def one(desired: Desired) -> int:
        try:
            with errors_of(desired.host):
                found = things(desired, probe_host(desired, transport_for(desired)))
        except FleetError:
            return 1
        for thing in found:
            run.report("note", desired.host, text=thing)
        return len(found)

    return sum(each(hosts, one, run.forks))


def failed_outcome(desired: Desired, error: FleetError) -> HostOutcome:
    """A host whose work ended with an error."""
    error.host = error.host or desired.host
    return HostOutcome(host=desired.host, outcome=outcome_of_error(error), error=error)


def outcome_of_error(error: FleetError) -> Outcome:
    """Unreachable is told apart from failed."""
    return Outcome.UNREACHABLE if error.exit_code is ExitCode.UNREACHABLE else Outcome.FAILED


def _outcome_of(desired: Desired, work: Callable[[], int]) -> HostOutcome:
    """An operation that is no converge, as an outcome; `work` returns how many things it changed."""
    started = time.monotonic()
    try:
        with errors_of(desired.host):
            changed = work()
    except FleetError as error:
        return failed_outcome(desired, error)
    return HostOutcome(
        host=desired.host,
        outcome=Outcome.CHANGED if changed else Outcome.OK,
        steps_done=changed,
        seconds=round(time.monotonic() - started, 3),
    )


def tell_outcome(run: Run, outcome: HostOutcome) -> HostOutcome:
    """One host's end as an event, its error as a designed one."""
    if outcome.error is not None:
        run.report.error(outcome.error)
    return tell_end(run, outcome)


def tell_end(run: Run, outcome: HostOutcome) -> HostOutcome:
    """One host's end, whose error has been told."""
    run.report(
        "host_done",
        outcome.host,
        outcome=str(outcome.outcome),
        steps_done=outcome.steps_done,
        seconds=outcome.seconds,
        **({"batch": outcome.batch} if outcome.batch is not None else {}),
        **({"reason": outcome.reason} if outcome.reason is not None else {}),
        **ollama_word([outcome]),
    )
    return outcome


def ollama_word(outcomes: Sequence[HostOutcome]) -> dict[str, str]:
    """`simulated` or `real`: every report says which kind of server it was made with, once it has met one."""
    met = {verdict.ollama for outcome in outcomes for verdict in outcome.verdicts.values()} - {None}
    return {"ollama": "simulated" if "simulated" in met else "real"} if met else {}


def count_cases(outcomes: Sequence[HostOutcome]) -> dict[str, int]:
    """How many cases passed and failed, over all hosts and models."""
    counts = [verdict.count for outcome in outcomes for verdict in outcome.verdicts.values()]
    passed, failed = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    return {"cases_passed": passed, "cases_failed": failed}


def exit_code(outcomes: Sequence[HostOutcome]) -> ExitCode:
    """The largest of the hosts' codes; a failed verdict is a failed host."""
    codes = [
        max(outcome.exit_code, ExitCode.FAILED if outcome.outcome is Outcome.FAILED else ExitCode.DONE)
        for outcome in outcomes
    ]
    return max(codes, default=ExitCode.DONE)
