"""The lint of a TEMPLATE: each finding with what causes it and what does not; the tag by Ollama's rule."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.errors import TemplateRefused
from deploy.modelfile import parse_commands, parse_modelfile
from deploy.template_lint import derive_tag, lint_template

GOLDEN = Path(__file__).parent / "data" / "render"
SHIPPED = parse_modelfile((GOLDEN / "myqwen2.Modelfile").read_text(encoding="utf-8"), "m").template


def findings(template: str, *, uses_tools: bool = True) -> list[tuple[int | None, str]]:
    return [
        (refused.line, refused.sentence)
        for refused in lint_template(template, uses_tools=uses_tools, first_line=1, path="m")
    ]


def sentences(template: str, *, uses_tools: bool = True) -> str:
    return "\n".join(sentence for _, sentence in findings(template, uses_tools=uses_tools))


def with_tools(tools: str) -> str:
    """The shipped TEMPLATE with another way to print the tools, on line 12."""
    start = SHIPPED.index("{{- range .Tools }}")
    end = SHIPPED.index("</tools>\n\nFor each")
    return f"{SHIPPED[:start]}{tools}\n{SHIPPED[end:]}"


def test_the_shipped_template_passes() -> None:
    assert findings(SHIPPED) == []


def test_the_published_template_is_refused_once_at_the_line_that_prints_the_function() -> None:
    text = (GOLDEN / "myqwen2.as-published.Modelfile").read_text(encoding="utf-8")
    (template,) = (command for command in parse_commands(text, "m") if command.name == "template")
    (refused,) = lint_template(template.value, uses_tools=True, first_line=template.line, path="m")
    assert refused.sentence == "`{{ .Function }}` prints the function of a tool without `json`"
    assert "{{ .Function }}" in text.splitlines()[(refused.line or 0) - 1]
    assert refused.hint == "write `{{ json .Function }}`"
    assert refused.unchanged is not None


@pytest.mark.parametrize(
    "tools",
    [
        "{{- range .Tools }}{{ .Function }}{{ end }}",
        "{{- range .Tools }}{{ .Function.Parameters }}{{ end }}",
        "{{- range .Tools }}{{ . }}{{ end }}",
        "{{- range $tool := .Tools }}{{ $tool }}{{ end }}",
        "{{- range $i, $tool := .Tools }}{{ $tool.Function }}{{ end }}",
        "{{- range $.Tools }}{{ (.Function).Parameters }}{{ end }}",
        '{{- range .Tools }}{{ .Function | printf "%s" }}{{ end }}',
        '{{- range .Tools }}{{ printf "%v" .Function }}{{ end }}',
        "{{- range .Tools }}{{ print .Function.Parameters }}{{ end }}",
        "{{- range .Tools }}{{ with .Function }}{{ . }}{{ end }}{{ end }}",
        "{{- range .Tools }}{{ $f := .Function }}{{ $f }}{{ end }}",
        "{{- range .Tools }}{{ range .Function.Parameters.Properties }}{{ . }}{{ end }}{{ end }}",
        "{{ index .Tools 0 }}",
        "{{ range slice .Tools 1 }}{{ . }}{{ end }}",
        "{{ range .Tools }}{{ or .Function .Type }}{{ end }}",
    ],
)
def test_a_part_of_a_tool_printed_without_json_is_refused(tools: str) -> None:
    ((line, sentence),) = findings(with_tools(tools))
    assert "without `json`" in sentence
    assert line == 12


@pytest.mark.parametrize(
    "tools",
    [
        "{{ .Tools }}",
        "{{ $.Tools }}",
        "{{ json .Tools }}",
        "{{ range .Tools }}{{ json . }}{{ end }}",
        "{{ range .Tools }}{{ . | json }}{{ end }}",
        '{{ range .Tools }}{{ json .Function | printf "%s" }}{{ end }}',
        "{{ range $i, $t := .Tools }}{{ if $i }}, {{ end }}{{ json $t.Function }}{{ end }}",
        "{{ range .Tools }}{{ .Type }} {{ .Function.Name }}: {{ .Function.Description }}{{ end }}",
        "{{ range .Tools }}{{ .Function.Parameters.Properties }}{{ end }}",
        "{{ range .Tools }}{{ range $v := .Function.Parameters.Properties }}{{ $v.Type }}{{ end }}{{ end }}",
        "{{ range .Tools }}{{ with .Function }}{{ json .Parameters }}{{ end }}{{ end }}",
        "{{ range .Tools }}{{ $f := .Function }}{{ json $f }}{{ end }}",
        "{{ slice .Tools 1 }}",
        "{{ len .Tools }}{{ .Tools }}",
    ],
)
def test_tools_printed_as_json_pass(tools: str) -> None:
    assert findings(with_tools(tools)) == []


def test_a_define_is_judged_with_the_value_it_is_called_with() -> None:
    one = '{{ define "one" }}\n{{ . }}{{ end }}'
    assert findings(with_tools('{{ range .Tools }}{{ template "one" .Function.Name }}{{ end }}') + one) == []
    found = findings(with_tools('{{ range .Tools }}{{ template "one" .Function }}{{ end }}') + one)
    assert found == [
        (len(with_tools("").splitlines()) + 1, "`{{ . }}` prints the function of a tool without `json`")
    ]


def test_a_call_printed_whole_is_refused_and_its_parts_are_not() -> None:
    whole = SHIPPED.replace("{{ .Function.Arguments }}", "{{ .Function }}")
    assert sentences(whole) == "`{{ .Function }}` prints the function of a call without `json`"
    assert findings(SHIPPED.replace("{{ .Function.Arguments }}", "{{ json .Function.Arguments }}")) == []


def test_a_template_that_declares_tools_must_use_them() -> None:
    found = sentences("{{ range .Messages }}{{ .Content }}{{ end }}")
    assert "does not use `.Tools`" in found
    assert "does not use `.ToolCalls`" in found
    assert 'does not use the role `"tool"`' in found


def test_a_template_without_tools_is_fine_for_a_model_without_tools() -> None:
    assert findings("{{ range .Messages }}{{ .Content }}{{ end }}", uses_tools=False) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('{{ else if eq .Role "tool" }}', '{{ else if eq .Role "tolo" }}', 'does not use the role `"tool"`'),
        ("{{- range .ToolCalls }}", "{{- range .Images }}", "only tests `.ToolCalls`"),
        ("{{- range .Tools }}", "{{- range .Messages }}", "only tests `.Tools`"),
    ],
)
def test_one_missing_use_is_one_finding_of_its_own(old: str, new: str, said: str) -> None:
    assert said in sentences(SHIPPED.replace(old, new))


@pytest.mark.parametrize(
    "role",
    [
        '{{ else if eq $.System .Role "tool" }}',
        "{{ else if eq `tool` .Role }}",
        '{{ else if (eq "tool" .Role) }}',
    ],
)
def test_the_tool_role_may_be_compared_in_other_words(role: str) -> None:
    assert findings(SHIPPED.replace('{{ else if eq .Role "tool" }}', role)) == []


# The order: what stands between `{{ if .ToolCalls }}` and its end, and the tag by tools/template.go.
TAGS = [
    ("<tool_call>{x", "<tool_call>"),
    ("\n<tool_call>\n{x", "<tool_call>"),
    ("{{ range .ToolCalls }}<tool_call>{ {{ .Function.Name }}{{ end }}", "<tool_call>"),
    ('{{ range .ToolCalls }}{"name"{{ end }}</tool_call>', "{"),
    ("{{ range .ToolCalls }} {{ end }}<tool_call>", "{"),
    ("{{ if .Content }}\n{{ end }}<tool_call>", "{"),
    ("{{ if .Content }}\n{{ .Content }}{{ end }}<tool_call>", "{"),
    ("{{ if .Content }}{{ else }}<tool_call>{{ end }}", "<tool_call>"),
    ("{{ with .Content }}Calls: {{ end }}<tool_call>", "Calls:"),
    ("{{ .Content }}<tool_call>", "{"),
    ("{{ $x := 1 }}<tool_call>", "{"),
    ("{{/* a comment */}}<tool_call>", "<tool_call>"),
    ("\n{{/* a comment */}}\n<tool_call>", "<tool_call>"),
    ("<tool{{/* a comment */}}_call>", "<tool"),
    ('{{ template "t" . }}<tool_call>', "<tool_call>"),
    ("[TOOL_CALLS] [{x", "[TOOL_CALLS] ["),
    ("a\r\nb{x", "a\nb"),
    ("\u00a0<t>\u00a0", "<t>"),
    ("  ", "{"),
    ("", "{"),
]


@pytest.mark.parametrize(("inside", "tag"), TAGS)
def test_the_tag_is_the_first_text_after_the_tool_calls(inside: str, tag: str) -> None:
    assert (
        derive_tag(f"{{{{ range .Messages }}}}x{{{{ if .ToolCalls }}}}{inside}{{{{ end }}}}{{{{ end }}}}")
        == tag
    )


@pytest.mark.parametrize(
    ("template", "tag"),
    [
        ("", "{"),
        ("{{ .Prompt }}", "{"),
        ("{{ range .ToolCalls }}<tool_call>{{ end }}", "{"),
        ("{{ with .ToolCalls }}<tool_call>{{ end }}", "{"),
        ("{{ if and .Content .ToolCalls }}<a>{{ end }}", "<a>"),
        ("{{ if not .ToolCalls }}<a>{{ end }}", "<a>"),
        ("{{ if .X.ToolCalls }}<a>{{ end }}", "<a>"),
        ("{{ if $.ToolCalls }}<a>{{ end }}", "{"),
        ("{{ range $m := .Messages }}{{ if $m.ToolCalls }}<a>{{ end }}{{ end }}", "{"),
        ("{{ if (len .ToolCalls) }}<a>{{ end }}", "{"),
        ("{{ if .A }}{{ else if .ToolCalls }}<a>{{ end }}", "<a>"),
        ("{{ with .A }}{{ else with .B }}{{ if .ToolCalls }}<a>{{ end }}{{ end }}", "<a>"),
        ("{{ if .A }}{{ if .ToolCalls }}<a>{{ end }}{{ end }}{{ if .ToolCalls }}<b>{{ end }}", "<a>"),
        ('{{ define "t" }}{{ if .ToolCalls }}<a>{{ end }}{{ end }}', "{"),
    ],
)
def test_only_a_plain_if_on_the_field_is_looked_into(template: str, tag: str) -> None:
    assert derive_tag(template) == tag


def test_an_if_before_the_tag_hides_every_call_and_is_refused_at_its_line() -> None:
    trap = SHIPPED.replace(
        "{{- if .ToolCalls }}\n{{- range .ToolCalls }}",
        "{{- if .ToolCalls }}\n{{- if .Content }}\n{{ end }}\n{{- range .ToolCalls }}",
    )
    line = trap[: trap.index("{{- if .ToolCalls }}")].count("\n") + 1
    assert derive_tag(trap) == "{"
    assert findings(trap) == [(line, "the server would look for `{`, and the prompt asks for `<tool_call>`")]


@pytest.mark.parametrize(
    ("history", "tag"),
    [
        ("<function_call>", "<function_call>"),
        ("</tool_call>", "</tool_call>"),
        ("call", "call"),
        ("Calls: <tool_call>", "Calls: <tool_call>"),
    ],
)
def test_a_tag_that_the_prompt_does_not_ask_for_is_refused(history: str, tag: str) -> None:
    start = SHIPPED.index("{{- range .ToolCalls }}")
    template = SHIPPED[:start] + SHIPPED[start:].replace("<tool_call>", history, 1)
    assert derive_tag(template) == tag
    assert sentences(template) == f"the server would look for `{tag}`, and the prompt asks for `<tool_call>`"


def test_another_tag_passes_where_the_prompt_asks_for_it_too() -> None:
    assert findings(SHIPPED.replace("tool_call>", "function_call>")) == []


BARE = """{{- if .Tools }}%s
{{ .Tools }}
{{ end }}
{{- range .Messages }}{{ if .ToolCalls }}{{ range .ToolCalls }}{"name": "{{ .Function.Name }}"}{{ end }}
{{- else if eq .Role "tool" }}{{ .Content }}{{ else }}{{ .Content }}{{ end }}{{ end }}"""


@pytest.mark.parametrize(
    ("prompt", "passes"),
    [
        ('Respond in the format {"name": function name, "parameters": dictionary}.', True),
        ("Answer with one JSON object and nothing else.", True),
        ("You have these tools:", False),
        ('Write <tool_call>{"name": ...}</tool_call>.', False),
        ("Write one JSON object within <tool_call></tool_call> XML tags.", False),
        ('Write [TOOL_CALLS] [{"name": ...}].', False),
        ('Write <action>\n{"name": ...}.', False),
    ],
)
def test_bare_json_is_looked_for_only_where_the_prompt_asks_for_it(prompt: str, passes: bool) -> None:
    assert derive_tag(BARE % prompt) == "{"
    assert (findings(BARE % prompt) == []) is passes


@pytest.mark.parametrize(
    ("template", "line", "said"),
    [
        ("{{ .Sytem }}", 1, "`.Sytem`: the data of the template has no field `Sytem`"),
        ("a\n{{ range .Messages }}{{ .Rol }}{{ end }}", 2, "`.Rol`: a message has no field `Rol`"),
        ("{{ range .Messages }}\n{{ .Tools }}{{ end }}", 2, "a message has no field `Tools`"),
        ("{{ range .Tools }}{{ .Name }}{{ end }}", 1, "`.Name`: a tool has no field `Name`"),
        ("{{ range .Tools }}{{ json .Function.Arguments }}{{ end }}", 1, "has no field `Arguments`"),
        (
            "{{ range .Messages }}{{ range .ToolCalls }}{{ .Name }}{{ end }}{{ end }}",
            1,
            "a call has no field `Name`",
        ),
        ("{{ range .Messages }}{{ .Content.Text }}{{ end }}", 1, "a text has no field `Text`"),
        ("{{ .Messages.Role }}", 1, "the list of messages has no field `Role`"),
        ('{{ template "no" . }}', 1, "the template `no` is not defined"),
        ('{{ define "t" }}x{{ end }}{{ template "t" }}', 1, "is given no value"),
        ("{{ range .Messages }}{{ . }}{{ end }}", 1, "prints a message without `json`"),
    ],
)
def test_what_would_fail_or_print_nonsense_at_the_first_request_is_refused(
    template: str, line: int, said: str
) -> None:
    ((found_line, sentence),) = findings(template, uses_tools=False)
    assert said in sentence
    assert found_line == line


@pytest.mark.parametrize(
    "template",
    [
        "{{ .System }}{{ .Prompt }}{{ .Suffix }}{{ .Response }}",
        "{{ .Think }}{{ .ThinkLevel }}{{ .IsThinkSet }}",
        "{{ range .Messages }}{{ .Thinking }}{{ .ToolName }}{{ .ToolCallID }}{{ $.System }}{{ end }}",
        "{{ range .Messages }}{{ range .ToolCalls }}{{ .ID }}{{ .Function.Arguments.q }}{{ end }}{{ end }}",
        "{{ range $i, $_ := .Messages }}{{ if eq (len (slice $.Messages $i)) 1 }}x{{ end }}{{ end }}",
        "{{ currentDate }}{{ range .Messages }}{{ break }}{{ end }}",
        '{{ block "b" . }}{{ .System }}{{ end }}',
        "{{- /* {{ .Nothing }} */ -}}x",
    ],
)
def test_what_servers_render_passes(template: str) -> None:
    assert findings(template, uses_tools=False) == []


@pytest.mark.parametrize(
    ("template", "line", "reason"),
    [
        ("a\n{{ if .A }}\nb", 2, "the `if` of this line has no `{{ end }}`"),
        ("{{ range .A }}\n{{ else }}\n", 2, "has no `{{ end }}`"),
        ("a\n\n{{ end }}", 3, "unexpected {{ end }}"),
        ("{{ else }}", 1, "unexpected {{ else }}"),
        ("x\n{{ .A ", 2, "unclosed action"),
        ("{{ nosuch .A }}", 1, "function `nosuch` not defined"),
        ("{{ $x }}", 1, "undefined variable `$x`"),
        ("{{ if .A }}{{ else }}{{ else }}{{ end }}", 1, "found {{ else }}"),
        ("{{ if }}{{ end }}", 1, "missing value for if"),
        ('{{ "a }}', 1, "unterminated quoted string"),
        ("{{ (.A }}", 1, "unclosed left parenthesis"),
        ("{{ .A) }}", 1, "unexpected right parenthesis"),
        ("{{/* a }}", 1, "unclosed comment"),
        ("{{ break }}", 1, "outside"),
        ('{{ range .Messages }}{{ block "b" . }}{{ break }}{{ end }}{{ end }}', 1, "outside"),
        ("{{ if $x := .System }}{{ end }}{{ $x }}", 1, "undefined variable `$x`"),
        ("{{ if .A }}" * 5000, 1, "nested too deeply"),
        ("{{ " + "(" * 5000, 1, "nested too deeply"),
        ("{{end}}", 1, "unexpected {{ end }}"),
        ('{{- range .A -}}{{ define "x" }}{{ end }}{{ end }}', 1, "unexpected `define`"),
    ],
)
def test_a_template_that_go_cannot_parse_is_refused_with_its_line(
    template: str, line: int, reason: str
) -> None:
    (refused,) = lint_template(template, uses_tools=True, first_line=1, path="m")
    assert refused.sentence == "the `TEMPLATE` is not a Go template"
    assert reason in (refused.cause or "")
    assert refused.line == line
    with pytest.raises(TemplateRefused):
        derive_tag(template)


@pytest.mark.parametrize("template", ["", " \n"])
def test_an_empty_template_is_refused(template: str) -> None:
    for uses_tools in (True, False):
        assert sentences(template, uses_tools=uses_tools) == "the `TEMPLATE` is empty"


def test_lines_count_from_the_first_line_in_the_file() -> None:
    (refused,) = lint_template("a\n{{ .Sytem }}", uses_tools=False, first_line=20, path="m.j2")
    assert (refused.path, refused.line) == ("m.j2", 21)


PIECES = (
    "{{ | }} | {{- |  -}} | if | range | with | else | end | .Tools | .ToolCalls | $x | := | ( | ) "
    "| \" | ` | ' | /* | */ | <t> | { | json | define | 1 | . | ,"
)


@given(st.lists(st.sampled_from([*PIECES.split(" | "), "|", "\n", " "]), max_size=25))
def test_any_template_is_judged_without_a_crash(pieces: list[str]) -> None:
    template = "".join(pieces)
    found = lint_template(template, uses_tools=True, first_line=1, path="m")
    assert all(refused.line is not None and refused.line <= template.count("\n") + 1 for refused in found)
