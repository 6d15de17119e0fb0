"""The soak window: a server that was just started must live and answer for a while before it is confirmed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import requests

from deploy.apply import Site
from deploy.desired import ServiceBackend
from deploy.errors import FleetError, ServiceError
from deploy.facts import HostFacts, ProcessId
from deploy.ollama_api import OllamaApi
from deploy.services import end_of_log
from deploy.steps import EnableUnits, EndLease, Phase, StartServer, Step, phase_of
from deploy.systemd_plan import main_server

POLL_SECONDS = 1.0
ANSWER_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """The process that must not end, and since when it has been watched, by this machine's own clock."""

    process: ProcessId
    since: float

    @property
    def age_seconds(self) -> float:
        return time.monotonic() - self.since


def confirmed_at(steps: Sequence[Step]) -> int | None:
    """Before which step the window is waited for: what confirms a server that the steps start.

    The end of the lease; without one what has it start at every boot, or the promotion; without those the end
    of all steps. None where no server is started and no lease is open.
    """
    ends = [number for number, step in enumerate(steps) if isinstance(step, EndLease)]
    if ends:
        return ends[0]
    if not any(isinstance(step, StartServer) for step in steps):
        return None
    confirms = (
        number
        for number, step in enumerate(steps)
        if isinstance(step, EnableUnits) or phase_of(step) is Phase.PROMOTE
    )
    return next(confirms, len(steps))


def watch(site: Site, facts: HostFacts) -> Watched | None:
    """The server that runs now; None where none does."""
    server = main_server(facts) if site.desired.server.backend is ServiceBackend.SYSTEMD else None
    if site.desired.server.backend is ServiceBackend.PROCESS and facts.servers:
        server = facts.servers[0]
    return None if server is None else Watched(process=server.process, since=time.monotonic())


def soak(
    site: Site,
    watched: Watched | None,
    seconds: float,
    stop_requested: threading.Event,
    stop_if_asked: Callable[[], None],
) -> None:
    """Wait until the watched server has been up for so long; what its verification took counts.

    Raises ServiceError when it ends or is silent, and what `stop_if_asked` raises.
    """
    if watched is None:
        raise _ended(site, "before it was looked at", seconds)
    left = seconds - watched.age_seconds
    site.emit("soak", seconds=seconds, left_seconds=round(max(left, 0.0), 1))
    while True:
        # Asked for before it is looked at: a look at the very end counts.
        left = seconds - watched.age_seconds
        _check_lives(site, watched, seconds)
        if left <= 0:
            return
        stop_requested.wait(min(POLL_SECONDS, left))
        stop_if_asked()


def _check_lives(site: Site, watched: Watched, seconds: float) -> None:
    try:
        with site.transport.http_url(site.desired.url) as url:
            OllamaApi(site.host, url).version(ANSWER_SECONDS)
        silence = None
    except (requests.RequestException, ValueError, KeyError) as error:
        silence = error
    # Asked even after an answer: the one who answers may be another, started again by systemd.
    if not site.transport.is_running(watched.process):
        raise _ended(site, f"{watched.age_seconds:.1f} s after its start", seconds)
    if silence is not None:
        raise ServiceError(
            sentence=f"the server of release `{site.desired.server.version}` does not answer any more",
            host=site.host,
            cause=f"{watched.age_seconds:.1f} s after its start; it is watched for {seconds:g} s: {silence}; "
            f"the end of its log:\n{end_of_log(site.transport, site.desired)}",
            hint=f"./fleet logs --limit {site.host}",
        )


def _ended(site: Site, when: str, seconds: float) -> FleetError:
    return ServiceError(
        sentence=f"the server of release `{site.desired.server.version}` ended {when}",
        host=site.host,
        cause=f"it is watched for {seconds:g} s; the end of its log:\n"
        f"{end_of_log(site.transport, site.desired)}",
        hint=f"./fleet logs --limit {site.host}",
    )
