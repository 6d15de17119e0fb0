"""Metrics, alerts and dashboard with the real programs: promtool, node_exporter, Prometheus."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from healthchecks.health import HealthConfig, render_config
from tests.contract.ollama_binaries import SIMULATED, free_address, serve, wait_ready
from tests.contract.prometheus import DASHBOARDS, Prometheus, need, quicker, until, watch
from tests.contract.test_health_checks import canary_config, stored_weights
from tests.contract.test_smoke_suite import create_canary
from tests.unit.test_dashboards import dashboard_expressions

PROJECT = DASHBOARDS.parent


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [need("promtool"), *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_every_alert_fires_alone_and_resolves() -> None:
    done = promtool("test", "rules", DASHBOARDS / "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_rule_that_is_wrong_fails_its_test(tmp_path: Path) -> None:
    rules = (DASHBOARDS / "alerts.yml").read_text()
    shutil.copy(DASHBOARDS / "alerts_test.yml", tmp_path)
    (tmp_path / "alerts.yml").write_text(rules.replace("ollama_fleet_unit_active == 0", "up == 0"))
    done = promtool("test", "rules", tmp_path / "alerts_test.yml")
    assert (done.returncode, "OllamaUnitInactive" in done.stdout + done.stderr) == (1, True)


def test_the_rules_of_the_real_scrape_are_the_same_but_for_their_pace() -> None:
    rules = (DASHBOARDS / "alerts.yml").read_text()
    quick = quicker(rules, 360)
    assert quicker(rules, 1).count("360000ms") == rules.count("for: 6m")
    assert re.sub(r"\d+ms", "", quick) == re.sub(r"(for: |\[|offset )\d+[smhd]\b", r"\1", rules)
    assert "for: 1000ms" in quick


class Site:
    """A served canary whose host checks itself, one run at a time."""

    def __init__(self, root: Path, textfiles: Path) -> None:
        self.root, self.textfiles = root, textfiles
        self.directory = root / "var/lib/ollama-fleet/health"
        self.directory.mkdir(parents=True)
        self.program = root / "opt/ollama/releases/first/bin/ollama"
        self.program.parent.mkdir(parents=True)
        shutil.copy(SIMULATED, self.program)
        (root / "opt/ollama/current").symlink_to("releases/first")
        self.address = free_address()
        self._serving = ExitStack()

    def start(self) -> None:
        settings = {"OLLAMA_FLEET_ROOT": str(self.root)}
        server = self._serving.enter_context(
            serve(self.program, self.root / "state", self.address, **settings)
        )
        wait_ready(server)
        create_canary(server.url)
        self._config = HealthConfig(
            host="box",
            url=server.url,
            root=str(self.root),
            models_dir=str(server.models),
            current=str(self.root / "opt/ollama/current"),
            previous=str(self.root / "opt/ollama/previous"),
            release="first",
            backend="process",
            models=(canary_config(weights_sha256=stored_weights(server)),),
            textfile_dir=str(self.textfiles),
        )
        self.schedule(every_seconds=60)

    def schedule(self, every_seconds: float) -> None:
        """What the checks are told of their timer; there is none here."""
        config = replace(self._config, every_seconds=every_seconds)
        (self.directory / "config.json").write_text(json.dumps(render_config(config)))

    def stop(self) -> None:
        self._serving.close()

    def check(self, *flags: str) -> int:
        """As the timer does."""
        done = subprocess.run(
            [sys.executable, "-m", "healthchecks.agent", "run", self.directory, *flags],
            cwd=PROJECT,
            env={**os.environ, "JOURNAL_STREAM": ""},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode in (0, 2), done.stderr
        assert "write_metrics failed" not in done.stdout
        return done.returncode


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    textfiles = tmp_path / "textfiles"
    textfiles.mkdir()
    made = Site(tmp_path / "host", textfiles)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def prometheus(site: Site, tmp_path: Path) -> Iterator[Prometheus]:
    directory = tmp_path / "prometheus"
    directory.mkdir()
    # Six minutes are one second.
    with watch(directory, site.textfiles, times=360) as found:
        yield found


def test_a_server_that_is_stopped_fires_alerts_that_resolve_once_it_serves_again(
    site: Site, prometheus: Prometheus
) -> None:
    def runs() -> float | None:
        return prometheus.value("ollama_fleet_runs_total")

    def is_firing(*alerts: tuple[str, str]) -> bool:
        return set(alerts) <= prometheus.firing()

    assert site.check() == 0
    until("scraped", lambda: runs() == 1, log=prometheus.log)
    assert prometheus.value('ollama_fleet_check_success{check="toolcall"}') == 1
    assert prometheus.value("ollama_fleet_toolcall_success") == 1
    assert prometheus.value("ollama_fleet_model_digest_match") == 1
    assert prometheus.value("node_textfile_scrape_error") == 0
    for expression in dashboard_expressions():
        prometheus.query(expression)

    site.stop()
    assert [site.check("--quick"), site.check("--quick")] == [2, 2]
    wanted = (("OllamaCheckFailed", "api"), ("OllamaCheckFailed", "service"), ("OllamaUnitInactive", ""))
    until("the alerts fire", lambda: is_firing(*wanted), log=prometheus.log)
    assert prometheus.value('ollama_fleet_check_failures_total{check="api"}') == 2

    site.start()
    assert site.check() == 0
    until("they resolve", lambda: not set(wanted) & prometheus.firing(), log=prometheus.log)

    # Once a second, and nobody does.
    site.schedule(every_seconds=1)
    site.check("--quick")
    silent = (("OllamaChecksSilent", ""), ("OllamaTextfileStale", ""))
    until("silence is told", lambda: is_firing(*silent), log=prometheus.log)
    (site.textfiles / "other.prom").write_text("half a line {")
    until("a broken file is told", lambda: is_firing(("OllamaTextfileError", "")), log=prometheus.log)
    (site.textfiles / "other.prom").unlink()
    site.schedule(every_seconds=60)
    site.check("--quick")
    ended = {*silent, ("OllamaTextfileError", "")}
    until("all is well again", lambda: not ended & prometheus.firing(), log=prometheus.log)

    counted = runs()
    assert counted is not None
    assert counted >= 5
    assert prometheus.value("resets(ollama_fleet_runs_total[5m])") == 0
    assert prometheus.value('resets(ollama_fleet_check_failures_total{check="api"}[5m])') == 0
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) > 20
    assert {rule["health"] for rule in rules} == {"ok"}
