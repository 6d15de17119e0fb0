"""Judges a TEMPLATE before anything is sent: will the model see its tools, and the server its calls?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from deploy.errors import TemplateRefused
from deploy.go_template import Action, Branch, Call, GoTemplate, Node, Operand, Pipe, Text, parse_go_template
from deploy.go_template_tokens import TemplateSyntaxError
from deploy.template_values import Problem, find_value_problems

# unicode.IsSpace: what bytes.TrimSpace and strings.TrimSpace take away.
_GO_SPACES = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005"
    "\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
_UNCHANGED = "nothing was sent to any server"
# `<tool_call>`, `[TOOL_CALLS]`, `<function_call>`: text that asks for a tag around a call.
_CALL_TAG = re.compile(r"[<\[]\|?[\w ]*(?:call|function)[\w ]*\|?[>\]]", re.IGNORECASE)
_EXAMPLE = re.compile(r'\{\s*"(?:name|parameters|arguments)"')
_HOW_TO_TAG = (
    "make the tag that the prompt asks for the first text inside the first `{{ if .ToolCalls }}`, "
    "before any other `if`"
)


def derive_tag(template: str) -> str:
    """The text that Ollama looks for in the model's output before it reads a call, "{" where there is none.

    The rule of tools/template.go (the same on 0.17.5, 0.24.0 and 0.32.15): the first text that is not blank
    inside the first `if` on `.ToolCalls`, depth first, an action or a branch without text ending the search;
    cut at `{` and trimmed. Raises TemplateRefused where Go cannot parse the template.
    """
    try:
        return _tag_of(parse_go_template(template))
    except TemplateSyntaxError as error:
        raise _refuse(_syntax_problem(error), 1, "TEMPLATE") from None


def lint_template(
    template: str, *, uses_tools: bool, first_line: int, path: str
) -> tuple[TemplateRefused, ...]:
    """Every reason to refuse a TEMPLATE, in the order of its lines; none is the answer that lets it pass.

    `first_line` is the line of `path` on which the template's own first line stands.
    """
    if not template.strip():
        empty = Problem(
            line=1,
            sentence="the `TEMPLATE` is empty",
            cause="Ollama then guesses one from the weights, and the guess for Qwen2 knows no tools",
            hint='add `TEMPLATE """..."""` to the Modelfile',
        )
        return (_refuse(empty, first_line, path),)
    try:
        parsed = parse_go_template(template)
    except TemplateSyntaxError as error:
        return (_refuse(_syntax_problem(error), first_line, path),)
    problems = [*find_value_problems(parsed)]
    if uses_tools:
        problems += _find_tool_problems(parsed)
    problems.sort(key=lambda problem: problem.line)
    return tuple(_refuse(problem, first_line, path) for problem in problems)


def _refuse(problem: Problem, first_line: int, path: str) -> TemplateRefused:
    return TemplateRefused(
        sentence=problem.sentence,
        path=path,
        line=first_line + problem.line - 1,
        cause=problem.cause,
        unchanged=_UNCHANGED,
        hint=problem.hint,
    )


def _syntax_problem(error: TemplateSyntaxError) -> Problem:
    return Problem(
        line=error.line,
        sentence="the `TEMPLATE` is not a Go template",
        cause=error.reason,
        hint="close every `{{` with `}}` and every `if`, `range` and `with` with `{{ end }}`",
    )


# -- tools ----------------------------------------------------------------------------------------------


def _find_tool_problems(template: GoTemplate) -> Iterator[Problem]:
    nodes = [*template.nodes, *(node for defined in template.defined.values() for node in defined)]
    is_used = True
    for name, without in (
        ("Tools", "the model is never shown a tool, and every request with tools is answered with HTTP 400"),
        ("ToolCalls", "the model never sees the calls it has made"),
    ):
        tested, shown = _find_uses(nodes, name)
        if not shown:
            is_used = False
            yield Problem(
                line=tested or 1,
                sentence=f"the `TEMPLATE` {'only tests' if tested else 'does not use'} `.{name}`",
                cause=without,
                hint=f"add `{{{{ range .{name} }}}}...{{{{ end }}}}`, or set `tools = false` for the model",
            )
    if not any(_is_tool_role(command) for pipe in _pipes(nodes) for command in pipe.commands):
        yield Problem(
            line=1,
            sentence='the `TEMPLATE` does not use the role `"tool"`',
            cause="the results of tools never reach the model",
            hint='add `{{ else if eq .Role "tool" }}` to the range over `.Messages`',
        )
    if is_used:
        yield from _find_tag_problem(template, nodes)


def _find_tag_problem(template: GoTemplate, nodes: list[Node]) -> Iterator[Problem]:
    tag = _tag_of(template)
    prompt = _prompt_text(nodes)
    branch = _tool_calls_branch(template.nodes)
    line = branch.line if branch is not None else 1
    asked = _CALL_TAG.search(prompt)
    if tag == "{":
        is_asked_for = asked is None and _asks_for_bare_json(prompt)
    else:
        is_word = re.fullmatch(r"[\w ]+", tag) is not None
        is_closing = tag.startswith(("</", "[/"))
        is_asked_for = _contains_word(prompt, tag) and not is_closing and not (is_word and asked)
    if not is_asked_for:
        wanted = f"asks for `{asked.group()}`" if asked else "does not ask for it"
        yield Problem(
            line=line,
            sentence=f"the server would look for `{_shorten(tag)}`, and the prompt {wanted}",
            cause="Ollama takes the tag from the `TEMPLATE`; every call would come back as plain text",
            hint=_HOW_TO_TAG,
        )


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."


def _contains_word(text: str, word: str) -> bool:
    before = r"(?<!\w)" if word[0].isalnum() else ""
    after = r"(?!\w)" if word[-1].isalnum() else ""
    return re.search(before + re.escape(word) + after, text) is not None


def _asks_for_bare_json(prompt: str) -> bool:
    example = _EXAMPLE.search(prompt)
    if example is None:
        return "json" in prompt.lower()
    return not prompt[: example.start()].rstrip().endswith((">", "]"))


def _is_tool_role(command: tuple[Operand, ...]) -> bool:
    first, *arguments = command
    return (
        first.kind == "function"
        and first.name == "eq"
        and any(operand.is_string and operand.name == "tool" for operand in arguments)
    )


# -- the tree -------------------------------------------------------------------------------------------


def _tag_of(template: GoTemplate) -> str:
    branch = _tool_calls_branch(template.nodes)
    text = _first_text(branch.body) if branch is not None else None
    if text is None:
        return "{"
    return text.text.replace("\r\n", "\n").partition("{")[0].strip(_GO_SPACES) or "{"


def _tool_calls_branch(nodes: Iterable[Node]) -> Branch | None:
    """findToolCallNode: only a field (not `$x.ToolCalls`, nothing in parentheses) of an `if` counts."""
    for node in nodes:
        if not isinstance(node, Branch):
            continue
        if node.kind == "if" and _tests_tool_calls(node.pipe):
            return node
        found = _tool_calls_branch((*node.body, *(node.otherwise or ())))
        if found is not None:
            return found
    return None


def _tests_tool_calls(pipe: Pipe) -> bool:
    return any(
        operand.kind == "field" and "ToolCalls" in operand.idents
        for command in pipe.commands
        for operand in command
    )


def _first_text(nodes: Iterable[Node]) -> Text | None:
    """findTextNode: blank texts are passed over, a branch or an action ends the search."""
    for node in nodes:
        if isinstance(node, Text):
            if node.text.strip(_GO_SPACES):
                return node
        elif isinstance(node, Branch):
            return _first_text(node.body) or _first_text(node.otherwise or ())
        elif isinstance(node, Action):
            return None
    return None


def _pipes(nodes: Iterable[Node]) -> Iterator[Pipe]:
    """Every pipeline of the nodes and what is inside them, parenthesised ones too."""
    for node in nodes:
        if isinstance(node, Branch):
            yield from _with_nested(node.pipe)
            yield from _pipes((*node.body, *(node.otherwise or ())))
        elif isinstance(node, Action | Call) and node.pipe is not None:
            yield from _with_nested(node.pipe)


def _with_nested(pipe: Pipe) -> Iterator[Pipe]:
    yield pipe
    for command in pipe.commands:
        for operand in command:
            if operand.pipe is not None:
                yield from _with_nested(operand.pipe)


def _mentions(pipe: Pipe, name: str) -> bool:
    return any(
        name in operand.idents
        for nested in _with_nested(pipe)
        for command in nested.commands
        for operand in command
    )


def _find_uses(nodes: Iterable[Node], name: str) -> tuple[int | None, bool]:
    """The line of the first `if` on a field, and whether the field is used anywhere else."""
    tested: int | None = None
    shown = False
    for node in nodes:
        if isinstance(node, Branch):
            if _mentions(node.pipe, name):
                if node.kind == "if" and not node.pipe.declares:
                    tested = tested or node.line
                else:
                    shown = True
            inner_tested, inner_shown = _find_uses((*node.body, *(node.otherwise or ())), name)
            tested, shown = tested or inner_tested, shown or inner_shown
        elif isinstance(node, Action | Call) and node.pipe is not None:
            shown = shown or _mentions(node.pipe, name)
    return tested, shown


def _prompt_text(nodes: Iterable[Node]) -> str:
    """What the model is told beside its tools: the text under `.Tools`, else all but the calls."""
    nodes = list(nodes)
    told = "\0".join(_texts(nodes, inside=False))
    return told if told.strip("\0 \n") else "\0".join(_texts(nodes, inside=True))


def _texts(nodes: Iterable[Node], *, inside: bool) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, Text) and inside:
            yield node.text
        elif isinstance(node, Branch):
            if not _mentions(node.pipe, "ToolCalls"):
                yield from _texts(node.body, inside=inside or _mentions(node.pipe, "Tools"))
            yield from _texts(node.otherwise or (), inside=inside)
