"""`testbed`: the embedded mirror and the simulated Ollama, each served until Ctrl-C."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from console.paths import CANARY
from console.run import refused_binary
from deploy.errors import PortTaken, UsageError
from testbed import mirror, ollama
from testbed.demo import UnusableBinary, chosen_server, demo_directory, embedded_repos
from testbed.mirror import MirrorRepo


def serve(
    action: str,
    *,
    port: int,
    directory: str | None,
    script: str | None,
    models: str | None,
    model: Sequence[str] | None,
    fault: Sequence[str] | None,
) -> int:
    """`testbed mirror` or `testbed ollama`, until Ctrl-C; returns the exit code."""
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
        hint="./fleet testbed mirror|ollama",
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
