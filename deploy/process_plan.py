"""The service steps of the `process` backend, which starts and stops the server itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from deploy.desired import Desired
from deploy.facts import HostFacts, ServerProcess
from deploy.server_plan import (
    Release,
    damaged_blobs,
    environment_differences,
    hidden_gpus,
    previous_release,
    replaced_program,
    retired_process,
    server_environment,
)
from deploy.steps import Difference, StartServer, Step, StopServer, SwitchRelease


def process_steps(desired: Desired, facts: HostFacts, release: Release) -> Iterator[Step]:
    """Switch, stop and start: none of them on a host that is as desired."""
    version = release.name
    environment = server_environment(desired, facts, release)
    binary = desired.paths.release(version) / "bin/ollama"
    keep, differences = _kept_server(desired, facts, binary, environment)
    if keep is not None:
        differences = [*replaced_program(keep, facts, release), *retired_process(keep, desired)]
        keep = None if differences else keep
    if facts.current != version:
        change = Difference(what="current release", actual=facts.current, desired=version)
        yield SwitchRelease(
            reason=str(change), differences=(change,), previous=previous_release(facts), version=version
        )
    for server in facts.servers:
        if server is not keep:
            reason = "; ".join(map(str, differences)) or "a second server on the same store"
            yield StopServer(reason=reason, server=server)
    for runner in facts.orphans:
        yield StopServer(reason="a runner whose server is gone keeps its memory", server=runner)
    if keep is not None:
        return
    yield from damaged_blobs(desired, facts)
    reason = "; ".join(map(str, differences)) if facts.servers else "not running"
    yield StartServer(reason=reason, differences=tuple(differences), version=version, environment=environment)


def _kept_server(
    desired: Desired, facts: HostFacts, binary: PurePosixPath, environment: Mapping[str, str]
) -> tuple[ServerProcess | None, list[Difference]]:
    """The running server that is exactly as desired, else the differences of the first one."""
    first: list[Difference] | None = None
    for server in facts.servers:
        differences = _server_differences(desired, server, binary, environment)
        if not differences:
            return server, []
        first = first if first is not None else differences
    return None, first or []


def _server_differences(
    desired: Desired, server: ServerProcess, binary: PurePosixPath, environment: Mapping[str, str]
) -> list[Difference]:
    found = []
    if str(binary) not in server.command:
        running = next((word for word in server.command if word.endswith("/bin/ollama")), None)
        name = PurePosixPath(running).parent.parent.name if running else None
        found.append(Difference(what="running release", actual=name, desired=binary.parent.parent.name))
    found += hidden_gpus(desired, server, environment)
    return [*found, *environment_differences(server.environment, environment)]
