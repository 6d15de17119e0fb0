"""The verdict on every recorded reply of Ollama 0.17.5 to scripted model output, each looked at by a person.

Not to be seen from one exchange, and so not in the table: the call that `text_before_call_single_chunk` lost
behind its text, the tool that `unknown_tool_containing_known_name` did not mean, and the last characters that
`text_ending_with_partial_tag` lost.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from healthchecks.toolcalls import WARN, Exchange, Verdict, judge
from tests.unit.toolcalls_good_replies import CAPTURES, captured

NAMES = sorted(path.stem for path in (CAPTURES / "scripted").glob("*.json"))
STREAM_ENDS_EARLY = {32, 44, 47}

# The rules that fire above "warn": in the plain reply and in the stream with usage.
FIRED: dict[str, tuple[set[int], set[int]]] = {}


def _expect(names: str, plain: set[int], streamed: set[int] | None = None) -> None:
    for name in names.split():
        FIRED[name] = (plain, plain if streamed is None else streamed)


# Tokens were counted, and nothing came.
_expect("arguments_as_broken_string call_name_only_tail flat_object malformed_missing_brace", {12})
_expect("malformed_single_quotes malformed_trailing_comma stop_in_call strings_raw_newline", {12})
_expect("tag_then_text unknown_tool whitespace_output xml_function_style", {12})
_expect("empty_output", {11})
# The call came as text, in the stream mostly in pieces.
_expect("bare_fenced bare_json bare_text_before_call bare_two_calls_list text_then_bare_json", {30}, {50})
_expect("closing_tag_only other_tag_functools", {30}, {50})
_expect("bare_with_tool_call_tag call_text_no_tools", {30}, {30, 50})
_expect("bare_malformed bare_missing_arguments bare_truncated bare_two_calls_lines bare_unknown_tool", {30})
# The model's doing, or the wrong tool got the arguments.
_expect("missing_required_argument", {21})
_expect("enum_violation_and_wrong_type", {22})
_expect("known_name_in_arguments_of_known_args_first known_name_in_arguments_of_unknown", {24})
_expect("unknown_then_known_tool", {21, 24})
_expect("strings_lone_surrogate", {25})
_expect("string_contains_close_tag", {29})
# Errors and ends without an end; the chunk that stands for the error has an empty model (35).
_expect("error_before_first_token error_before_first_token_status error_mid_call error_runner_gone", {1})
_expect("error_after_call error_mid_stream error_mid_stream_no_tools", {1}, {35} | STREAM_ENDS_EARLY)
_expect("no_final_message no_final_message_no_tools", {5, 11}, STREAM_ENDS_EARLY)
_expect("no_final_message_after_call", {11}, STREAM_ENDS_EARLY)

# Warnings beside 36 (role in every delta) and 48 (empty text beside a call), which most streams have.
WARNED = {"key_order": {24}, "truncated_before_tag_closed": {12}, "truncated_in_call": {12}}


def verdict_on(exchange: dict[str, Any]) -> Verdict:
    response = exchange["response"]
    events = response.get("events")
    body = json.dumps(response.get("body")) if events is None else "".join(f"{event}\n\n" for event in events)
    request = exchange["request"]["body"]
    given = Exchange(request, response["status"], response["headers"], body.encode())
    return judge(given, server="ollama/0.17.5")


def fired(verdict: Verdict) -> set[int]:
    return {finding.rule for finding in verdict.findings if finding.severity != WARN}


def warned(verdict: Verdict) -> set[int]:
    return {finding.rule for finding in verdict.findings if finding.severity == WARN} - {36, 48}


def test_the_table_names_recorded_cases() -> None:
    assert FIRED.keys() | WARNED.keys() <= set(NAMES)
    assert len(NAMES) > 90


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_reply_gets_the_verdict_that_was_written_down(name: str) -> None:
    plain, streamed = FIRED.get(name, (set(), set()))
    exchanges = captured(name)
    verdict = verdict_on(exchanges["v1"])
    assert fired(verdict) == plain
    assert warned(verdict) == WARNED.get(name, set())
    if "v1-stream-usage" in exchanges:
        verdict = verdict_on(exchanges["v1-stream-usage"])
        assert fired(verdict) == streamed
        assert warned(verdict) == WARNED.get(name, set())
    # Without usage nobody can tell an empty reply from a swallowed one.
    verdict = verdict_on(exchanges["v1-stream"])
    assert fired(verdict) == streamed - {11, 12}
    assert warned(verdict) == WARNED.get(name, set()) - {12}


@pytest.mark.parametrize("name", NAMES)
def test_plain_and_streamed_give_the_same_calls(name: str) -> None:
    exchanges = captured(name)
    plain, streamed = verdict_on(exchanges["v1"]).reply, verdict_on(exchanges["v1-stream"]).reply
    if plain is None or streamed is None:
        assert 1 in FIRED[name][0]
        return
    assert [(call.name, call.arguments) for call in plain.calls] == [
        (call.name, call.arguments) for call in streamed.calls
    ]
