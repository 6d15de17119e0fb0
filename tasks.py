"""The commands: each parses its flags, calls the wiring and ends with the exit code. No logic lives here.

Imports of our own are made inside the tasks: `./fleet --list` must not pay for what it does not use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from invoke import Context, Exit, task

if TYPE_CHECKING:
    from console.run import Run
    from deploy.plan import Selection
    from deploy.report import Report

_HELP = {
    "inventory": "Ansible INI file (default: inventory.ini here, else the project's)",
    "limit": "hosts: names, groups, globs, `:`, `!`, `&`, as in Ansible",
    "forks": "hosts at once",
    "json": "one JSON event a line on standard output",
    "yes": "make the changes without asking",
    "pins": "pins.toml to use (default: the one beside the inventory, else modelfiles/pins.toml)",
    "database": "SQLite file with Chinook's tables for the ask_database case",
    "verify": "run the tool-call suite even when nothing had to change",
    "endpoint": "the mirror's URL (default: $MODELSCOPE_ENDPOINT, else https://modelscope.cn)",
}


def _help(*names: str, **more: str) -> dict[str, str]:
    return {name: _HELP[name] for name in ("inventory", "limit", "forks", "json", "pins", *names)} | more


@contextmanager
def _reporting(as_json: bool, inventory: str | None = None) -> Iterator[Report]:
    """Turns designed errors into their text, their event and their exit code."""
    from deploy.errors import FleetError, designed_error
    from deploy.report import Report

    report = Report(as_json=as_json, inventory=inventory)
    try:
        yield report
    except KeyboardInterrupt:
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


def _run(
    report: Report, inventory: str | None, limit: str | None, forks: int, pins: str | None, **more: Any
) -> Run:
    import threading

    from console.run import Run, make_sources

    sources = make_sources(inventory, pins)
    return Run(
        report=report, sources=sources, limit=limit, forks=forks, stop_requested=threading.Event(), **more
    )


def _end(code: int) -> None:
    if code:
        raise Exit(code=code)


@task(help=_help(exit_code="exit 3 when there is something to change"))
def plan(
    c: Context,
    inventory: str | None = None,
    limit: str | None = None,
    forks: int = 10,
    json: bool = False,
    pins: str | None = None,
    exit_code: bool = False,
) -> None:
    """Show what deploy would change; change nothing."""
    from console.changes import show_plans

    with _reporting(json, inventory) as report:
        code = show_plans(_run(report, inventory, limit, forks, pins), drift_code=exit_code)
    _end(code)


def _deploy(name: str, selection: Callable[[], Selection], **given: Any) -> None:
    from pathlib import Path

    from console.changes import deploy_asking

    with _reporting(given["json"], given["inventory"]) as report:
        database = given.get("database")
        run = _run(
            report,
            given["inventory"],
            given["limit"],
            given["forks"],
            given["pins"],
            endpoint=given.get("endpoint"),
            database=Path(database) if database else None,
        )
        code = deploy_asking(run, name, selection(), yes=given["yes"], verify=given.get("verify", False))
    _end(code)


@task(help=_help("yes", "verify", "database", "endpoint"))
def deploy(
    c: Context,
    inventory: str | None = None,
    limit: str | None = None,
    forks: int = 10,
    json: bool = False,
    yes: bool = False,
    pins: str | None = None,
    verify: bool = False,
    database: str | None = None,
    endpoint: str | None = None,
) -> None:
    """Make the hosts as desired: fetch, install, service, model, verify, promote."""
    from deploy.plan import everything

    given = {key: value for key, value in locals().items() if key not in ("c", "everything")}
    _deploy("deploy", lambda: everything, **given)


@task(help=_help("yes", "endpoint"))
def install(
    c: Context,
    inventory: str | None = None,
    limit: str | None = None,
    forks: int = 10,
    json: bool = False,
    yes: bool = False,
    pins: str | None = None,
    endpoint: str | None = None,
) -> None:
    """Fetch the server's archive and unpack it into a release directory."""
    from deploy.plan import only_install

    given = {key: value for key, value in locals().items() if key not in ("c", "only_install")}
    _deploy("install", lambda: only_install, **given)


