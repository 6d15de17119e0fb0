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


def serve_ollama(
    port: int, *, script: str | None, models: str | None, names: Sequence[str], faults: Sequence[str]
) -> int:
    """`testbed ollama`: the simulated Ollama until Ctrl-C; its own exit code."""
    argv = ["serve", "--port", str(port)]
    argv += ["--script", script] if script else []
    argv += ["--models", models] if models else []
    for name in names:
        argv += ["--model", name]
    for fault in faults:
        argv += ["--fault", fault]
    return ollama.main(argv)


def serve_mirror(action: str, port: int, directory: str | None) -> int:
    """`testbed mirror`: a directory, or the demo's own repositories, until Ctrl-C."""
    if action != "mirror":
        raise UsageError(
            sentence=f"`testbed {action}` is no part of the testbed",
            unchanged="everything",
            hint="./fleet testbed mirror|ollama",
        )
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
