"""Alert rules and dashboard against the metrics that there are: names, labels, pages, tests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from healthchecks.health import CHECKS
from healthchecks.metrics import METRICS, PREFIX
from healthchecks.xid import ALL_CODES

PROJECT = Path(__file__).resolve().parents[2]
DASHBOARDS = PROJECT / "dashboards"
# Of node_exporter itself.
OTHERS = {"node_textfile_mtime_seconds", "node_textfile_scrape_error"}

_NAME = re.compile(r"\b(?:ollama_fleet|node)_\w+")
_SELECTOR = re.compile(r"\b(?P<name>ollama_fleet_\w+)\{(?P<labels>[^}]*)\}")


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((DASHBOARDS / "grafana.json").read_text())
    return document


def dashboard_expressions() -> list[str]:
    """With everything selected, as Prometheus gets them."""
    found = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    found += [one["expr"] for one in dashboard()["annotations"]["list"]]
    return [
        expression.replace("$__rate_interval", "5m")
        .replace("$__interval", "1m")
        .replace("$instance", ".*")
        .replace("$model", ".*")
        for expression in found
    ]


def alerts() -> list[dict[str, Any]]:
    document = yaml.safe_load((DASHBOARDS / "alerts.yml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def label_faults(expression: str) -> Iterator[str]:
    for found in _SELECTOR.finditer(expression):
        promised = {*METRICS[found["name"].removeprefix(PREFIX)].labels, "instance", "job"}
        for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", found["labels"]):
            if label not in promised:
                yield f"{found['name']} has no label {label}"


@pytest.mark.parametrize(
    "expression", [*dashboard_expressions(), *(rule["expr"] for rule in alerts())], ids=lambda text: text[:60]
)
def test_every_expression_uses_metrics_and_labels_that_there_are(expression: str) -> None:
    names = set(_NAME.findall(expression))
    assert names
    assert names <= {PREFIX + name for name in METRICS} | OTHERS
    assert list(label_faults(expression)) == []


def test_a_label_that_no_metric_has_is_found() -> None:
    assert list(label_faults('ollama_fleet_model_present{modell="a", instance="b"}')) == [
        "ollama_fleet_model_present has no label modell"
    ]


def test_every_alert_says_what_it_is_about_and_leads_to_a_heading() -> None:
    page = (PROJECT / "docs/health-checks.md").read_text()
    headings = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ +(.+)$", page, re.MULTILINE)
    }
    assert {check.name for check in CHECKS} <= headings, "an alert for any check leads to its heading"
    for rule in alerts():
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}, rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        path, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert path == "docs/health-checks.md"
        assert anchor in headings | {"{{ $labels.check }}"}, rule["alert"]


def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    document = yaml.safe_load((DASHBOARDS / "alerts_test.yml").read_text())
    fires, rests = set(), set()
    for test in document["tests"]:
        found = [one["exp_alerts"] for one in test.get("alert_rule_test", ())]
        found += [one["exp_samples"] for one in test.get("promql_expr_test", ())]
        if any(found):
            fires.add(test["name"])
        if not found[-1]:
            rests.add(test["name"])
        for samples in found:
            for sample in samples:
                labels = str(sample.get("labels", test["name"]))
                assert test["name"] in labels
    names = {rule["alert"] for rule in alerts()}
    assert len(names) == len(alerts())
    assert fires == names
    assert names < rests


def test_the_alert_on_xids_has_those_of_broken_and_repaired_cards() -> None:
    (rule,) = [rule for rule in alerts() if rule["alert"] == "OllamaGpuXid"]
    codes = {int(code) for code in re.findall(r"== (\d+)", rule["expr"])}
    assert codes == set(ALL_CODES) - {13, 31, 43}


def test_the_dashboard_is_one_that_grafana_takes_with_any_data_source() -> None:
    document = dashboard()
    assert document["schemaVersion"] >= 36
    variables = {variable["name"]: variable for variable in document["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert set(variables) == {"datasource", "instance", "model"}
    panels = document["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24


def test_no_two_panels_of_the_dashboard_lie_on_each_other() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard()["panels"]:
        grid = panel["gridPos"]
        for x in range(grid["x"], grid["x"] + grid["w"]):
            for y in range(grid["y"], grid["y"] + grid["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
