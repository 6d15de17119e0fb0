"""Starting, awaiting and stopping the server; the `process` backend does not supervise it, and says so."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

import requests
import tenacity

from deploy import commands
from deploy.desired import Desired, HostPaths, ServiceBackend
from deploy.errors import CommandFailed, FleetError, PortTaken, ServiceError
from deploy.facts import ProcessId, ServerProcess
from deploy.ollama_api import OllamaApi
from deploy.transport import Transport

START_SECONDS = 60.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.05
# A look at the process costs the host more than a request that is refused, and the server needs its CPU now.
LOOK_SECONDS = 0.5
LOG_LINES = 15


def start_server(
    transport: Transport, paths: HostPaths, binary: PurePosixPath, environment: Mapping[str, str]
) -> None:
    """Start `ollama serve` and return at once; it counts as unproven until `confirm_server`.

    The release's own path is executed, not `current`: the command line then tells which release runs.
    """
    needed = (paths.server_home, paths.models_dir, paths.log.parent)
    made = transport.run(commands.prepare_process(paths.unproven, needed))
    if made.exit_code == 0:
        made = transport.run(commands.start_process(paths.log, environment, (str(binary), "serve")))
    if made.exit_code != 0:
        raise ServiceError(
            sentence=f"`{binary} serve` could not be started", host=transport.host, cause=made.last_words
        )


def confirm_server(transport: Transport, paths: HostPaths) -> None:
    """What runs is proven, or what ran before. Raises CommandFailed."""
    done = transport.run(commands.remove([paths.unproven]))
    if done.exit_code != 0:
        raise CommandFailed(
            sentence=f"`{paths.unproven}` could not be removed", host=transport.host, cause=done.last_words
        )


def wait_until_ready(transport: Transport, desired: Desired, is_alive: Callable[[], bool]) -> str:
    """Wait for an answer of `/api/version` and return the version.

    A connect proves nothing: the port listens before the server is ready (measured on 0.17.5), so this is a
    real request. Raises ServiceError with the end of the server's log when it dies or stays silent.
    """
    with transport.http_url(desired.url) as url:
        api = OllamaApi(transport.host, url)
        look_at = time.monotonic() + LOOK_SECONDS

        def ask() -> str:
            nonlocal look_at
            try:
                return api.version(timeout_seconds=5.0)
            except (requests.RequestException, ValueError, KeyError) as error:
                if time.monotonic() >= look_at:
                    if not is_alive():
                        raise _not_ready(transport, desired, "it exited") from error
                    look_at = time.monotonic() + LOOK_SECONDS
                raise

        try:
            return tenacity.Retrying(
                retry=tenacity.retry_if_exception_type((requests.RequestException, ValueError, KeyError)),
                stop=tenacity.stop_after_delay(START_SECONDS),
                wait=tenacity.wait_fixed(POLL_SECONDS),
                reraise=True,
            )(ask)
        except (requests.RequestException, ValueError, KeyError) as error:
            raise _not_ready(transport, desired, f"no answer within {START_SECONDS:g} s: {error}") from error


def end_of_log(transport: Transport, desired: Desired) -> str:
    """The last lines that the server wrote."""
    if desired.server.backend is ServiceBackend.SYSTEMD:
        argv = commands.unit_journal(["ollama.service"], LOG_LINES, output="cat")
    else:
        argv = commands.tail(desired.paths.log, LOG_LINES)
    return transport.run(argv).stdout.decode(errors="replace").strip()


def _not_ready(transport: Transport, desired: Desired, cause: str) -> FleetError:
    log = end_of_log(transport, desired)
    if "bind: address already in use" in log.rpartition("\n")[2]:
        # Free when the plan was made and taken since.
        return PortTaken(
            sentence=f"port `{desired.port}` was taken while the server started",
            host=transport.host,
            cause=log.rpartition("\n")[2],
            hint=f"./fleet plan --limit {transport.host} names the process, if it still listens",
        )
    return ServiceError(
        sentence=f"the server of release `{desired.server.version}` did not become ready",
        host=transport.host,
        cause=f"{cause}; the end of its log:\n{log}",
        hint=f"./fleet logs --limit {transport.host}",
    )


def check_version(host: str, expected: str, actual: str) -> None:
    """A tag is not a version: what runs must say what was pinned."""
    if actual.removeprefix("v") != expected.removeprefix("v"):
        raise ServiceError(
            sentence=f"the server of release `{expected}` says that it is another version",
            host=host,
            expected=expected,
            actual=actual,
            cause="the archive under this tag holds another build (seen: v0.5.8 held 0.5.8-rc10)",
            hint="pin another tag: ./fleet pin",
        )


def stop_server(transport: Transport, process: ProcessId) -> None:
    """SIGTERM, SIGKILL after 15 s; raises ServiceError if it survives that."""
    transport.stop(process, timeout_seconds=STOP_SECONDS)
    if transport.is_running(process):
        raise ServiceError(
            sentence=f"the server with pid `{process.pid}` does not end",
            host=transport.host,
            cause="it survived SIGTERM and SIGKILL; a driver call that hangs is usual",
            hint=f"cat /proc/{process.pid}/stack",
        )


def binary_of(server: ServerProcess) -> PurePosixPath | None:
    """The `bin/ollama` that a running server was started from."""
    return next((PurePosixPath(word) for word in server.command if word.endswith("/bin/ollama")), None)
