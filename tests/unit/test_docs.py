"""What the pages promise exists: tasks, flags, links, paths, steps, faults, cases, keys of the JSON."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import pytest
from invoke import Collection

import tasks
from deploy.desired import Artefact
from deploy.errors import ExitCode
from deploy.outcomes import HostOutcome
from deploy.plan import Plan, render_plan
from deploy.report import Report
from deploy.settings import DEFAULT_ENVIRONMENT
from deploy.steps import Difference, FetchArchive, Phase, Step
from healthchecks.case import load_cases
from healthchecks.toolcalls import BEHAVIOURAL, INTEROP, MUST, RULES, WARN
from testbed import ollama

PROJECT = Path(__file__).resolve().parents[2]
DOCS = PROJECT / "docs"
PAGES = sorted([*PROJECT.glob("*.md"), *DOCS.rglob("*.md")])
TASKS = Collection.from_module(tasks)

# `./fleet task words --flags`, up to a pipe, a comment, a quote or the end of the line.
_COMMAND = re.compile(r"(?<![\w/])\./fleet +(?P<words>[^\n`|#;&\"]*)")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
_PATH = re.compile(r"`(?P<path>[\w.-]+(?:/[\w.*-]+)*/?)`")
_HEADING = re.compile(r"^#+ +(?P<title>.+)$", re.MULTILINE)
# Flags of the program itself, not of one task.
_CORE_FLAGS = {"--help", "--list", "--version"}


@pytest.fixture(params=PAGES, ids=[str(page.relative_to(PROJECT)) for page in PAGES])
def page(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def commands(text: str) -> Iterator[tuple[str, set[str]]]:
    """Every `./fleet TASK`, with the flags that follow it on its line."""
    for found in _COMMAND.finditer(text):
        words = found["words"].split()
        if words and re.fullmatch(r"[a-z]+", words[0]):
            yield words[0], set(_FLAG.findall(found["words"])) - _CORE_FLAGS


def known_flags() -> Mapping[str, set[str]]:
    """By task, as Invoke itself reads them from the signatures."""
    return {str(context.name): {*context.flags, *_CORE_FLAGS} for context in TASKS.to_contexts()}


def rows(text: str, heading: str) -> list[str]:
    """The first backticked word of each row of the table below `heading`."""
    section = re.split(r"^#+ ", text, flags=re.MULTILINE)
    body = next(part for part in section if part.startswith(heading))
    return re.findall(r"^\| `([^`]+)`", body, re.MULTILINE)


def test_every_task_and_flag_on_a_page_exists(page: Path) -> None:
    known = known_flags()
    for task, flags in commands(page.read_text()):
        assert task in known, f"`./fleet {task}`"
        assert flags <= known[task], f"`./fleet {task}` has no {', '.join(sorted(flags - known[task]))}"


def test_every_flag_named_alone_exists(page: Path) -> None:
    options = re.findall(r'"(--fleet-[a-z-]+)"', (PROJECT / "tests/smoke/conftest.py").read_text())
    known = set(options).union(*known_flags().values())
    # `--flag` or `--flag VALUE`; what other programs take is written as `--gpus all`.
    assert set(re.findall(r"`(--[a-z][a-z-]*)(?: [A-Z]+)?`", page.read_text())) <= known


def test_every_task_is_named_on_some_page() -> None:
    named = {task for page in PAGES for task, _ in commands(page.read_text())}
    assert set(known_flags()) <= named


def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for found in _LINK.finditer(page.read_text()):
        if "://" in found["target"]:
            continue
        name, _, anchor = found["target"].partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), found["target"]
        if anchor:
            titles = [heading["title"] for heading in _HEADING.finditer(target.read_text())]
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_project_path_in_backticks_exists(page: Path) -> None:
    rooms = {path.name for path in PROJECT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    for found in _PATH.finditer(page.read_text()):
        path = PurePosixPath(found["path"])
        if len(path.parts) > 1 and path.parts[0] in rooms:
            assert list(PROJECT.glob(str(path))), f"`{path}`"


def test_the_page_of_the_plan_lists_the_steps_and_phases_as_they_are() -> None:
    text = (DOCS / "plan.md").read_text()
    listed = {
        key: re.findall(r"`(\w+)`", cell)
        for key, cell in re.findall(r"^\| `steps\[\]\.(\w+)` \| string \| (.*) \|$", text, re.MULTILINE)
    }
    assert sorted(listed["step"]) == sorted(kind.__name__ for kind in typing.get_args(Step))
    assert listed["phase"] == [str(phase) for phase in Phase]


def test_the_page_of_the_plan_promises_the_keys_of_the_json() -> None:
    artefact = Artefact(repo="a/b", revision="master", file="a.tgz", size_bytes=1, sha256="0" * 64)
    step = FetchArchive(
        reason="because", differences=(Difference(what="a", actual=1, desired=2),), artefact=artefact
    )
    rendered = render_plan(Plan(host="box", steps=(step,)))
    given = {"event", *rendered, *(f"steps[].{key}" for key in rendered["steps"][0])}
    assert set(rows((DOCS / "plan.md").read_text(), "JSON")) == given
    for key in rendered["steps"][0]["differences"][0]:
        assert f'"{key}"' in (DOCS / "plan.md").read_text()


def test_the_page_of_the_testbed_lists_the_faults_as_they_are() -> None:
    listed = rows((DOCS / "testbed.md").read_text(), "Faults")
    expected = []
    for name, value in ollama.FAULTS.items():
        optional = value.startswith("[")
        expected.append(f"{name}[={value[1:-1]}]" if optional else f"{name}={value}" if value else name)
    assert sorted(listed) == sorted(expected)


def test_the_script_on_the_page_of_the_testbed_can_be_played() -> None:
    text = (DOCS / "testbed.md").read_text()
    script = re.findall(r"```json\n(.*?)```", text, re.DOTALL)[0]
    assert set(ollama.parse_script(script)) == {"How warm is it in Oslo?", "Break"}


def test_the_page_of_the_suite_lists_the_cases_and_severities_as_they_are() -> None:
    text = (DOCS / "smoke.md").read_text()
    assert sorted(rows(text, "Cases")) == [case.name for case in load_cases()]
    assert rows(text, "Rules and severities") == [MUST, INTEROP, BEHAVIOURAL, WARN]
    assert f"{len(RULES)} of them" in text


def test_the_case_on_the_page_of_the_suite_is_a_case() -> None:
    from healthchecks.case import parse_case

    text = (DOCS / "smoke.md").read_text()
    example = re.findall(r"```json\n(.*?)```", text, re.DOTALL)[0]
    known = json.loads((PROJECT / "healthchecks/tools.json").read_text())
    assert [turn.expect.rule for turn in parse_case("example", example, known).turns] == [55, 53]


def test_the_readme_lists_the_exit_codes_as_they_are() -> None:
    text = (PROJECT / "README.md").read_text()
    listed = re.findall(r"^\| (\d+) \|", text, re.MULTILINE)
    assert [int(code) for code in listed] == sorted(ExitCode)


def test_the_readme_promises_the_keys_of_every_summary(capsys: pytest.CaptureFixture[str]) -> None:
    Report(as_json=True).summary([HostOutcome(host="box", outcome="ok")])  # type: ignore[arg-type]
    summary = json.loads(capsys.readouterr().out)
    promised = re.findall(r'\{"event": "summary".*\}', (PROJECT / "README.md").read_text())[0]
    assert re.findall(r'"(\w+)":', promised) == list(summary)


def test_the_page_of_the_inventory_lists_the_settings_that_are_always_made() -> None:
    text = (DOCS / "inventory.md").read_text()
    assert re.findall(r"`(OLLAMA_\w+)=([^`]+)`", text) == list(DEFAULT_ENVIRONMENT.items())
