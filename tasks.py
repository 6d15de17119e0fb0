"""The commands: each names its flags, calls what does the work and ends with its exit code. No logic here.

Imports of our own are made inside the tasks: `./fleet --list` must not pay for what it does not use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import Parameter, Signature
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from invoke import Context, Exit, task

if TYPE_CHECKING:
    from console.run import Run
    from deploy.report import Report


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag's default, whose type Invoke takes for the flag's, and its line in the help."""

    default: Any
    help: str


FLAGS = {
    "inventory": Flag(None, "Ansible INI file (default: inventory.ini here, else the project's)"),
    "limit": Flag(None, "hosts: names, groups, globs, `:`, `!`, `&`, as in Ansible"),
    "forks": Flag(10, "hosts at once"),
    "json": Flag(False, "one JSON event a line on standard output"),
    "yes": Flag(False, "make the changes without asking"),
    "pins": Flag(None, "pins.toml to use (default: the one beside the inventory, else modelfiles/pins.toml)"),
    "database": Flag(None, "SQLite file with Chinook's tables for the ask_database case"),
    "verify": Flag(False, "run the tool-call suite even when nothing had to change"),
    "endpoint": Flag(None, "the mirror's URL (default: $MODELSCOPE_ENDPOINT, else https://modelscope.cn)"),
    "overwrite": Flag(False, "replace files that were edited by hand on a host; a copy is kept there"),
    "exit_code": Flag(False, "exit 3 when something differs from what is desired"),
}
HOSTS = ("inventory", "limit", "forks", "json", "pins")

Body = Callable[[SimpleNamespace, "Report"], int | None]


def command(
    *names: str, positional: Sequence[str] = (), iterable: Sequence[str] = (), **own: Flag
) -> Callable[[Body], Any]:
    """A task with the flags of these names and its own; the body gets their values and a report.

    What the body returns is the exit code. Designed errors are told by the report and end with theirs.
    """
    flags = {name: FLAGS[name] for name in names} | own

    def make(body: Body) -> Any:
        def run(_context: Context, **given: Any) -> None:
            values = SimpleNamespace(**given)
            with _reporting(values) as report:
                code = body(values, report)
            if code:
                raise Exit(code=code)

        parameters = [Parameter("_context", Parameter.POSITIONAL_OR_KEYWORD)]
        parameters += [
            Parameter(
                name,
                Parameter.POSITIONAL_OR_KEYWORD,
                default=Parameter.empty if name in positional else flag.default,
            )
            for name, flag in sorted(flags.items(), key=lambda item: item[0] not in positional)
        ]
        # Invoke finds a task's flags in its signature.
        vars(run)["__signature__"] = Signature(parameters)
        run.__name__, run.__doc__ = body.__name__, body.__doc__
        helps = {name: flag.help for name, flag in flags.items()}
        return task(run, help=helps, positional=list(positional), iterable=list(iterable))

    return make


@contextmanager
def _reporting(flags: SimpleNamespace) -> Iterator[Report]:
    """Turns designed errors into their text, their event and their exit code."""
    from deploy.errors import FleetError, designed_error
    from deploy.report import Report

    report = Report(as_json=getattr(flags, "json", False), inventory=getattr(flags, "inventory", None))
    try:
        yield report
    except KeyboardInterrupt:
        report.hurry()
        on_hosts = (
            ": ./fleet status shows what became of it; "
            "under systemd a host takes back by itself what was not confirmed"
        )
        report.say("stopped at once" + (on_hosts if getattr(flags, "url", None) is None else ""))
        report.summary(())
        raise
    except (FleetError, OSError, RuntimeError) as failure:
        error = designed_error(failure)
        report.close()
        report.error(error)
        report.summary(())
        raise Exit(code=error.exit_code) from error
    finally:
        report.close()


