"""Go's text/template syntax, parsed far enough to judge a TEMPLATE before a server sees it.

Follows Go's text/template/parse (lex.go, parse.go) as Ollama 0.17.5 is built with it: trim markers, comments,
variables, pipelines, `else if`, `else with`, `define`, `block`. Nodes carry the line they begin on (from 1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from deploy.go_template_tokens import TemplateSyntaxError, Token, parse_tokens, unquote

if TYPE_CHECKING:
    from collections.abc import Mapping

# text/template/funcs.go builtins, and the map `funcs` in Ollama's template/template.go (0.17.5 and 0.32.15).
FUNCTIONS = frozenset(
    [
        "and",
        "call",
        "html",
        "index",
        "slice",
        "js",
        "len",
        "not",
        "or",
        "print",
        "printf",
        "println",
        "urlquery",
        "eq",
        "ge",
        "gt",
        "le",
        "lt",
        "ne",
        "json",
        "currentDate",
        "yesterdayDate",
        "toTypeScriptType",
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """One word of a command.

    `kind` is `field` (`.A.B`), `variable` (`$x.A`; `name` is `$x`), `dot`, `nil`, `literal` (`name` is the
    value of a string, else its spelling), `function`, or `pipe` (a parenthesised pipeline). `idents` are
    field names.
    """

    kind: Literal["field", "variable", "dot", "nil", "literal", "function", "pipe"]
    line: int
    name: str = ""
    idents: tuple[str, ...] = ()
    pipe: Pipe | None = None
    is_string: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipe:
    """Commands joined by `|`; `declares` are the variables set by it (`:=` or, with `assigns`, `=`)."""

    line: int
    declares: tuple[str, ...] = ()
    assigns: bool = False
    commands: tuple[tuple[Operand, ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Literal text, trim markers already applied."""

    text: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """A pipeline whose value is printed unless it declares a variable."""

    pipe: Pipe
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """`if`, `range` or `with`; an `else if` is a branch alone in `otherwise`."""

    kind: Literal["if", "range", "with"]
    pipe: Pipe
    body: tuple[Node, ...]
    otherwise: tuple[Node, ...] | None
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """`{{ template "name" pipe }}`, and what a `block` leaves where it stands."""

    name: str
    pipe: Pipe | None
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Jump:
    """`break` or `continue`."""

    line: int


Node = Text | Action | Branch | Call | Jump


@dataclass(frozen=True, slots=True, kw_only=True)
class GoTemplate:
    """The main list of nodes and every `define`d one."""

    nodes: tuple[Node, ...]
    defined: Mapping[str, tuple[Node, ...]]


def parse_go_template(text: str) -> GoTemplate:
    """Go template text -> tree. Raises TemplateSyntaxError with the line inside `text` (from 1)."""
    try:
        return _Parser(tokens=parse_tokens(text)).parse_all()
    except RecursionError:
        raise TemplateSyntaxError("blocks or parentheses are nested too deeply", 1) from None


