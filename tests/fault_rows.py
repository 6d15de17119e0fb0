"""The rows of the fault matrix, the tests that show them, and what a run of those tests said.

A test says `@pytest.mark.fault(1, 14)`; `tests/conftest.py` writes the numbers into pytest's own JUnit
report, from which `./fleet test` and `./fleet bench faults` read them again.
"""

from __future__ import annotations

import ast
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROWS_FILE = TESTS / "faults.toml"
PAGE = TESTS.parent / "docs" / "faults.md"
ROW_PROPERTY, NODE_PROPERTY = "fault", "fault-test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fault, the state that it must end in, and why it cannot be shown where it cannot.

    `not_shown` is what its tests leave out, and why.
    """

    number: int
    fault: str
    end: str
    reason: str = ""
    not_shown: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTest:
    """One test of one row, as it ended: `passed`, `skipped` or `FAILED`, with the reason of a skip."""

    number: int
    node: str
    result: str
    seconds: float
    told: str = ""

    @property
    def function(self) -> str:
        """Its name without parameters: `tests/hosts/test_x.py::test_y`."""
        return self.node.partition("[")[0]

    @property
    def shown(self) -> str:
        """As the page tells it: the file, and the sentence that the name is."""
        return show_function(self.function)


@cache
def read_rows() -> Mapping[int, Row]:
    """All rows by number."""
    found = tomllib.loads(ROWS_FILE.read_text())
    return {int(number): Row(number=int(number), **fields) for number, fields in found.items()}


def read_row_tests(report: Path) -> Iterator[RowTest]:
    """What a JUnit report of pytest, which this process asked for, says of the rows."""
    for case in ET.parse(report).getroot().iter("testcase"):
        properties = [(item.get("name"), item.get("value", "")) for item in case.iter("property")]
        node = next((value for name, value in properties if name == NODE_PROPERTY), "")
        skipped = case.find("skipped")
        failed = case.find("failure") is not None or case.find("error") is not None
        result = "FAILED" if failed else "passed" if skipped is None else "skipped"
        for name, value in properties:
            if name == ROW_PROPERTY:
                yield RowTest(
                    number=int(value),
                    node=node,
                    result=result,
                    seconds=float(case.get("time", 0)),
                    told=(skipped.get("message") or "") if skipped is not None else "",
                )


def unshown(rows: Mapping[int, Row], tests: Sequence[RowTest]) -> list[str]:
    """The rows that a run of all tiers has not shown: no test passed, or one failed, and no reason stands."""
    found = []
    for row in rows.values():
        own = [test for test in tests if test.number == row.number]
        shown = any(test.result == "passed" for test in own)
        if any(test.result == "FAILED" for test in own) or not (shown or row.reason):
            said = ", ".join(f"{test.node} {test.result}" for test in own) or "no test"
            found.append(f"row {row.number}, {row.fault}: {said}")
    return found


def show_function(function: str) -> str:
    """`tests/hosts/test_x.py::test_it_does_so` as "`tests/hosts/test_x.py`: it does so"."""
    file, _, name = function.partition("::")
    return f"`{file}`: {name.removeprefix('test_').replace('_', ' ')}"


def missing_on_page(page: str, tests: Sequence[RowTest]) -> list[str]:
    """The rows of these tests whose line on the page does not name them: it is older than they are."""
    lines = {line.split(" | ")[0]: line for line in page.splitlines()}
    return [
        f"docs/faults.md does not name {test.shown} in row {test.number}: ./fleet bench faults"
        for test in {(test.number, test.function): test for test in tests}.values()
        if test.shown not in lines.get(f"| {test.number}", "")
    ]


def marked_functions() -> Mapping[str, set[int]]:
    """By `tests/.../test_x.py::test_y`: the numbers in its decorators, its parameters' marks included."""
    found: dict[str, set[int]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        if "fault(" not in (text := path.read_text()):
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and (numbers := set(_marks(node.decorator_list))):
                found[f"{path.relative_to(TESTS.parent)}::{node.name}"] = numbers
    return found


def _marks(decorators: Iterable[ast.expr]) -> Iterator[int]:
    for decorator in decorators:
        for node in ast.walk(decorator):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
                for argument in node.args:
                    yield ast.literal_eval(argument)
