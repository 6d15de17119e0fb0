"""The tokens of Go's text/template (text/template/parse/lex.go): text, actions, trim markers, comments."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

_SPACES = " \t\r\n"
_KEYWORDS = frozenset(
    ["block", "break", "continue", "define", "else", "end", "if", "range", "template", "with"]
)
_NUMBER = re.compile(
    r"[+-]?(?:0[xX][0-9A-Fa-f_]+|0[bB][01_]+|0[oO][0-7_]+|(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][+-]?[0-9]+)?)i?"
)
_WORD = re.compile(r"\w+")
_QUOTED = re.compile(r'"(?:[^"\\\n]|\\[^\n])*"')
_CHAR = re.compile(r"'(?:[^'\\\n]|\\(?:[abfnrtv\\']|x[0-9a-fA-F]{2}|[0-3][0-7]{2}|u[0-9a-fA-F]{4}))'")
_GO_ESCAPES = re.compile(
    r"""(?:[^\\]|\\(?:[abfnrtv\\"]|x[0-9a-fA-F]{2}|[0-3][0-7]{2}|u[0-9a-fA-F]{4}|U00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4}))*"""
)
_PUNCTUATION = {"|": "pipe", "(": "open", ")": "close", "=": "assign"}


class TemplateSyntaxError(Exception):
    """Go would refuse to parse the template. `line` counts from 1 inside the template."""

    def __init__(self, reason: str, line: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the template.

    `kind` is one of text, left, right, space, identifier, keyword, field, variable, dot, nil, bool, number,
    string, char_constant, char, pipe, open, close, declare, assign, error, eof.
    """

    kind: str
    text: str
    line: int


def parse_tokens(text: str) -> tuple[Token, ...]:
    """Template text -> tokens up to `eof`; where it cannot be read, a token `error` has the reason."""
    return tuple(_Lexer(text).tokens())


def unquote(token: Token) -> str:
    """The value of a string token. Raises TemplateSyntaxError for an escape that Go does not know."""
    if token.text.startswith("`"):
        return token.text[1:-1].replace("\r", "")
    if _GO_ESCAPES.fullmatch(token.text[1:-1]) is None:
        raise TemplateSyntaxError(f"invalid escape in {token.text}", token.line)
    return str(ast.literal_eval(token.text))


class _Lexer:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._found: list[Token] = []

    def tokens(self) -> list[Token]:
        try:
            while self._at < len(self._text):
                self._lex_text()
                if self._at < len(self._text):
                    self._lex_delimited()
        except TemplateSyntaxError as error:
            self._found.append(Token("error", error.reason, error.line))
        self._emit("eof", "", len(self._text))
        return self._found

    def _line(self, at: int) -> int:
        return self._text.count("\n", 0, at) + 1

    def _emit(self, kind: str, text: str, at: int) -> None:
        self._found.append(Token(kind, text, self._line(at)))

    def _fail(self, reason: str, at: int) -> TemplateSyntaxError:
        return TemplateSyntaxError(reason, self._line(at))

    def _lex_text(self) -> None:
        end = self._text.find("{{", self._at)
        if end < 0:
            end = len(self._text)
        text = self._text[self._at : end]
        if self._has_left_trim(end + 2):
            text = text.rstrip(_SPACES)
        if text:
            self._emit("text", text, self._at)
        self._at = end

    def _has_left_trim(self, at: int) -> bool:
        return self._text[at : at + 1] == "-" and self._text[at + 1 : at + 2] in (*_SPACES,)

    def _right_delimiter(self) -> int:
        """Length of the closing delimiter here, trim marker included; 0 where none stands."""
        if self._text.startswith("}}", self._at):
            return 2
        is_trimmed = self._text[self._at : self._at + 1] in (*_SPACES,) and self._text.startswith(
            "-}}", self._at + 1
        )
        return 4 if is_trimmed else 0

    def _leave(self, length: int) -> None:
        self._at += length
        if length == 4:
            rest = self._text[self._at :]
            self._at += len(rest) - len(rest.lstrip(_SPACES))

    def _lex_delimited(self) -> None:
        start = self._at
        self._at += 2
        inside = self._at + (2 if self._has_left_trim(self._at) else 0)
        if self._text.startswith("/*", inside):
            self._lex_comment(inside, start)
            return
        self._at = inside
        self._emit("left", "{{", start)
        self._lex_action(start)

    def _lex_comment(self, inside: int, start: int) -> None:
        end = self._text.find("*/", inside + 2)
        if end < 0:
            raise self._fail("unclosed comment", start)
        self._at = end + 2
        length = self._right_delimiter()
        if not length:
            raise self._fail("comment ends before closing delimiter", start)
        self._leave(length)

    def _lex_action(self, start: int) -> None:
        depth = 0
        while not (length := self._right_delimiter()):
            if self._at >= len(self._text):
                raise self._fail("unclosed action: no `}}`", start)
            if self._text[self._at] == ")" and not depth:
                raise self._fail("unexpected right parenthesis", self._at)
            depth += self._lex_inside()
        if depth:
            raise self._fail("unclosed left parenthesis", self._at)
        self._emit("right", "}}", self._at)
        self._leave(length)

    def _lex_inside(self) -> int:
        """One token of an action; the change of the depth of parentheses."""
        character = self._text[self._at]
        if character in _SPACES:
            self._lex_space()
        elif character in _PUNCTUATION:
            self._take(_PUNCTUATION[character], 1)
            return {"(": 1, ")": -1}.get(character, 0)
        elif character == ":":
            if not self._text.startswith(":=", self._at):
                raise self._fail("expected :=", self._at)
            self._take("declare", 2)
        elif character in "\"'`":
            self._lex_quoted(character)
        elif character == "$" or (character == "." and not self._digit_follows()):
            self._lex_field_or_variable(character)
        elif character in "+-." or character in "0123456789":
            self._lex_number()
        elif character == "_" or character.isalnum():
            self._lex_word()
        elif character.isascii() and character.isprintable():
            self._take("char", 1)
        else:
            raise self._fail(f"unrecognized character U+{ord(character):04X} in action", self._at)
        return 0

    def _take(self, kind: str, length: int) -> None:
        self._emit(kind, self._text[self._at : self._at + length], self._at)
        self._at += length

    def _lex_space(self) -> None:
        end = self._at
        while self._text[end : end + 1] in (*_SPACES,):
            end += 1
        if self._text.startswith("-}}", end):
            end -= 1
        if end > self._at:
            self._take("space", end - self._at)

    def _digit_follows(self) -> bool:
        return self._text[self._at + 1 : self._at + 2] in (*"0123456789",)

    def _lex_quoted(self, quote: str) -> None:
        if quote == "`":
            end = self._text.find("`", self._at + 1)
            if end < 0:
                raise self._fail("unterminated raw quoted string", self._at)
            self._take("string", end + 1 - self._at)
            return
        matched = (_QUOTED if quote == '"' else _CHAR).match(self._text, self._at)
        if matched is None:
            raise self._fail("unterminated quoted string", self._at)
        self._take("string" if quote == '"' else "char_constant", matched.end() - self._at)

    def _lex_field_or_variable(self, first: str) -> None:
        matched = _WORD.match(self._text, self._at + 1)
        end = matched.end() if matched else self._at + 1
        self._check_terminated(end)
        if first == ".":
            self._take("field" if matched else "dot", end - self._at)
        else:
            self._take("variable", end - self._at)

    def _lex_number(self) -> None:
        matched = _NUMBER.match(self._text, self._at)
        if matched is None or _WORD.match(self._text, matched.end()):
            raise self._fail("bad number syntax", self._at)
        self._take("number", matched.end() - self._at)

    def _lex_word(self) -> None:
        matched = _WORD.match(self._text, self._at)
        if matched is None:
            raise self._fail(f"unrecognized character {self._text[self._at]!r} in action", self._at)
        self._check_terminated(matched.end())
        word = matched.group()
        kind = (
            "keyword"
            if word in _KEYWORDS
            else {"true": "bool", "false": "bool", "nil": "nil"}.get(word, "identifier")
        )
        self._take(kind, len(word))

    def _check_terminated(self, end: int) -> None:
        rest = self._text[end : end + 2]
        if rest and rest[0] not in _SPACES + ".,|:)(" and rest != "}}":
            raise self._fail(f"bad character `{rest[0]}` in a name", end)