@dataclass(slots=True)
class _Parser:
    tokens: tuple[Token, ...]
    position: int = 0
    variables: list[str] = field(default_factory=lambda: ["$"])
    range_depth: int = 0
    defined: dict[str, tuple[Node, ...]] = field(default_factory=dict)

    def parse_all(self) -> GoTemplate:
        nodes: list[Node] = []
        while self._peek().kind != "eof":
            if self._starts_definition():
                self._definition()
                continue
            node = self._text_or_action()
            if isinstance(node, Token):
                raise TemplateSyntaxError(f"unexpected {{{{ {node.text} }}}}", node.line)
            nodes.append(node)
        return GoTemplate(nodes=tuple(nodes), defined=self.defined)

    # -- tokens -----------------------------------------------------------------------------------------

    def _peek(self) -> Token:
        token = self.tokens[self.position]
        if token.kind == "error":
            raise TemplateSyntaxError(token.text, token.line)
        return token

    def _peek_word(self) -> Token:
        while self._peek().kind == "space":
            self.position += 1
        return self._peek()

    def _next(self) -> Token:
        token = self._peek()
        self.position += token.kind != "eof"
        return token

    def _next_word(self) -> Token:
        self._peek_word()
        return self._next()

    def _expect(self, kind: str, context: str) -> Token:
        token = self._next_word()
        if token.kind != kind:
            raise _unexpected(token, context)
        return token

    # -- blocks -----------------------------------------------------------------------------------------

    def _starts_definition(self) -> bool:
        start = self.position
        is_definition = self._next().kind == "left" and self._next_word().text == "define"
        if not is_definition or self.tokens[self.position - 1].kind != "keyword":
            self.position = start
            return False
        return True

    def _definition(self) -> None:
        line = self._peek().line
        name = self._template_name("define clause")
        self._expect("right", "define clause")
        outer, self.variables = self.variables, ["$"]
        depth, self.range_depth = self.range_depth, 0
        self._store(name, self._list_until_end("define", line))
        self.variables, self.range_depth = outer, depth

    def _store(self, name: str, nodes: tuple[Node, ...]) -> None:
        if _has_content(self.defined.get(name, ())):
            if not _has_content(nodes):
                return
            raise TemplateSyntaxError(f'multiple definition of template "{name}"', self._peek().line)
        self.defined[name] = nodes

    def _template_name(self, context: str) -> str:
        token = self._next_word()
        if token.kind != "string":
            raise _unexpected(token, context)
        return unquote(token)

    def _list_until_end(self, opened_by: str, line: int) -> tuple[Node, ...]:
        nodes, closing = self._list(opened_by, line)
        if closing.text != "end":
            raise TemplateSyntaxError(f"unexpected {{{{ else }}}} in {opened_by}", closing.line)
        return nodes

    def _list(self, opened_by: str, line: int) -> tuple[tuple[Node, ...], Token]:
        """The nodes up to `end` or `else`, and that token."""
        nodes: list[Node] = []
        while self._peek_word().kind != "eof":
            node = self._text_or_action()
            if isinstance(node, Token):
                return tuple(nodes), node
            nodes.append(node)
        raise TemplateSyntaxError(f"the `{opened_by}` of this line has no `{{{{ end }}}}`", line)

    def _text_or_action(self) -> Node | Token:
        """A node, or the token `end` or `else` that closes the list."""
        token = self._next_word()
        if token.kind == "text":
            return Text(text=token.text, line=token.line)
        if token.kind != "left":
            raise _unexpected(token, "input")
        word = self._peek_word()
        if word.kind != "keyword":
            return self._action(token.line)
        self._next()
        match word.text:
            case "if" | "range" | "with" as kind:
                return self._branch(kind, token.line)
            case "end":
                self._expect("right", "end")
                return word
            case "else":
                if self._peek_word().text not in ("if", "with"):
                    self._expect("right", "else")
                return word
            case "template":
                return self._call(token.line)
            case "block":
                return self._block(token.line)
            case "break" | "continue":
                self._expect("right", f"{{{{ {word.text} }}}}")
                if not self.range_depth:
                    raise TemplateSyntaxError(f"{{{{ {word.text} }}}} outside {{{{ range }}}}", word.line)
                return Jump(line=token.line)
        raise _unexpected(word, "command")

    def _action(self, line: int) -> Action:
        return Action(pipe=self._pipeline("command", "right"), line=line)

    def _branch(self, kind: Literal["if", "range", "with"], line: int) -> Branch:
        outer = len(self.variables)
        pipe = self._pipeline(kind, "right")
        self.range_depth += kind == "range"
        body, closing = self._list(kind, line)
        self.range_depth -= kind == "range"
        otherwise: tuple[Node, ...] | None = None
        if closing.text == "else":
            chained = self._peek_word()
            if chained.kind == "keyword" and chained.text == kind and kind in ("if", "with"):
                self._next()
                otherwise = (self._branch(kind, chained.line),)
            elif chained.kind == "keyword" and chained.text in ("if", "with"):
                raise _unexpected(chained, f"else of {{{{ {kind} }}}}")
            else:
                otherwise, closing = self._list(f"else` of `{kind}", closing.line)
                if closing.text != "end":
                    raise TemplateSyntaxError("expected {{ end }}, found {{ else }}", closing.line)
        del self.variables[outer:]
        return Branch(kind=kind, pipe=pipe, body=body, otherwise=otherwise, line=line)

    def _call(self, line: int) -> Call:
        name = self._template_name("template clause")
        if self._peek_word().kind == "right":
            self._next()
            return Call(name=name, pipe=None, line=line)
        return Call(name=name, pipe=self._pipeline("template clause", "right"), line=line)

    def _block(self, line: int) -> Call:
        name = self._template_name("block clause")
        pipe = self._pipeline("block clause", "right")
        outer, self.variables = self.variables, ["$"]
        depth, self.range_depth = self.range_depth, 0
        self._store(name, self._list_until_end("block", line))
        self.variables, self.range_depth = outer, depth
        return Call(name=name, pipe=pipe, line=line)

    # -- pipelines --------------------------------------------------------------------------------------

    def _pipeline(self, context: str, end: str) -> Pipe:
        line = self._peek_word().line
        declares, assigns = self._declarations(context)
        commands: list[tuple[Operand, ...]] = []
        while (token := self._peek_word()).kind != end:
            if token.kind not in _OPERAND_STARTS:
                raise _unexpected(token, context)
            commands.append(self._command())
        self._next()
        if not commands:
            raise TemplateSyntaxError(f"missing value for {context}", token.line)
        for stage, command in enumerate(commands[1:], start=2):
            if command[0].kind in ("dot", "nil", "literal"):
                raise TemplateSyntaxError(
                    f"non executable command in pipeline stage {stage}", command[0].line
                )
        return Pipe(line=line, declares=declares, assigns=assigns, commands=tuple(commands))

    def _declarations(self, context: str) -> tuple[tuple[str, ...], bool]:
        names: list[str] = []
        while self._peek_word().kind == "variable":
            start = self.position
            variable = self._next()
            follows = self._peek_word()
            if follows.kind in ("assign", "declare"):
                self._next()
                self.variables.append(variable.text)
                return (*names, variable.text), follows.kind == "assign"
            if follows.kind != "char" or follows.text != ",":
                self.position = start
                break
            self._next()
            names.append(variable.text)
            self.variables.append(variable.text)
            if context != "range" or len(names) > 1:
                raise TemplateSyntaxError(f"too many declarations in {context}", variable.line)
            if self._peek_word().kind not in ("variable", "right", "close"):
                raise TemplateSyntaxError("range can only initialize variables", variable.line)
        return tuple(names), False

    def _command(self) -> tuple[Operand, ...]:
        operands: list[Operand] = []
        while True:
            token = self._peek_word()
            operand = self._operand()
            if operand is not None:
                operands.append(operand)
            token = self._peek()
            if token.kind == "space":
                self._next()
                continue
            if token.kind == "pipe":
                self._next()
            elif token.kind not in ("right", "close"):
                raise _unexpected(token, "operand")
            break
        if not operands:
            raise TemplateSyntaxError("empty command", token.line)
        return tuple(operands)

    def _operand(self) -> Operand | None:
        operand = self._term()
        if operand is None or self._peek().kind != "field":
            return operand
        if operand.kind in ("literal", "nil", "dot"):
            raise TemplateSyntaxError("unexpected `.` after a value that has no fields", operand.line)
        idents = list(operand.idents)
        while self._peek().kind == "field":
            idents.append(self._next().text[1:])
        return Operand(
            kind=operand.kind, line=operand.line, name=operand.name, idents=tuple(idents), pipe=operand.pipe
        )

    def _term(self) -> Operand | None:
        token = self._peek_word()
        if token.kind not in _OPERAND_STARTS:
            return None
        self._next()
        match token.kind:
            case "identifier":
                if token.text not in FUNCTIONS:
                    raise TemplateSyntaxError(f"function `{token.text}` not defined", token.line)
                return Operand(kind="function", line=token.line, name=token.text)
            case "variable":
                if token.text not in self.variables:
                    raise TemplateSyntaxError(f"undefined variable `{token.text}`", token.line)
                return Operand(kind="variable", line=token.line, name=token.text)
            case "field":
                return Operand(kind="field", line=token.line, idents=(token.text[1:],))
            case "dot":
                return Operand(kind="dot", line=token.line)
            case "nil":
                return Operand(kind="nil", line=token.line)
            case "open":
                pipe = self._pipeline("parenthesized pipeline", "close")
                return Operand(kind="pipe", line=token.line, pipe=pipe)
            case "string":
                return Operand(kind="literal", line=token.line, name=unquote(token), is_string=True)
        return Operand(kind="literal", line=token.line, name=token.text)


_OPERAND_STARTS = frozenset(
    ("identifier", "variable", "field", "dot", "nil", "open", "string", "number", "bool", "char_constant")
)


def _has_content(nodes: tuple[Node, ...]) -> bool:
    """As parse.IsEmptyTree: only blank text is empty."""
    return any(not isinstance(node, Text) or node.text.strip() for node in nodes)


def _unexpected(token: Token, context: str) -> TemplateSyntaxError:
    found = {"eof": "end of the template", "right": "`}}`"}.get(token.kind, f"`{token.text}`")
    return TemplateSyntaxError(f"unexpected {found} in {context}", token.line)
