"""A real Prometheus and a real node_exporter on loopback, with our alert rules at a quicker pace."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import pytest

from tests.contract.ollama_binaries import free_address

DASHBOARDS = Path(__file__).resolve().parents[2] / "dashboards"
RULES = DASHBOARDS / "alerts.yml"
NODE_EXPORTER = "prometheus-node-exporter"
"""Debian's and Ubuntu's name of it."""

SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
# `for: 6m`, `[30m]`, `offset 1h`: every duration of a rule.
_DURATION = re.compile(r"(?P<before>\bfor: |\[|\boffset )(?P<number>\d+)(?P<unit>ms|[smhd])\b")


def need(program: str) -> str:
    """Its path. Skips with a reason where it is absent; CI installs it: there it is a failure."""
    found = shutil.which(program)
    if found is not None:
        return found
    told = f"this machine has no `{program}`: apt install prometheus prometheus-node-exporter"
    if os.environ.get("CI"):
        pytest.fail(told)
    pytest.skip(told)


def quicker(rules: str, times: float) -> str:
    """The same rules with all durations so many times shorter."""

    def shorten(found: re.Match[str]) -> str:
        seconds = int(found["number"]) * SECONDS[found["unit"]] / times
        return f"{found['before']}{max(round(seconds * 1000), 1)}ms"

    return _DURATION.sub(shorten, rules)


@dataclass(frozen=True)
class Prometheus:
    """One that scrapes one node_exporter."""

    url: str
    log: Path

    def get(self, path: str, **parameters: str) -> Any:
        """`data` of an answer; raises OSError where there is none."""
        # Not by way of a proxy that the environment may name.
        opener = build_opener(ProxyHandler({}))
        with opener.open(f"{self.url}/api/v1/{path}?{urlencode(parameters)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        return list(self.get("query", query=expression)["result"])

    def value(self, expression: str) -> float | None:
        """Of the only series there is; None where there is none."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None

    def firing(self) -> set[tuple[str, str]]:
        """Names of alerts, with the check that they are about or nothing."""
        return {
            (alert["labels"]["alertname"], alert["labels"].get("check", ""))
            for alert in self.get("alerts")["alerts"]
            if alert["state"] == "firing"
        }


@contextmanager
def watch(directory: Path, textfiles: Path, *, times: float) -> Iterator[Prometheus]:
    """Scrapes and judges twice a second; ends both programs."""
    exporter, address = free_address(), free_address()
    (directory / "alerts.yml").write_text(quicker(RULES.read_text(), times))
    (directory / "prometheus.yml").write_text(
        "global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}\n"
        "rule_files: [alerts.yml]\n"
        f"scrape_configs: [{{job_name: node, static_configs: [{{targets: ['{exporter}']}}]}}]\n"
    )
    node_exporter = (
        *(need(NODE_EXPORTER), "--collector.disable-defaults", "--collector.textfile"),
        *(f"--collector.textfile.directory={textfiles}", f"--web.listen-address={exporter}"),
    )
    prometheus = (
        *(need("prometheus"), f"--config.file={directory / 'prometheus.yml'}"),
        *(f"--storage.tsdb.path={directory / 'tsdb'}", f"--web.listen-address={address}"),
    )
    running = []
    try:
        for command in (node_exporter, prometheus):
            with (directory / f"{Path(command[0]).name}.log").open("wb") as log:
                running.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=directory))
        found = Prometheus(f"http://{address}", directory / "prometheus.log")
        until("Prometheus answers", lambda: found.query("vector(1)"), log=found.log)
        yield found
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(20)


def until(what: str, holds: Callable[[], Any], *, log: Path, seconds: float = 30) -> None:
    """Ask until it holds. Raises AssertionError at the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if holds():
                return
        except OSError:
            pass
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s\n{log.read_text()[-2000:]}"
        time.sleep(0.05)
