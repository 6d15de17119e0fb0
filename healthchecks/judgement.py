"""What a health check is given, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, Callable, TypeVar

from healthchecks.health_config import HealthConfig
from healthchecks.health_report import HealthReport, State
from healthchecks.host_view import HostView, Process
from healthchecks.nvml import GpuReading

Value = TypeVar("Value")


class Effort(str, Enum):
    """How much a run may cost the host."""

    LOOK = "look"
    """Asks and reads: below a second of CPU, and no request that a model has to answer."""

    GENERATE = "generate"
    """Lets the models say something and call a tool, too; loads one that is not loaded."""


@dataclass(frozen=True)
class Judgement:
    """A check's answer; `facts` go into the report's (`healthchecks.health_facts`)."""

    state: State
    reason: str
    hint: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Look:
    """What all checks of one run share; `previous` is the report of the run before, if there is one.

    What several of them need is asked for once.
    """

    config: HealthConfig
    host: HostView
    now: datetime
    deadline_seconds: float
    previous: HealthReport | None = None
    known: dict[str, Any] = field(default_factory=dict)

    def gpus(self) -> GpuReading:
        """What NVML says, with a deadline of its own: a driver that hangs is a finding."""
        deadline_seconds = self.config.thresholds.gpu_deadline_seconds
        return self.once("gpus", lambda: self.host.gpus(deadline_seconds))

    def processes(self) -> tuple[Process, ...]:
        return self.once("processes", lambda: tuple(self.host.processes()))

    def previous_fact(self, name: str) -> Any:
        """What the run before found, None without one."""
        return None if self.previous is None else self.previous.facts.get(name)

    def once(self, name: str, ask: Callable[[], Value]) -> Value:
        """What `ask` answered to the first check of this run that wanted to know."""
        if name not in self.known:
            self.known[name] = ask()
        found: Value = self.known[name]
        return found


@dataclass(frozen=True)
class HealthCheck:
    """One check of the list: `watches` says in a few words what it looks at.

    `concerns` tells the hosts that have it. `deadline_seconds` None is the run's own.
    """

    name: str
    watches: str
    judge: Callable[[Look], Judgement]
    effort: Effort = Effort.LOOK
    concerns: Callable[[HealthConfig], bool] = lambda _: True
    deadline_seconds: Callable[[HealthConfig], float | None] = lambda _: None


def is_gpu_host(config: HealthConfig) -> bool:
    """Whether the inventory wants an NVIDIA GPU to be used here."""
    return config.gpu == "nvidia"