def _run(flags: SimpleNamespace, report: Report) -> Run:
    import threading

    from console.pace import parse_pace
    from console.run import Run, make_sources

    return Run(
        report=report,
        sources=make_sources(flags.inventory, getattr(flags, "pins", None)),
        limit=flags.limit,
        forks=flags.forks,
        stop_requested=threading.Event(),
        endpoint=getattr(flags, "endpoint", None),
        database=_path(getattr(flags, "database", None)),
        overwrite=getattr(flags, "overwrite", False),
        soak_seconds=float(getattr(flags, "soak", 0)),
        pace=parse_pace(getattr(flags, "batch", None), getattr(flags, "max_failures", None)),
    )


def _path(given: str | None) -> Path | None:
    return Path(given) if given else None


@command(*HOSTS, "exit_code")
def plan(flags: SimpleNamespace, report: Report) -> int:
    """Show what deploy would change; change nothing."""
    from console.changes import show_plans

    return show_plans(_run(flags, report), drift_code=flags.exit_code)


@command(
    *HOSTS,
    "yes",
    "verify",
    "database",
    "endpoint",
    "overwrite",
    batch=Flag(None, "hosts changed together, as 1,5,25% (default: the inventory's ollama_batch, else 100%)"),
    max_failures=Flag(
        None, "failed hosts after which no batch begins (default: ollama_max_failures, else 0)"
    ),
    soak=Flag(20, "seconds that a new server must live before it is confirmed; 0 turns it off"),
    junit=Flag(None, "write a JUnit report to this file"),
)
def deploy(flags: SimpleNamespace, report: Report) -> int:
    """Make the hosts as desired in batches: fetch, install, service, model, verify, promote, schedule."""
    from console.changes import deploy_asking
    from deploy.plan import everything

    return deploy_asking(
        _run(flags, report),
        "deploy",
        everything,
        yes=flags.yes,
        verify=flags.verify,
        junit=_path(flags.junit),
    )


@command(*HOSTS, "yes", "endpoint")
def install(flags: SimpleNamespace, report: Report) -> int:
    """Fetch the server's archive and unpack it into a release directory."""
    from console.changes import deploy_asking
    from deploy.plan import only_install

    return deploy_asking(_run(flags, report), "install", only_install, yes=flags.yes, verify=False)


@command(*HOSTS, "yes", "endpoint")
def download(flags: SimpleNamespace, report: Report) -> int:
    """Fetch the weights."""
    from console.changes import deploy_asking
    from deploy.plan import only_download

    return deploy_asking(_run(flags, report), "download", only_download, yes=flags.yes, verify=False)


@command(*HOSTS, "yes", "database")
def create(flags: SimpleNamespace, report: Report) -> int:
    """Create the models as candidates, verify and promote them."""
    from console.changes import deploy_asking
    from deploy.plan import only_create

    return deploy_asking(_run(flags, report), "create", only_create, yes=flags.yes, verify=False)


@command(
    *HOSTS,
    "yes",
    "overwrite",
    positional=["action"],
    action=Flag(None, "converge (default), start, stop or restart"),
)
def service(flags: SimpleNamespace, report: Report) -> int:
    """Run the server as desired: switch, start, stop, restart. The `process` backend does not supervise."""
    from console.changes import service_asking

    return service_asking(_run(flags, report), flags.action, yes=flags.yes)


@command(
    "json",
    positional=["model"],
    model=Flag(None, "name in modelfiles/models.toml (default: myqwen2)"),
    as_published=Flag(False, "the article's own Modelfile, for comparison"),
)
def render(flags: SimpleNamespace, report: Report) -> None:
    """Print a model's Modelfile; refuse one that would hide tools or calls."""
    from console.views import show_modelfile

    show_modelfile(report, flags.model, as_published=flags.as_published)


