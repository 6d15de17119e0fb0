"""The fault matrix is whole: every row has a test or a reason, and its page says what the rows say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.faults import render_page
from tests.fault_rows import (
    NODE_PROPERTY,
    PAGE,
    ROW_PROPERTY,
    TESTS,
    Row,
    RowTest,
    marked_functions,
    missing_on_page,
    read_row_tests,
    read_rows,
    show_function,
    unshown,
)
from tests.run import TIERS

REPORT = f"""\
<testsuites><testsuite>
<testcase name="test_a[x]" time="1.5"><properties><property name="{ROW_PROPERTY}" value="1"/>
<property name="{ROW_PROPERTY}" value="2"/><property name="{NODE_PROPERTY}" value="tests/a.py::test_a[x]"/>
</properties></testcase>
<testcase name="test_b" time="0.25"><properties><property name="{ROW_PROPERTY}" value="2"/>
<property name="{NODE_PROPERTY}" value="tests/a.py::test_b"/></properties><failure message="no"/></testcase>
<testcase name="test_c" time="0"><properties><property name="{ROW_PROPERTY}" value="3"/>
<property name="{NODE_PROPERTY}" value="tests/a.py::test_c"/></properties>
<skipped message="no such machine"/></testcase>
<testcase name="test_d" time="9"/>
</testsuite></testsuites>
"""

ROWS = {
    n: Row(
        number=n,
        fault=f"fault {n}",
        end=f"end {n}",
        reason="needs a sun" if n == 5 else "",
        not_shown="the moon" if n == 1 else "",
    )
    for n in range(1, 6)
}


@pytest.fixture
def shown(tmp_path: Path) -> list[RowTest]:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    return list(read_row_tests(report))


def test_the_matrix_has_its_48_rows_and_every_one_has_a_test_or_a_reason() -> None:
    assert sorted(read_rows()) == list(range(1, 49))
    marked = {number for numbers in marked_functions().values() for number in numbers}
    assert [row.number for row in read_rows().values() if bool(row.reason) == (row.number in marked)] == []


def test_every_marked_test_is_in_a_tier_that_ci_runs() -> None:
    for function in marked_functions():
        assert Path(function).parts[1] in TIERS, function


def test_what_a_run_said_of_the_rows_is_read_from_its_report(shown: list[RowTest]) -> None:
    assert [(test.number, test.function, test.result, test.seconds, test.told) for test in shown] == [
        (1, "tests/a.py::test_a", "passed", 1.5, ""),
        (2, "tests/a.py::test_a", "passed", 1.5, ""),
        (2, "tests/a.py::test_b", "FAILED", 0.25, ""),
        (3, "tests/a.py::test_c", "skipped", 0.0, "no such machine"),
    ]


def test_a_row_whose_test_failed_was_skipped_or_is_missing_is_named(shown: list[RowTest]) -> None:
    assert unshown(ROWS, shown) == [
        "row 2, fault 2: tests/a.py::test_a[x] passed, tests/a.py::test_b FAILED",
        "row 3, fault 3: tests/a.py::test_c skipped",
        "row 4, fault 4: no test",
    ]


def test_the_page_has_every_row_with_its_tests_or_its_reason(shown: list[RowTest]) -> None:
    lines = render_page(ROWS, shown).splitlines()
    assert lines[-5:] == [
        "| 1 | fault 1 | end 1 | `tests/a.py`: a | 1 passed, not shown: the moon | 1.5 |",
        "| 2 | fault 2 | end 2 | `tests/a.py`: a<br>`tests/a.py`: b | 1 passed, 1 FAILED | 1.8 |",
        "| 3 | fault 3 | end 3 | `tests/a.py`: c | 1 skipped: no such machine | 0.0 |",
        "| 4 | fault 4 | end 4 | - | no test | - |",
        "| 5 | fault 5 | end 5 | - | needs a sun | - |",
    ]


def test_a_page_that_is_older_than_a_test_is_told(shown: list[RowTest]) -> None:
    page = render_page(ROWS, shown)
    assert missing_on_page(page, shown) == []
    (told,) = missing_on_page(page.replace("`tests/a.py`: c", "-"), shown)
    assert told == "docs/faults.md does not name `tests/a.py`: c in row 3: ./fleet bench faults"


def test_the_page_in_docs_has_every_row_and_only_tests_that_show_it() -> None:
    text = PAGE.read_text()
    for row in read_rows().values():
        (line,) = re.findall(rf"^\| {row.number} \| .*$", text, re.MULTILINE)
        assert line.startswith(f"| {row.number} | {row.fault} | {row.end} | "), "./fleet bench faults"
        shown = {show_function(name) for name, numbers in marked_functions().items() if row.number in numbers}
        told = re.findall(r"`tests/[^`]+`: [^<|]+?(?=<br>| \|)", line)
        assert set(told) <= shown, "./fleet bench faults"
        assert "FAILED" not in line
        assert row.not_shown in line, "./fleet bench faults"


def test_the_page_names_files_that_exist() -> None:
    for file in re.findall(r"`(tests/[^`]+\.py)`", PAGE.read_text()):
        assert (TESTS.parent / file).exists(), file
