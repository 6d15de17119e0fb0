"""What the fields of a TEMPLATE hold and how Go prints them, checked over the whole tree.

The values are those of Ollama's template/template.go and api/types.go (0.17.5 and 0.32.15). Structs print as
Go syntax, never as JSON (measured on 0.17.5 and 0.24.0); only `.Tools`, `.Function.Parameters.Properties` and
`.Function.Arguments` print as JSON by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from deploy.go_template import Action, Branch, Call, GoTemplate, Node, Operand, Pipe
from deploy.modelfile import suggest

Shape = str

# Fields of each shape, and the shape of their values. `any` is everything not looked into.
FIELDS: dict[Shape, dict[str, Shape]] = {
    "root": {
        "System": "text",
        "Prompt": "text",
        "Suffix": "text",
        "Response": "text",
        "Messages": "messages",
        "Tools": "tools",
        "Think": "bool",
        "ThinkLevel": "text",
        "IsThinkSet": "bool",
    },
    "message": {
        "Role": "text",
        "Content": "text",
        "Thinking": "text",
        "Images": "any",
        "ToolCalls": "calls",
        "ToolName": "text",
        "ToolCallID": "text",
    },
    "tools": {"String": "text"},
    "tool": {"Type": "text", "Items": "any", "Function": "function"},
    "function": {"Name": "text", "Description": "text", "Parameters": "parameters"},
    "parameters": {
        "Type": "text",
        "Defs": "any",
        "Items": "any",
        "Required": "any",
        "Properties": "properties",
    },
    "property": {
        "AnyOf": "any",
        "Type": "any",
        "Items": "any",
        "Description": "text",
        "Enum": "any",
        "Properties": "any",
        "Required": "any",
        "ToTypeScriptType": "text",
    },
    "call": {"ID": "text", "Function": "call function"},
    "call function": {"Index": "int", "Name": "text", "Arguments": "any"},
    "messages": {},
    "calls": {},
    "text": {},
    "int": {},
    "bool": {},
}
ELEMENTS = {"messages": "message", "tools": "tool", "calls": "call", "properties": "property"}
# The shapes that Go prints as `{get_weather Get the weather {object ...}}`.
_TOOL_STRUCTS = frozenset(("tool", "function", "parameters", "property"))
_STRUCTS = _TOOL_STRUCTS | {"message", "messages", "call", "calls", "call function"}
_PRINTING = frozenset(("print", "printf", "println", "html", "js", "urlquery"))
_BOOLEAN = frozenset(("not", "eq", "ne", "lt", "le", "gt", "ge"))
_WORDS = {
    "root": "the data of the template",
    "messages": "the list of messages",
    "message": "a message",
    "tools": "the list of tools",
    "tool": "a tool",
    "function": "the function of a tool",
    "parameters": "the parameters of a tool",
    "property": "a parameter of a tool",
    "calls": "the list of calls",
    "call": "a call",
    "call function": "the function of a call",
    "text": "a text",
    "int": "a number",
    "bool": "a truth value",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A finding with its line inside the template (from 1)."""

    line: int
    sentence: str
    cause: str
    hint: str


def find_value_problems(template: GoTemplate) -> tuple[Problem, ...]:
    """Unknown fields and templates, and values that print as Go struct syntax, in order of their lines."""
    checker = _Checker(template=template)
    checker.walk(template.nodes, "root", [{"$": "root"}])
    for name, nodes in template.defined.items():
        if name not in checker.called:
            checker.walk(nodes, "any", [{"$": "any"}])
    return tuple(sorted(dict.fromkeys(checker.problems), key=lambda problem: problem.line))


