"""What a rendered prompt hides from the model; the prompts are those that real servers rendered."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from healthchecks.prompt import ERROR, PromptFault, find_prompt_faults, parse_values, same_json

CAPTURES = Path(__file__).parents[1] / "captures"
VERSIONS = ("0.17.5", "0.24.0", "0.32.15")
LOOK = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look up a word",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string"}, "times": {"type": "integer"}},
            "required": ["word"],
        },
    },
}
CHATML = (
    "<|im_start|>system\nBe short.\n\n# Tools\n%s<|im_end|>\n<|im_start|>user\nWhat is a fjord?<|im_end|>\n"
    '<|im_start|>assistant\n<tool_call>\n{"name": "look_up", "arguments": {"word":"fjord"}}\n</tool_call>'
    "<|im_end|>\n<|im_start|>user\n<tool_response>\nan inlet\n</tool_response><|im_end|>\n"
    "<|im_start|>assistant\n"
).replace("%s", json.dumps(LOOK))
CALL = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"word": "fjord"}'}}
REQUEST: Mapping[str, Any] = {
    "messages": [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "What is a fjord?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "an inlet"},
    ],
    "tools": [LOOK],
}


def capture(version: str, name: str) -> tuple[Mapping[str, Any], str, str | None]:
    """The request, the prompt that the server rendered, and the TEMPLATE where the capture tells it."""
    recorded = json.loads((CAPTURES / version / "http" / f"{name}.json").read_text())
    request = recorded["request"]["body"]
    if request.get("tools") == "@../tools.json":
        request = {**request, "tools": json.loads((CAPTURES / version / "tools.json").read_text())}
    prompt = recorded["response"]["body"]["_debug_info"]["rendered_template"]
    return request, prompt, recorded.get("template")


def errors(faults: Sequence[PromptFault]) -> list[str]:
    return [fault.reason for fault in faults if fault.severity == ERROR]


def one_error(faults: Sequence[PromptFault]) -> PromptFault:
    (fault,) = [fault for fault in faults if fault.severity == ERROR]
    return fault


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["template_json_tools", "template_json_function", "template_tools"])
def test_a_recorded_prompt_that_shows_a_tool_as_json_is_right(version: str, name: str) -> None:
    request, prompt, template = capture(version, name)
    # These TEMPLATEs print no arguments of calls at all, which is another fault.
    said = errors(find_prompt_faults(request, prompt, template=template, server=f"ollama/{version}"))
    assert said == ["a call of `ask_database` in the history is not in the prompt with its arguments"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["template_function", "template_function_parameters"])
def test_a_recorded_prompt_in_go_syntax_is_found(version: str, name: str) -> None:
    request, prompt, template = capture(version, name)
    said = errors(find_prompt_faults(request, prompt, template=template))
    assert said[:2] == [
        "the prompt holds `<nil>`: a value printed by Go instead of JSON",
        "1 tool of 1 not in the prompt as JSON: `get_current_weather`",
    ]


@pytest.mark.parametrize("version", ["0.17.5", "0.24.0"])
def test_an_unknown_field_of_a_template_is_found(version: str) -> None:
    request, prompt, template = capture(version, "template_unknown_top_field")
    assert (
        "the prompt holds `<no value>`" in errors(find_prompt_faults(request, prompt, template=template))[0]
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("name", "role"), [("developer", "developer"), ("invalid_role", "robot")])
def test_a_role_that_is_silently_dropped_is_found(version: str, name: str, role: str) -> None:
    request, prompt, _ = capture(version, f"v1_chat_render_{name}")
    turns = prompt.rpartition("</tools>")[2]
    fault = one_error(find_prompt_faults({**request, "tools": []}, turns))
    assert fault.reason.endswith(f"the first has the role `{role}`")
    assert fault.hint == f"the TEMPLATE needs a branch for the role `{role}`"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_result_in_parts_that_became_two_messages_is_known_of_ollama(version: str) -> None:
    request, prompt, _ = capture(version, "v1_chat_render_tool_parts")
    reason = "the parts of a message with the role `tool` became several messages"
    assert reason in errors(find_prompt_faults({**request, "tools": []}, prompt))
    known = find_prompt_faults({**request, "tools": []}, prompt, server=f"ollama/{version}")
    assert [fault.severity for fault in known if fault.reason == reason] == ["warn"]


@pytest.mark.parametrize("version", VERSIONS)
def test_parts_of_a_user_stay_one_message(version: str) -> None:
    request, prompt, _ = capture(version, "v1_chat_render_user_parts")
    assert not any("parts" in reason for reason in errors(find_prompt_faults(request, prompt)))


@pytest.mark.parametrize("version", VERSIONS)
def test_calls_beside_a_text_that_are_not_rendered_are_found(version: str) -> None:
    request, prompt, _ = capture(version, "v1_chat_render_content_and_calls")
    assert any(
        "in the history is not in the prompt" in reason
        for reason in errors(find_prompt_faults(request, prompt))
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_turns_that_were_cut_away_are_found_with_the_reason(version: str) -> None:
    recorded = json.loads((CAPTURES / version / "http" / "v1_chat_render_too_long_history.json").read_text())
    prompt = recorded["response"]["body"]["_debug_info"]["rendered_template"].replace("<nil>", "")
    words = " ".join(["w"] * 300)
    messages = [{"role": "system", "content": "SYS"}]
    for turn in range(12):
        messages += [{"role": role, "content": f"turn {turn} {words}"} for role in ("user", "assistant")]
    messages.append({"role": "user", "content": "LAST"})
    fault = one_error(find_prompt_faults({"messages": messages}, prompt))
    assert fault.reason.startswith("19 messages of 26 not in the prompt")
    assert "num_ctx" in fault.hint


def test_a_call_that_was_cut_away_with_its_turn_is_not_laid_to_the_template() -> None:
    start, end = CHATML.index("<|im_start|>user\nWhat"), CHATML.index("<|im_start|>user\n<tool_response>")
    fault = one_error(find_prompt_faults(REQUEST, CHATML[:start] + CHATML[end:]))
    assert fault.reason.startswith("1 message of 4 not in the prompt")
    assert "num_ctx" in fault.hint


def test_a_prompt_that_holds_everything_has_no_fault() -> None:
    assert find_prompt_faults(REQUEST, CHATML, template="<|im_start|>{{ .Role }}") == ()


@pytest.mark.parametrize(
    ("cut", "instead", "reason"),
    [
        ("Be short.", "", "1 message of 4 not in the prompt"),
        ("What is a fjord?", "", "1 message of 4 not in the prompt"),
        ("an inlet", "", "1 message of 4 not in the prompt"),
        ('{"word":"fjord"}', '{"word":"lake"}', "a call of `look_up` in the history is not in the prompt"),
        (
            '"type": "integer"',
            '"type": "string"',
            "`look_up.parameters.properties.times.type` is not in the prompt",
        ),
        ('"required": ["word"]', '"required": []', "`look_up.parameters.required` is not in the prompt"),
        (', "required": ["word"]', "", "`look_up.parameters.required` is not in the prompt"),
        (
            '"required": ["word"]',
            '"required": ["word"], "title": "t"',
            "`look_up.parameters.title` is not in",
        ),
        ('"look_up", "desc', '"look_down", "desc', "1 tool of 1 not in the prompt as JSON: `look_up`"),
        ("Be short.", "Be short. map[a:1]", "the prompt holds `map[`"),
        ("Be short.", "Be short. [INST]", "the prompt holds `[INST]`, a mark of Llama 2 and Mistral"),
        (
            "Be short.",
            "Be short.<|start_header_id|>",
            "the prompt holds `<|start_header_id|>`, a mark of Llama 3",
        ),
    ],
)
def test_one_thing_that_is_changed_in_the_prompt_is_the_one_fault(
    cut: str, instead: str, reason: str
) -> None:
    assert cut in CHATML
    broken = CHATML.replace(cut, instead)
    fault = one_error(
        find_prompt_faults(REQUEST, broken, template="<|im_start|>{{ .Role }}", server="ollama/0.17.5")
    )
    assert fault.reason.startswith(reason)
    assert fault.hint
    assert fault.evidence


def test_messages_out_of_order_are_found() -> None:
    turns = [{"role": "user", "content": "second words"}, {"role": "assistant", "content": "first words"}]
    prompt = "<|im_start|>user\nfirst words<|im_end|>\n<|im_start|>assistant\nsecond words<|im_end|>"
    assert len(errors(find_prompt_faults({"messages": turns}, prompt))) == 1


def test_markers_that_a_user_wrote_are_the_users_own() -> None:
    request = {"messages": [{"role": "user", "content": "what does [INST] <nil> mean?"}]}
    prompt = "<|im_start|>user\nwhat does [INST] <nil> mean?<|im_end|>\n<|im_start|>assistant\n"
    assert find_prompt_faults(request, prompt, template="<|im_start|>{{ .Role }}") == ()


def test_a_prompt_without_any_mark_was_not_made_by_a_template_that_has_them() -> None:
    request = {"messages": [{"role": "user", "content": "What is a fjord?"}]}
    fault = one_error(
        find_prompt_faults(request, "User: What is a fjord?", template="<|im_start|>{{ .Role }}")
    )
    assert fault.reason == "the TEMPLATE writes the marks of ChatML, and the prompt has none of them"


def test_a_template_whose_marks_and_texts_are_not_there_was_not_used() -> None:
    template = "<|im_start|>{{ .Role }} You may call one or more functions to assist the user. {{ .Tools }}"
    prompt = "[INST] Be short. What is a fjord? [/INST]" + json.dumps(LOOK)
    said = errors(
        find_prompt_faults({**REQUEST, "messages": REQUEST["messages"][:2]}, prompt, template=template)
    )
    assert said == [
        "the prompt holds `[INST]`, a mark of Llama 2 and Mistral, in a prompt of ChatML",
        "the prompt was not made by the model's TEMPLATE: none of its longer texts is in it",
    ]


def test_a_nested_required_is_known_of_servers_before_0_24_only() -> None:
    inner = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    function = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"o": inner}}}
    lost = json.loads(json.dumps(function))
    del lost["parameters"]["properties"]["o"]["required"]
    request = {"messages": [], "tools": [{"type": "function", "function": function}]}
    for server, severity in (("ollama/0.17.5", "warn"), ("ollama/0.24.0", "error"), (None, "error")):
        (fault,) = find_prompt_faults(request, json.dumps(lost), server=server)
        assert fault.severity == severity
        assert fault.reason.startswith("`f.parameters.properties.o.required`")


def test_a_property_called_required_is_no_keyword() -> None:
    function = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {
        "required": {"type": "boolean", "default": True}, "minimum": {"type": "integer"}}}}  # fmt: skip
    lost = json.loads(json.dumps(function))
    del lost["parameters"]["properties"]["required"]["default"]
    request = {"messages": [], "tools": [{"type": "function", "function": function}]}
    (fault,) = find_prompt_faults(request, json.dumps(lost), server="ollama/0.17.5")
    assert fault.known == "ollama: only a few keywords of a schema are kept"
    del lost["parameters"]["properties"]["minimum"]
    reasons = errors(find_prompt_faults(request, json.dumps(lost), server="ollama/0.17.5"))
    assert reasons == [
        "`f.parameters.properties.minimum` is not in the prompt as it was sent: `minimum` is dropped"
    ]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, 1.0, True),
        (1, True, False),
        ([1], [1.0], True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ("1", 1, False),
    ],
)
def test_json_is_compared_by_its_meaning(one: object, other: object, same: bool) -> None:
    assert same_json(one, other) is same


def test_json_values_are_found_in_any_text() -> None:
    assert list(parse_values('a {"b": [1]} {c} [2] [[[[ {"d":')) == [{"b": [1]}, [2]]
    assert list(parse_values("[" * 100_000)) == []