@command(
    *HOSTS,
    "database",
    iterable=["case"],
    case=Flag(None, "only this case; may be given several times"),
    level=Flag(None, "core or extended cases (default: the model's own in models.toml, else extended)"),
    runs=Flag(1, "play every case so often; the rates are told with their 95 % intervals"),
    exchanges=Flag(None, "directory for the raw exchanges, a file for every play, as `judge` reads them"),
    junit=Flag(None, "write a JUnit report to this file"),
    html=Flag(None, "write a page for people to this file"),
    url=Flag(None, "an OpenAI-compatible endpoint, instead of the inventory's hosts"),
    model=Flag(None, "--url: the model to ask for"),
    key_env=Flag(None, "--url: the environment variable that holds the key"),
    server=Flag(None, "--url: what it is, as ollama/0.17.5, whose known faults are warnings then"),
)
def smoke(flags: SimpleNamespace, report: Report) -> int:
    """Run the tool-call suite over /v1 against every served model, or against --url."""
    from console.smoke import AskedEndpoint, SmokeTask
    from console.smoke import smoke as smoke_task

    task = SmokeTask(
        cases=flags.case or None,
        level=flags.level,
        runs=flags.runs,
        database=_path(flags.database),
        exchanges=_path(flags.exchanges),
        junit=_path(flags.junit),
        html=_path(flags.html),
    )
    asked = AskedEndpoint(url=flags.url, model=flags.model, key_env=flags.key_env, server=flags.server)
    selected = flags.limit or flags.inventory
    return smoke_task(report, task, asked, lambda: _run(flags, report), selected)


@command(
    positional=["file"],
    file=Flag(None, "a saved reply (JSON or an event stream) or an exchange file; `-` is standard input"),
    tools=Flag(None, "JSON file with the tools that were sent, where FILE does not say"),
    server=Flag(None, "ollama/VERSION: what is known of that version is a warning (default: nothing is)"),
    json=Flag(False, "the verdict as one JSON object on standard output"),
)
def judge(flags: SimpleNamespace, report: Report) -> int:
    """Judge a saved reply or exchange by the 63 rules; exit 2 when one is broken."""
    from console.judge import JudgeTask, judge_file

    wanted = JudgeTask(
        report=report, file=flags.file, tools=flags.tools, server=flags.server, as_json=flags.json
    )
    return judge_file(wanted)


@command(*HOSTS, "exit_code")
def status(flags: SimpleNamespace, report: Report) -> int:
    """Say what every host serves and how it differs from what is desired."""
    from console.views import show_status

    return show_status(_run(flags, report), drift_code=flags.exit_code)


@command(
    *HOSTS,
    "yes",
    "database",
    iterable=["model"],
    release=Flag(False, "the release that served before"),
    models=Flag(False, "all models that were replaced"),
    model=Flag(None, "only this model; may be given several times"),
)
def rollback(flags: SimpleNamespace, report: Report) -> int:
    """Go back to what served before the last change, without a download; it is verified like any other."""
    from console.rollback import rollback_asking
    from deploy.rollback import Asked

    asked = Asked(release=flags.release, models=flags.models, names=tuple(flags.model or ()))
    return rollback_asking(_run(flags, report), asked, yes=flags.yes)


@command(
    *HOSTS,
    "yes",
    keep=Flag(
        2, "how many releases stay, of those unpacked last; the current and the previous one always do"
    ),
    models=Flag(False, "the models that rollback could bring back too (`NAME:previous`)"),
)
def prune(flags: SimpleNamespace, report: Report) -> int:
    """Remove old releases, fetched files that nothing needs and what cut runs left behind."""
    from console.prune import prune_asking

    return prune_asking(_run(flags, report), flags.keep, models=flags.models, yes=flags.yes)


@command(*HOSTS, "yes", models=Flag(False, "the model store too, where it lies below our own root"))
def remove(flags: SimpleNamespace, report: Report) -> int:
    """Take away everything we made on the hosts; models are kept unless asked."""
    from console.changes import remove_asking

    return remove_asking(_run(flags, report), yes=flags.yes, models=flags.models)


@command(
    *HOSTS,
    forks=Flag(32, "hosts at once: they do the work, and each takes little of this machine"),
    every=Flag(None, "again and again, as 5m, 1h or 1d, until Ctrl-C"),
    quick=Flag(False, "let no model answer: only look"),
)
def health(flags: SimpleNamespace, report: Report) -> int:
    """Run the health checks of every host now; exit 2 when one fails."""
    from console.health import show_health

    return show_health(_run(flags, report), flags.every, quick=flags.quick)


