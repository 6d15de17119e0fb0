"""The verdict on every recorded exchange of Ollama 0.17.5, 0.24.0 and 0.32.15, each looked at by a person.

`verdicts.json` is written by `./fleet bench verdicts`, and its differences are read before they are kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from bench.verdicts import NOTABLE, PAGE, render_page
from healthchecks.toolcalls import WARN, judge
from tests.unit.toolcalls_captures import VERDICTS, VERSIONS, captures, verdict_on

WRITTEN: Mapping[str, Mapping[str, Sequence[Any]]] = json.loads(VERDICTS.read_bytes())
BY_NAME = {capture.name: capture for capture in captures()}
SCRIPTED = sorted({capture.name.rpartition("/")[0] for capture in captures() if "/scripted/" in capture.name})
# Streams of Ollama before 0.32.6 have the role in every delta (36); all have an empty text beside calls (48).
USUAL = {35, 36, 48}

# What is worth a sentence in words, so that a change of the data is seen for what it is.
ABOVE_WARN = {
    "one_call": set(),
    "unknown_tool": {12},
    "flat_object": {12},
    "malformed_single_quotes": {12},
    "unknown_then_known_tool": {21, 24},
    "known_name_in_arguments_of_unknown": {24},
    "known_name_in_arguments_of_known_args_first": {24},
    "text_before_call_single_chunk": set(),
    "missing_required_argument": {21},
    "enum_violation_and_wrong_type": {22},
    "string_contains_close_tag": {29},
    "bare_json": {30},
    "no_final_message": {5, 11},
    "error_mid_call": {1},
    "tool_choice_none": {59},
    "truncated_in_call": set(),
}


def above_warn(fired: Sequence[Sequence[Any]]) -> set[int]:
    return {rule for rule, severity, _ in fired if severity != WARN}


def test_every_recorded_exchange_has_its_verdict() -> None:
    assert list(WRITTEN) == list(BY_NAME)
    assert len(WRITTEN) > 900
    assert {name.split("/")[0] for name in WRITTEN} == set(VERSIONS)


def test_a_recorded_exchange_gets_the_verdict_that_was_written_down() -> None:
    given = {capture.name: verdict_on(capture) for capture in captures()}
    assert {name: verdict for name, verdict in given.items() if verdict != WRITTEN[name]} == {}


def test_the_page_explains_recordings_that_exist() -> None:
    notable = re.findall(r"^- `(\w+/\w+)`", NOTABLE, re.MULTILINE)
    assert len(notable) > 20
    recorded = {"/".join(name.split("/")[1:3]) for name in BY_NAME}
    assert set(notable) <= recorded


@pytest.mark.parametrize("case", ABOVE_WARN)
@pytest.mark.parametrize("version", ["0.17.5", "0.24.0"])
def test_the_telling_ones_get_the_verdict_they_must(version: str, case: str) -> None:
    fired = WRITTEN[f"{version}/scripted/{case}/v1"]["absolute"]
    assert above_warn(fired) == ABOVE_WARN[case]


def test_what_a_server_is_known_for_is_what_it_was_seen_to_do() -> None:
    excused: dict[str, set[int]] = {}
    for verdict in WRITTEN.values():
        for rule, severity, known in verdict["with_server"]:
            if known is not None:
                assert severity == WARN
                excused.setdefault(known, set()).add(rule)
    assert excused == {
        "ollama#17485": {35, 36},
        "ollama#17274": {12},
        "ollama#17118": {32, 44, 47},
        "ollama#17921": {59},
        "ollama#7547": {5, 11},
    }
    assert not any(known for verdict in WRITTEN.values() for _, _, known in verdict["absolute"])


def test_with_the_server_named_the_same_rules_fire() -> None:
    for verdict in WRITTEN.values():
        absolute, named = ({rule for rule, _, _ in verdict[kind]} for kind in ("absolute", "with_server"))
        assert absolute == named


def test_0_32_15_is_excused_nothing_of_what_it_mended() -> None:
    for name, verdict in WRITTEN.items():
        if name.startswith("0.32.15/"):
            assert {35, 36}.isdisjoint(rule for rule, _, _ in verdict["absolute"])


@pytest.mark.parametrize("name", SCRIPTED)
def test_plain_and_streamed_give_the_same_calls(name: str) -> None:
    plain, streamed = (judge(BY_NAME[f"{name}/{variant}"].exchange).reply for variant in ("v1", "v1-stream"))
    if plain is None or streamed is None:
        assert 1 in above_warn(WRITTEN[f"{name}/v1"]["absolute"])
        return
    assert [(call.name, call.arguments) for call in plain.calls] == [
        (call.name, call.arguments) for call in streamed.calls
    ]


def test_the_page_is_the_one_that_is_generated() -> None:
    assert PAGE.read_text() == render_page()
