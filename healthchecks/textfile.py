"""The metrics of a run as a file for node_exporter's textfile collector, and the counters between runs.

The collector reads `*.prom`, refuses timestamps, and must never see half a file:
https://github.com/prometheus/node_exporter#textfile-collector. `prometheus_client` writes and renames.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from healthchecks.health_config import HealthConfig
from healthchecks.health_report import HealthReport
from healthchecks.json_fields import parse_fields
from healthchecks.metrics import COUNTER, METRICS, PREFIX, Counters, Sample, collect_samples, count_run
from healthchecks.results import replace_file

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

NAME = "ollama_fleet.prom"
COUNTERS = "counters.json"
DEBIAN_DIRECTORY = "var/lib/prometheus/node-exporter"
"""Where the packages of Debian and Ubuntu have node_exporter look, below the root."""


class Run(Protocol):
    """What the agent hands to its outputs."""

    @property
    def directory(self) -> Path: ...
    @property
    def config(self) -> HealthConfig: ...
    @property
    def report(self) -> HealthReport: ...


def write_metrics(run: Run) -> None:
    """Into the directory of the health checks, and into node_exporter's where there is one.

    Raises:
        OSError: one of them cannot be written, or the directory that the inventory names is not there.
    """
    counters = count_run(read_counters(run.directory / COUNTERS), run.report)
    replace_file(run.directory / COUNTERS, (json.dumps(dataclasses.asdict(counters)) + "\n").encode())
    samples = tuple(collect_samples(run.config, run.report, counters))
    for directory in (run.directory, *textfile_directories(run.config)):
        write_textfile(directory / NAME, samples)


def textfile_directories(config: HealthConfig) -> tuple[Path, ...]:
    """The one that the inventory names, there or not; else Debian's where node_exporter is installed."""
    if config.textfile_dir is not None:
        return (Path(config.textfile_dir),)
    usual = Path(config.root) / DEBIAN_DIRECTORY
    return (usual,) if usual.is_dir() else ()


def write_textfile(path: Path, samples: Iterable[Sample]) -> None:
    """By rename, readable for node_exporter's own user."""
    from prometheus_client import write_to_textfile

    # Of a run that was killed while it wrote.
    for cut in path.parent.glob(f"{path.name}.*"):
        cut.unlink(missing_ok=True)
    with _readable_for_all():
        write_to_textfile(str(path), make_registry(samples))


def make_registry(samples: Iterable[Sample]) -> CollectorRegistry:
    """A registry that has these samples and nothing of the process itself."""
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Samples(samples))
    return registry


class _Samples:
    """Families in the order of METRICS."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._by_name: dict[str, list[Sample]] = {name: [] for name in METRICS}
        for sample in samples:
            self._by_name[sample.name].append(sample)

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for name, samples in self._by_name.items():
            metric = METRICS[name]
            make = CounterMetricFamily if metric.kind == COUNTER else GaugeMetricFamily
            family = make(PREFIX + name, metric.text, labels=metric.labels)
            for sample in samples:
                family.add_metric(sample.labels, float(sample.value))
            if samples:
                yield family


def read_counters(path: Path) -> Counters:
    """All zero where there are none: a counter that begins anew is what Prometheus expects of a new host."""
    try:
        fields = parse_fields(json.loads(path.read_text()), "the counters")
        return Counters(
            fields.whole("runs"),
            {str(check): int(count) for check, count in fields.mapping("failures").items()},
            {str(check): int(count) for check, count in fields.mapping("consecutive_failures").items()},
            {str(check): float(at) for check, at in fields.mapping("last_success_seconds").items()},
        )
    except (OSError, ValueError, TypeError):
        return Counters()


@contextmanager
def _readable_for_all() -> Iterator[None]:
    """The unit's own umask keeps what it writes to root."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)