@command(
    "inventory",
    "limit",
    "forks",
    "json",
    output=Flag("fleet.html", "the file to write"),
)
def page(flags: SimpleNamespace, report: Report) -> int:
    """Write one HTML page of what the hosts' own checks have found; run none."""
    from console.page import write_page

    return write_page(_run(flags, report), Path(flags.output))


@command(
    *HOSTS,
    "yes",
    "overwrite",
    agent=Flag(None, "an agent that was built elsewhere, for a machine without a package index"),
)
def schedule(flags: SimpleNamespace, report: Report) -> int:
    """Have the hosts run the health checks by timer or cron, as `ollama_health_every` says."""
    from console.schedule import schedule_asking

    return schedule_asking(_run(flags, report), _path(flags.agent), yes=flags.yes)


@command(
    "inventory",
    "limit",
    "forks",
    "json",
    lines=Flag(50, "how many of the last lines, of each host"),
    follow=Flag(False, "go on with the lines that come, until Ctrl-C"),
    journal=Flag(False, "who changed what on the hosts, and when, instead of the server's log"),
    since=Flag(None, "systemd: only what is newer, as in `journalctl --since`"),
)
def logs(flags: SimpleNamespace, report: Report) -> int:
    """Show the server's log of every host, or with --journal who changed what."""
    from console.logs import Wanted, show_logs

    wanted = Wanted(lines=flags.lines, since=flags.since, follow=flags.follow, journal=flags.journal)
    return show_logs(_run(flags, report), wanted)


@command(
    "inventory",
    "limit",
    "forks",
    "json",
    "yes",
    positional=["command"],
    command=Flag(None, "one shell line, quoted: 'nvidia-smi -L'"),
    timeout=Flag(60, "seconds after which the command is ended on a host"),
)
def run(flags: SimpleNamespace, report: Report) -> int:
    """Run one command on every selected host: as root on systemd hosts, else as the user who logs in."""
    from console.remote_run import run_asking

    return run_asking(_run(flags, report), flags.command, yes=flags.yes, timeout_seconds=flags.timeout)


@command("inventory", "limit", "forks", "json")
def gpu(flags: SimpleNamespace, report: Report) -> int:
    """Show every GPU's memory, driver and processes; no GPU is a failure unless ollama_gpu=none."""
    from console.gpu import show_gpus

    return show_gpus(_run(flags, report))


@command(
    "inventory",
    "json",
    positional=["host"],
    host=Flag(None, "hosts whose keys to trust: names, groups, globs, as in --limit"),
    yes=Flag(False, "trust without asking: only where you know the keys by another way"),
)
def trust(flags: SimpleNamespace, report: Report) -> int:
    """Show the SSH host keys that are not known yet, ask, and remember them."""
    from console.trust import trust_asking

    return trust_asking(report, flags.inventory, flags.host, yes=flags.yes)


@command(
    "inventory",
    "json",
    prompt=Flag(None, "one question (`chat [flags] TEXT` is the same); without it a talk, or standard input"),
    limit=Flag(None, "the one host to talk to"),
    model=Flag(None, "a name that the host serves (default: the first of its `ollama_models`)"),
    tools=Flag(None, "weather (a local stub) or database (read-only SQL)"),
    database=Flag(None, "SQLite file with Chinook's tables for --tools database"),
)
def chat(flags: SimpleNamespace, report: Report) -> int:
    """Talk to the model that a host serves, tools included."""
    from console.chat import ChatTask, chat
    from console.run import inventory_path

    return chat(
        ChatTask(
            report=report,
            inventory=inventory_path(flags.inventory),
            as_json=flags.json,
            limit=flags.limit,
            model=flags.model,
            tools=flags.tools,
            database=_path(flags.database),
            prompt=flags.prompt,
        )
    )