@task(help=_help("yes", "endpoint"))
def download(
    c: Context,
    inventory: str | None = None,
    limit: str | None = None,
    forks: int = 10,
    json: bool = False,
    yes: bool = False,
    pins: str | None = None,
    endpoint: str | None = None,
) -> None:
    """Fetch the weights."""
    from deploy.plan import only_download

    given = {key: value for key, value in locals().items() if key not in ("c", "only_download")}
    _deploy("download", lambda: only_download, **given)


@task(help=_help("yes", action="converge (default), start, stop or restart"), positional=["action"])
def service(
    c: Context,
    action: str,
    inventory: str | None = None,
    limit: str | None = None,
    forks: int = 10,
    json: bool = False,
    yes: bool = False,
    pins: str | None = None,
) -> None:
    """Run the server as desired: switch, start, stop, restart. The `process` backend does not supervise."""
    from console.changes import service_asking

    with _reporting(json, inventory) as report:
        code = service_asking(_run(report, inventory, limit, forks, pins), action, yes=yes)
    _end(code)


@task(help=_help("yes", "database"))
def create(
    c: Context,
    inventory: str | None = None,
    limit: str | None = None,
    forks: int = 10,
    json: bool = False,
    yes: bool = False,
    pins: str | None = None,
    database: str | None = None,
) -> None:
    """Create the models as candidates, verify and promote them."""
    from deploy.plan import only_create

    given = {key: value for key, value in locals().items() if key not in ("c", "only_create")}
    _deploy("create", lambda: only_create, **given)


@task(
    help={
        "model": "name in modelfiles/models.toml (default: myqwen2)",
        "as-published": "the article's own Modelfile, for comparison",
        "json": _HELP["json"],
    },
    positional=["model"],
)
def render(c: Context, model: str, as_published: bool = False, json: bool = False) -> None:
    """Print a model's Modelfile; refuse one that would hide tools or calls."""
    from console.views import show_modelfile

    with _reporting(json) as report:
        show_modelfile(report, model, as_published=as_published)


@task(help=_help("database", case="only this case; may be given several times"), iterable=["case"])
def smoke(
    c: Context,
    inventory: str | None = None,
    limit: str | None = None,
    forks: int = 10,
    json: bool = False,
    pins: str | None = None,
    database: str | None = None,
    case: list[str] | None = None,
) -> None:
    """Run the tool-call suite over /v1 against every served model."""
    from pathlib import Path

    from console.views import show_smoke

    with _reporting(json, inventory) as report:
        run = _run(report, inventory, limit, forks, pins, database=Path(database) if database else None)
        code = show_smoke(run, case or None)
    _end(code)


@task(help=_help(exit_code="exit 3 when a host differs from what is desired"))
def status(
    c: Context,
    inventory: str | None = None,
    limit: str | None = None,
    forks: int = 10,
    json: bool = False,
    pins: str | None = None,
    exit_code: bool = False,
) -> None:
    """Say what every host serves and how it differs from what is desired."""
    from console.views import show_status

    with _reporting(json, inventory) as report:
        code = show_status(_run(report, inventory, limit, forks, pins), drift_code=exit_code)
    _end(code)


@task(help=_help("yes", models="the model store too, where it lies below our own root"))
def remove(
    c: Context,
    inventory: str | None = None,
    limit: str | None = None,
    forks: int = 10,
    json: bool = False,
    yes: bool = False,
    pins: str | None = None,
    models: bool = False,
) -> None:
    """Take away everything we made on the hosts; models are kept unless asked."""
    from console.changes import remove_asking

    with _reporting(json, inventory) as report:
        code = remove_asking(_run(report, inventory, limit, forks, pins), yes=yes, models=models)
    _end(code)


@task(help={name: _HELP[name] for name in ("inventory", "limit", "forks", "json")})
def gpu(
    c: Context, inventory: str | None = None, limit: str | None = None, forks: int = 10, json: bool = False
) -> None:
    """Show every GPU's memory, driver and processes; no GPU is a failure unless ollama_gpu=none."""
    from console.gpu import show_gpus

    with _reporting(json, inventory) as report:
        code = show_gpus(_run(report, inventory, limit, forks, pins=None))
    _end(code)