@dataclass(slots=True)
class _Checker:
    template: GoTemplate
    problems: list[Problem] = field(default_factory=list)
    called: set[str] = field(default_factory=set)
    entered: set[tuple[str, Shape]] = field(default_factory=set)

    def walk(self, nodes: Iterable[Node], dot: Shape, scopes: list[dict[str, Shape]]) -> None:
        for node in nodes:
            match node:
                case Action():
                    shape = self._pipe(node.pipe, dot, scopes)
                    if not node.pipe.declares:
                        self._check_printed(shape, node.pipe, _value_text(node.pipe.commands[-1]))
                case Branch():
                    self._branch(node, dot, scopes)
                case Call():
                    self._call(node, dot, scopes)

    def _branch(self, node: Branch, dot: Shape, scopes: list[dict[str, Shape]]) -> None:
        inner = [*scopes, {}]
        shape = self._pipe(node.pipe, dot, inner, is_range=node.kind == "range")
        body_dot = dot
        if node.kind == "range":
            body_dot = ELEMENTS.get(shape, "any")
        elif node.kind == "with":
            body_dot = shape
        self.walk(node.body, body_dot, [*inner, {}])
        self.walk(node.otherwise or (), dot, [*inner, {}])

    def _call(self, node: Call, dot: Shape, scopes: list[dict[str, Shape]]) -> None:
        self.called.add(node.name)
        if node.pipe is None:
            self._report(
                node.line,
                f'`{{{{ template "{node.name}" }}}}` is given no value',
                "Ollama refuses the whole TEMPLATE: undefined template specified",
                f'write `{{{{ template "{node.name}" . }}}}`',
            )
            return
        shape = self._pipe(node.pipe, dot, scopes)
        if node.name not in self.template.defined:
            self._report(
                node.line,
                f"the template `{node.name}` is not defined",
                "every request that reaches it is answered with HTTP 500",
                f'add `{{{{ define "{node.name}" }}}}...{{{{ end }}}}`',
            )
        elif (node.name, shape) not in self.entered:
            self.entered.add((node.name, shape))
            self.walk(self.template.defined[node.name], shape, [{"$": shape}])

    # -- values -----------------------------------------------------------------------------------------

    def _pipe(
        self, pipe: Pipe, dot: Shape, scopes: list[dict[str, Shape]], *, is_range: bool = False
    ) -> Shape:
        value: Shape | None = None
        for stage, command in enumerate(pipe.commands):
            piped = None if value is None else (value, _value_text(pipe.commands[stage - 1]))
            value = self._command(command, piped, pipe, dot, scopes)
        shape = value or "any"
        if is_range and pipe.declares:
            element = ELEMENTS.get(shape, "any")
            shapes = ["any" if shape in ("any", "properties") else "int", element][-len(pipe.declares) :]
            for name, declared in zip(pipe.declares, shapes, strict=True):
                _declare(name, declared, scopes, assigns=pipe.assigns)
        else:
            for name in pipe.declares:
                _declare(name, shape, scopes, assigns=pipe.assigns)
        return shape

    def _command(
        self,
        command: tuple[Operand, ...],
        piped: tuple[Shape, str] | None,
        pipe: Pipe,
        dot: Shape,
        scopes: list[dict[str, Shape]],
    ) -> Shape:
        first, *rest = command
        arguments = [(self._operand(operand, dot, scopes), show_operand(operand)) for operand in rest]
        if first.kind != "function":
            return self._operand(first, dot, scopes)
        if piped is not None:
            arguments.append(piped)
        name = first.name
        shapes = [shape for shape, _ in arguments]
        if name in _PRINTING:
            for shape, text in arguments:
                self._check_printed(shape, pipe, text)
            return "text"
        if name in ("and", "or"):
            return next((shape for shape in shapes if shape in _STRUCTS), shapes[-1] if shapes else "any")
        if name == "slice":
            return shapes[0] if shapes else "any"
        if name == "index":
            return ELEMENTS.get(shapes[0], "any") if len(shapes) == 2 else "any"
        if name in _BOOLEAN:
            return "bool"
        return {"len": "int", "call": "any"}.get(name, "text")

    def _operand(self, operand: Operand, dot: Shape, scopes: list[dict[str, Shape]]) -> Shape:
        match operand.kind:
            case "dot":
                return dot
            case "field":
                shape = dot
            case "variable":
                shape = next(
                    (scope[operand.name] for scope in reversed(scopes) if operand.name in scope), "any"
                )
            case "pipe":
                assert operand.pipe is not None
                shape = self._pipe(operand.pipe, dot, scopes)
            case "literal":
                return "text" if operand.is_string else "any"
            case _:
                return "any" if operand.kind == "nil" else "text"
        for ident in operand.idents:
            shape = self._field(shape, ident, operand)
        return shape

    def _field(self, shape: Shape, ident: str, operand: Operand) -> Shape:
        if shape == "properties":
            return "text" if ident == "String" else "property"
        known = FIELDS.get(shape)
        if known is None or ident in known:
            return "any" if known is None else known[ident]
        owner = _WORDS[shape]
        near = suggest(ident, known) or next((name for name in known if name.lower() == ident.lower()), None)
        hint = f"did you mean `.{near}`?" if near else f"its fields are {', '.join(known) or 'none'}"
        if shape != "root" and ident in FIELDS["root"]:
            hint = f"inside `range` or `with` write `$.{ident}`"
        self._report(
            operand.line,
            f"`{show_operand(operand)}`: {owner} has no field `{ident}`",
            "Ollama prints `<no value>` into the prompt"
            if shape == "root"
            else "every request that reaches it is answered with HTTP 500",
            hint,
        )
        return "any"

    def _check_printed(self, shape: Shape, pipe: Pipe, value: str) -> None:
        """`value` is the text of what has this shape: all of `pipe`, or an argument in it."""
        if shape not in _STRUCTS:
            return
        if shape in ("messages", "message"):
            hint = "print its fields, `.Role` and `.Content`"
        elif shape in ("calls", "call", "call function"):
            hint = "print `.Function.Name` and `.Function.Arguments` of each call"
        else:
            hint = f"write `{{{{ json {value} }}}}`"
        seen = "the model never sees a JSON schema" if shape in _TOOL_STRUCTS else "the model never sees JSON"
        self._report(
            pipe.line,
            f"`{{{{ {show(pipe)} }}}}` prints {_WORDS[shape]} without `json`",
            f"Ollama prints Go struct syntax there, and {seen}",
            hint,
        )

    def _report(self, line: int, sentence: str, cause: str, hint: str) -> None:
        self.problems.append(Problem(line=line, sentence=sentence, cause=cause, hint=hint))


def _declare(name: str, shape: Shape, scopes: list[dict[str, Shape]], *, assigns: bool) -> None:
    if assigns:
        for scope in reversed(scopes):
            if name in scope:
                scope[name] = shape
                return
    scopes[-1][name] = shape


def _value_text(command: tuple[Operand, ...]) -> str:
    """A command as one operand."""
    text = " ".join(show_operand(operand) for operand in command)
    return text if len(command) == 1 else f"({text})"


def show(pipe: Pipe) -> str:
    """A pipeline as it could be written."""
    body = " | ".join(" ".join(show_operand(operand) for operand in command) for command in pipe.commands)
    if not pipe.declares:
        return body
    return f"{', '.join(pipe.declares)} {'=' if pipe.assigns else ':='} {body}"


def show_operand(operand: Operand) -> str:
    """An operand as it could be written."""
    fields = "".join(f".{ident}" for ident in operand.idents)
    match operand.kind:
        case "dot":
            return "."
        case "nil":
            return "nil"
        case "literal" if operand.is_string:
            return f'"{operand.name}"'
        case "pipe":
            assert operand.pipe is not None
            return f"({show(operand.pipe)}){fields}"
    return f"{operand.name}{fields}"
