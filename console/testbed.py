"""`testbed`: the practice fleet; the embedded mirror and the simulated Ollama, served until Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from console.paths import CANARY
from console.run import refused_binary
from console.testbed_hosts import take_fleet_down, take_fleet_up
from deploy.errors import PortTaken, UsageError
from testbed import mirror, ollama
from testbed.demo import UnusableBinary, chosen_server, demo_directory, embedded_repos
from testbed.mirror import MirrorRepo


def serve(
    action: str,
    tell: Callable[[str], None],
    *,
    port: int,
    directory: str | None,
    script: str | None,
    models: str | None,
    model: Sequence[str] | None,
    fault: Sequence[str] | None,
    hosts: int,
) -> int:
    """`testbed up` or `down`; `testbed mirror` or `ollama` until Ctrl-C. Returns the exit code."""
    if action == "up":
        return take_fleet_up(hosts, tell)
    if action == "down":
        return take_fleet_down(tell)
    if action == "ollama":
        given = [("--script", script), ("--models", models)]
        given += [("--model", name) for name in model or ()] + [("--fault", name) for name in fault or ()]
        words = [word for flag, value in given if value for word in (flag, value)]
        return ollama.main(["serve", "--port", str(port), *words])
    if action == "mirror":
        return _serve_mirror(port, directory)
    raise UsageError(
        sentence=f"`testbed {action}` is no part of the testbed",
        unchanged="everything",
        hint="./fleet testbed up|down|mirror|ollama",
    )


def _serve_mirror(port: int, directory: str | None) -> int:
    work = demo_directory().with_name("testbed")

    def embedded() -> Sequence[MirrorRepo]:
        return embedded_repos(work, CANARY, chosen_server())

    try:
        mirror.serve_mirror(
            port=port,
            directory=Path(directory) if directory else None,
            default_repos=embedded,
            log=lambda line: print(line, flush=True),
        )
    except UnusableBinary as error:
        raise refused_binary(error) from error
    except (OSError, OverflowError) as error:
        raise PortTaken(
            sentence=f"the mirror cannot listen on port `{port}`",
            cause=str(error),
            unchanged="everything",
            hint="give another --port, or none for a free one",
        ) from error
    except ValueError as error:
        raise UsageError(
            sentence=f"`--directory {directory}` holds nothing to serve",
            cause=str(error),
            unchanged="everything",
            hint="lay it out as OWNER/NAME/REVISION/files",
        ) from error
    return 0
