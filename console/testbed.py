"""`testbed`: the embedded mirror and the simulated Ollama, each served until Ctrl-C."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from console.paths import CANARY
from deploy.errors import PortTaken, UsageError
from testbed.demo import demo_directory, embedded_repos
from testbed.mirror import MirrorRepo, serve_mirror


def run_testbed(
    action: str, port: int, directory: str | None, script: str | None, faults: list[str], models: str | None
) -> int:
    """`testbed mirror` and `testbed ollama`; both serve until Ctrl-C."""
    if action == "mirror":
        return _serve_mirror(port, Path(directory) if directory else None)
    if action == "ollama":
        from testbed import ollama

        argv = ["serve", "--port", str(port)]
        argv += ["--script", script] if script else []
        argv += ["--models", models] if models else []
        for fault in faults:
            argv += ["--fault", fault]
        return ollama.main(argv)
    raise UsageError(
        sentence=f"`testbed {action}` is no part of the testbed",
        unchanged="everything",
        hint="./fleet testbed mirror|ollama",
    )


def _serve_mirror(port: int, directory: Path | None) -> int:
    work = demo_directory().with_name("testbed")

    def embedded() -> Sequence[MirrorRepo]:
        return embedded_repos(work, CANARY)

    try:
        serve_mirror(
            port=port, directory=directory, default_repos=embedded, log=lambda line: print(line, flush=True)
        )
    except OSError as error:
        raise PortTaken(
            sentence=f"the mirror cannot listen on port `{port}`",
            cause=error.strerror,
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
