"""The page of the metrics says what the code and the rules say."""

from __future__ import annotations

import re
from pathlib import Path

from healthchecks.metrics import METRICS, PREFIX
from tests.unit.test_dashboards import alerts

PAGE = (Path(__file__).resolve().parents[2] / "docs/metrics.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """The cells of the table whose first column is called so."""
    table = PAGE.split(f"\n| {heading} |", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_every_metric_is_in_the_table_in_its_order_with_labels_kind_and_meaning() -> None:
    assert rows("metric") == [
        [f"`{PREFIX}{name}`", ", ".join(f"`{label}`" for label in metric.labels), metric.kind, metric.text]
        for name, metric in METRICS.items()
    ]


def test_every_alert_is_in_the_table_with_its_severity() -> None:
    assert [row[:2] for row in rows("alert")] == [
        [f"`{rule['alert']}`", rule["labels"]["severity"]] for rule in alerts()
    ]


def test_what_the_page_shows_of_the_file_are_metrics_that_there_are() -> None:
    shown = PAGE.split("## What is in the file", 1)[1].split("```")[1]
    names = set(re.findall(r"\bollama_fleet_(\w+)", shown))
    assert len(names) > 5
    assert names <= set(METRICS)