@task(
    help={
        "prompt": "one question (`chat [flags] TEXT` is the same); without it a talk, or standard input",
        "model": "a name that the host serves (default: the first of its `ollama_models`)",
        "tools": "weather (a local stub) or database (read-only SQL)",
        "database": "SQLite file with Chinook's tables for --tools database",
        "limit": "the one host to talk to",
    }
    | {name: _HELP[name] for name in ("inventory", "json")}
)
def chat(
    c: Context,
    prompt: str | None = None,
    inventory: str | None = None,
    limit: str | None = None,
    json: bool = False,
    model: str | None = None,
    tools: str | None = None,
    database: str | None = None,
) -> None:
    """Talk to the model that a host serves, tools included."""
    from pathlib import Path

    with _reporting(json, inventory) as report:
        from console.chat import ChatTask, chat
        from console.run import inventory_path

        task = ChatTask(
            report=report,
            inventory=inventory_path(inventory),
            as_json=json,
            limit=limit,
            model=model,
            tools=tools,
            database=Path(database) if database else None,
            prompt=prompt,
        )
        code = chat(task)
    _end(code)


@task(
    help={
        "inventory": _HELP["inventory"],
        "limit": _HELP["limit"],
        "list": "print the whole inventory as JSON",
    }
)
def inventory(c: Context, inventory: str | None = None, limit: str | None = None, list: bool = False) -> None:
    """Print what `ansible-inventory --list` prints."""
    from console.views import show_inventory

    with _reporting(as_json=False):
        show_inventory(inventory, limit)


@task(
    help={
        "version": "the Ollama release to pin (default: the highest on the mirror, or none with --model)",
        "model": "only this model's weights; may be given several times (default: all not contained here)",
        "pins": "pins.toml to write (default: modelfiles/pins.toml)",
        "endpoint": _HELP["endpoint"],
        "json": _HELP["json"],
        "yes": _HELP["yes"],
    },
    iterable=["model"],
)
def pin(
    c: Context,
    version: str | None = None,
    model: list[str] | None = None,
    pins: str | None = None,
    endpoint: str | None = None,
    json: bool = False,
    yes: bool = False,
) -> None:
    """Resolve release, revisions, sizes and sha256 into pins.toml, each proven by a download."""
    from pathlib import Path

    from console.paths import MODELFILES
    from console.pin import PinTask, cache_directory, pin_asking

    with _reporting(json) as report:
        task = PinTask(
            report=report,
            pins=Path(pins) if pins else MODELFILES / "pins.toml",
            cache=cache_directory(),
            version=version,
            models=model or (),
            endpoint=endpoint,
        )
        code = pin_asking(task, yes=yes)
    _end(code)


@task(
    help={
        "keep": "leave the server and the files where they are",
        "json": _HELP["json"],
        "database": _HELP["database"],
    }
)
def demo(c: Context, keep: bool = False, json: bool = False, database: str | None = None) -> None:
    """The whole job on this machine against the testbed: no root, GPU or network."""
    from pathlib import Path

    from console.demo import run_demo

    with _reporting(json) as report:
        code = run_demo(report, keep=keep, database=Path(database) if database else None)
    _end(code)


@task(
    help={
        "action": "mirror or ollama",
        "port": "loopback port to listen on",
        "directory": "mirror: serve OWNER/NAME/REVISION/files of this directory instead of the embedded set",
        "script": "ollama: play the replies of this JSON file instead of the built-in ones",
        "fault": "ollama: misbehave (see `testbed/ollama.py --help`); may be given several times",
        "models": "ollama: the model store (default: a temporary one with ready models)",
        "model": "ollama: a further ready model; may be given several times",
    },
    positional=["action"],
    iterable=["fault", "model"],
)
def testbed(
    c: Context,
    action: str,
    port: int = 0,
    directory: str | None = None,
    script: str | None = None,
    fault: list[str] | None = None,
    models: str | None = None,
    model: list[str] | None = None,
) -> None:
    """A fleet to practise on: an embedded ModelScope mirror, a simulated Ollama."""
    from console.testbed import serve_mirror, serve_ollama

    with _reporting(as_json=False):
        if action == "ollama":
            _end(serve_ollama(port, script=script, models=models, names=model or [], faults=fault or []))
        else:
            _end(serve_mirror(action, port, directory))


@task(help={"pytest": "arguments for pytest in one string"})
def test(c: Context, pytest: str = "") -> None:
    """Run every tier of the tests that this machine can run."""
    from tests.run import run_tests

    _end(run_tests(pytest.split()))


@task
def check(c: Context) -> None:
    """Lint, types, layers, shell scripts and the fast tests."""
    from tests.run import run_checks

    _end(run_checks())
