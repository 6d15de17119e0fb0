"""`judge`: a saved reply or an exchange file, judged by the 63 rules."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from deploy.errors import ExitCode, UsageError
from deploy.report import Report, render_json
from healthchecks.exchange_file import (
    InvalidExchangeFileError,
    InvalidToolsError,
    SavedExchanges,
    parse_saved,
    parse_tools,
)
from healthchecks.toolcalls import RULES, Finding, Verdict, judge
from healthchecks.toolcalls.conversation import ConversationVerdict, judge_conversation
from healthchecks.toolcalls.known import states_version

_Read = TypeVar("_Read")

MOST_BYTES = 512 * 1024 * 1024
_TOOLS_FORMS = (
    'a list of OpenAI tools, an object {"tools": [...]}, or function objects with name and parameters'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeTask:
    """What was asked for; `server` is `ollama/VERSION`."""

    report: Report
    file: str
    tools: str | None
    server: str | None
    as_json: bool


def judge_file(task: JudgeTask) -> ExitCode:
    """Print the verdict; FAILED when a rule is broken by more than a warning.

    Raises:
        UsageError: a file that cannot be read, an exchange file or a list of tools that is none, or a server
            that is no name and version.
    """
    _check_server(task.server)
    given_tools = None if task.tools is None else _read_as(task.tools, "--tools", parse_tools)
    saved = _read_as(task.file, None, parse_saved)
    verdict = _judge(saved, given_tools, task.server)
    if task.as_json:
        # One object, not one event a line: it is what other programs keep beside the reply.
        print(render_json(render_verdict(verdict), sys.stdout))
    else:
        for line in describe_verdict(verdict):
            task.report.say(line)
    return ExitCode.DONE if verdict.ok else ExitCode.FAILED


def render_verdict(verdict: Verdict | ConversationVerdict) -> dict[str, Any]:
    """The object that `--json` prints."""
    keys = ("rule", "severity", "known", "where", "reason")
    fired = [{key: asdict(finding)[key] for key in keys} for finding in verdict.findings]
    return {"ok": verdict.ok, "fired": fired, "not_judged": list(verdict.not_judged)}


def describe_verdict(verdict: Verdict | ConversationVerdict) -> Sequence[str]:
    """The lines for people: what fired, what was not judged, and how it ended."""
    lines = [line for finding in verdict.findings for line in _describe(finding)]
    if verdict.not_judged:
        lines.append(f"not judged, for want of what they need: {_ranges(verdict.not_judged)}")
    above = len({finding.rule for finding in verdict.findings if finding.severity != "warn"})
    warnings = sum(1 for finding in verdict.findings if finding.severity == "warn")
    judged = len(RULES) - len(verdict.not_judged)
    broken = "none is broken" if verdict.ok else f"{above} broken"
    lines.append(f"{judged} of {len(RULES)} rules judged, {broken}, {_count(warnings, 'warning')}")
    return lines


def _describe(finding: Finding) -> tuple[str, str]:
    rule = RULES[finding.rule]
    known = "" if finding.known is None else f", known as {finding.known}"
    return (
        f"rule {finding.rule} ({finding.severity}{known}) {finding.where}: {finding.reason}",
        f"    {rule.title} ({rule.source})",
    )


def _ranges(numbers: Sequence[int]) -> str:
    """`1-3, 7` for 1, 2, 3, 7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _judge(
    saved: SavedExchanges, given: Sequence[Mapping[str, Any]] | None, server: str | None
) -> Verdict | ConversationVerdict:
    tools = given if given is not None else saved.tools
    if saved.bare:
        return judge(saved.exchanges[0], server=server, tools=tools)
    return judge_conversation(saved.exchanges, server=server, tools=tools)


def _check_server(server: str | None) -> None:
    if server is not None and not states_version(server):
        raise UsageError(
            sentence=f"`--server {server}` is no server and version",
            unchanged="everything",
            hint="give what the server says of itself, as in --server ollama/0.17.5, or leave it out",
        )


def _read_as(name: str, flag: str | None, parse: Callable[[bytes], _Read]) -> _Read:
    """Raises UsageError, with the form that was wanted, for what cannot be read or is something else."""
    subject = name if flag is None else f"{flag} {name}"
    try:
        return parse(_read(name))
    except OSError as problem:
        raise UsageError(
            sentence=f"`{subject}` cannot be read",
            cause=problem.strerror or str(problem),
            unchanged="everything",
            hint="give a file with the reply as it came, or `-` for standard input",
        ) from problem
    except InvalidToolsError as problem:
        raise UsageError(
            sentence=f"`{subject}` is no list of tools",
            cause=str(problem),
            unchanged="everything",
            hint=f"give {_TOOLS_FORMS}",
        ) from problem
    except InvalidExchangeFileError as problem:
        raise UsageError(
            sentence=f"`{subject}` is no exchange file",
            cause=str(problem),
            unchanged="everything",
            hint="docs/judge.md has the form; a reply alone needs none",
        ) from problem


def _read(name: str) -> bytes:
    if name == "-":
        data = sys.stdin.buffer.read(MOST_BYTES + 1)
    else:
        with Path(name).open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise OSError(f"it is larger than {MOST_BYTES} bytes")
    return data
