"""The page of the health checks says what the code says."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from healthchecks.health import CHECKS, Thresholds
from healthchecks.health_facts import FACTS, GPU_FACTS, MODEL_FACTS
from healthchecks.vulnerable import read_vulnerabilities

PAGE = (Path(__file__).resolve().parents[2] / "docs/health-checks.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """The cells of the table whose first column is called so."""
    table = PAGE.split(f"\n| {heading} |", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_every_check_is_in_the_table_in_its_order_with_what_it_watches() -> None:
    assert [(name.strip("`"), watches) for name, watches, *_ in rows("check")] == [
        (check.name, check.watches) for check in CHECKS
    ]


def test_every_threshold_is_in_the_table_with_its_default() -> None:
    assert [(name.strip("`"), value) for name, value in rows("threshold")] == [
        (one.name, str(one.default)) for one in dataclasses.fields(Thresholds)
    ]


def test_every_fact_is_in_the_table_with_its_meaning() -> None:
    assert {name.strip("`"): meaning for name, meaning in rows("fact")} == dict(FACTS)


def test_the_keys_of_models_and_gpus_are_listed() -> None:
    for mark, keys in (("Of a model: ", MODEL_FACTS), ("Of a GPU: ", GPU_FACTS)):
        line = PAGE.split(mark, 1)[1].splitlines()[0]
        assert set(re.findall(r"`(\w+)`", line)) == set(keys)


def test_the_floors_of_versions_are_those_of_the_list() -> None:
    [row] = [cells for cells in rows("check") if cells[0] == "`version`"]
    floors = {floor.state: floor.version for floor in read_vulnerabilities().floors}
    assert (floors["warn"] in row[2], floors["fail"] in row[3]) == (True, True)


def test_the_deadline_on_the_page_is_the_codes() -> None:
    from healthchecks.health import DEADLINE_SECONDS

    assert f"Every check has a deadline ({DEADLINE_SECONDS:g} s;" in PAGE