@command("inventory", "limit", list=Flag(False, "print the whole inventory as JSON"))
def inventory(flags: SimpleNamespace, _report: Report) -> None:
    """Print what `ansible-inventory --list` prints."""
    from console.views import show_inventory

    show_inventory(flags.inventory, flags.limit)


@command(
    "endpoint",
    "json",
    "yes",
    iterable=["model"],
    version=Flag(None, "the Ollama release to pin (default: the highest there, or none with --model)"),
    model=Flag(None, "only this model's weights; may be given several times (default: all not contained)"),
    pins=Flag(None, "pins.toml to write (default: modelfiles/pins.toml)"),
)
def pin(flags: SimpleNamespace, report: Report) -> int:
    """Resolve release, revisions, sizes and sha256 into pins.toml, each proven by a download."""
    from console.paths import MODELFILES
    from console.pin import PinTask, cache_directory, pin_asking

    wanted = PinTask(
        report=report,
        pins=_path(flags.pins) or MODELFILES / "pins.toml",
        cache=cache_directory(),
        version=flags.version,
        models=flags.model or (),
        endpoint=flags.endpoint,
    )
    return pin_asking(wanted, yes=flags.yes)


@command("json", "database", keep=Flag(False, "leave the server and the files where they are"))
def demo(flags: SimpleNamespace, report: Report) -> int:
    """The whole job on this machine against the testbed: no root, GPU or network."""
    from console.demo import run_demo

    return run_demo(report, keep=flags.keep, database=_path(flags.database))


@command(
    positional=["action"],
    iterable=["fault", "model"],
    action=Flag(None, "up, down, mirror or ollama"),
    hosts=Flag(4, "up: how many hosts, of four kinds in turn"),
    port=Flag(0, "loopback port to listen on"),
    directory=Flag(None, "mirror: serve OWNER/NAME/REVISION/files of this directory, not the embedded set"),
    script=Flag(None, "ollama: play the replies of this JSON file instead of the built-in ones"),
    fault=Flag(None, "ollama: misbehave (see `testbed/ollama.py --help`); may be given several times"),
    models=Flag(None, "ollama: the model store (default: a temporary one with ready models)"),
    model=Flag(None, "ollama: a further ready model; may be given several times"),
)
def testbed(flags: SimpleNamespace, report: Report) -> int:
    """A fleet to practise on: hosts on this machine (root), a ModelScope mirror, a simulated Ollama."""
    from console.testbed import serve

    given = {name: value for name, value in vars(flags).items() if name != "action"}
    return serve(flags.action, report.say, **given)


@command(
    "json",
    positional=["action"],
    action=Flag(
        None, "converge, scale, kills, cuts, faults, chaos, health, fleet-health, judge, rules or verdicts"
    ),
    hosts=Flag(4, "converge: how many hosts"),
    count=Flag(20, "kills, cuts: how often the host is killed; health: how often the agent runs"),
    seed=Flag(
        None, "kills, cuts, chaos: of all that is random (default: another one each time, which is told)"
    ),
    minutes=Flag(20.0, "chaos: how long; the round in which they are over is the last"),
    rounds=Flag(0, "chaos: how many rounds, instead of minutes"),
    from_round=Flag(1, "chaos: the first round, to play one again without those before it"),
)
def bench(flags: SimpleNamespace, report: Report) -> int:
    """For us: a converge beside others, a thousand hosts, hosts killed or harmed, the judge; pages."""
    from bench.run import run_bench

    given = {name: value for name, value in vars(flags).items() if name not in ("action", "json")}
    return run_bench(report, flags.action, **given)


@task(help={"pytest": "arguments for pytest in one string"})
def test(_context: Context, pytest: str = "") -> None:
    """Run every tier of the tests that this machine can run."""
    import shlex

    from tests.run import run_tests

    raise Exit(code=run_tests(shlex.split(pytest)))


@task
def check(_context: Context) -> None:
    """Lint, types, layers, shell scripts and the fast tests."""
    from tests.run import run_checks

    raise Exit(code=run_checks())
