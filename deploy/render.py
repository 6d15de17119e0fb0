"""Jinja2 templates of `modelfiles/` -> Modelfile text -> the parsed value -> the body of `POST /api/create`.

Jinja2's delimiters here are `[[ value ]]`, `[% statement %]` and `[# comment #]`, so that Go's `{{ }}` passes
untouched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2

from deploy.desired import DesiredModel
from deploy.errors import FleetError, ModelError
from deploy.modelfile import parse_modelfile

__all__ = ["Rendered", "create_request", "parse_modelfile", "render_modelfile", "render_with_sources"]

# Characters of Unicode's private use area frame the origin of a line while jinja2 works.
_MARK = re.compile("\ue0f0(\\d+):(\\d+)\ue0f1")
_STATEMENT = re.compile(r"\[\[|\]\]|\[%|%\]|\[#|#\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """A Modelfile's text and, line by line, the source file and line that each came from."""

    text: str
    origins: tuple[tuple[str, int], ...]

    def locate(self, line: int) -> tuple[str, int]:
        """Line of `text` (from 1) -> path and line of its source."""
        return self.origins[min(line, len(self.origins)) - 1]


def render_modelfile(path: Path, variables: Mapping[str, str]) -> str:
    """The text of a Modelfile, ending in one line break.

    Raises ModelError with path and line: no such file, an unknown variable, a broken jinja2 tag.
    """
    return render_with_sources(path, variables).text


def render_with_sources(path: Path, variables: Mapping[str, str]) -> Rendered:
    """As `render_modelfile`, with the origin of every line, included files too."""
    sources: list[str] = []
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_marking_loader(path.parent, sources)),
        variable_start_string="[[",
        variable_end_string="]]",
        block_start_string="[%",
        block_end_string="%]",
        comment_start_string="[#",
        comment_end_string="#]",
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        autoescape=False,  # noqa: S701 - the output is a Modelfile, not HTML
    )
    try:
        marked = environment.get_template(path.name).render(variables)
    except jinja2.TemplateNotFound as error:
        raise _not_found(path, error) from None
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(
            sentence=f"`{error.name}` is no jinja2 template",
            path=str(path.parent / (error.name or path.name)),
            line=error.lineno,
            cause=str(error.message),
            hint="the delimiters are `[[ value ]]`, `[% statement %]` and `[# comment #]`",
        ) from None
    except jinja2.UndefinedError as error:
        raise ModelError(
            sentence=f"`{path.name}` uses a variable that does not exist",
            path=str(path),
            line=_line_of_failure(error, path.name),
            cause=str(error.message),
            hint=f"the variables are {', '.join(f'`{name}`' for name in variables)}",
        ) from None
    except RecursionError:
        raise ModelError(
            sentence=f"`{path.name}` includes itself", path=str(path), hint="take one of the includes out"
        ) from None
    except jinja2.TemplateError as error:
        raise ModelError(
            sentence=f"`{path.name}` cannot be rendered", path=str(path), cause=str(error)
        ) from None
    return _unmark(marked, sources)


def create_request(model: DesiredModel, name: str) -> dict[str, Any]:
    """The body of `POST /api/create` for `name` (with its tag); one JSON answer, no stream.

    The blob must be in the store already. `files` takes relative names only (0.17.5 answers 400 to `../`).
    """
    body: dict[str, Any] = {
        "model": name,
        "files": {PurePosixPath(model.weights.file).name: model.weights.digest},
        "template": model.modelfile.template,
        "parameters": dict(model.modelfile.parameters),
        "stream": False,
    }
    if model.modelfile.system is not None:
        body["system"] = model.modelfile.system
    return body


def _marking_loader(directory: Path, sources: list[str]) -> Callable[[str], tuple[str, str, None]]:
    def load(name: str) -> tuple[str, str, None]:
        path = directory / name
        if not path.resolve().is_relative_to(directory.resolve()) or not path.is_file():
            raise jinja2.TemplateNotFound(name)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ModelError(
                sentence=f"`{name}` is not UTF-8 text",
                path=str(path),
                cause=str(error),
                hint="save it as UTF-8",
            ) from None
        sources.append(str(path))
        return _mark(text, len(sources) - 1), str(path), None

    return load


def _mark(text: str, source: int) -> str:
    """Frame the origin before every line that does not begin inside a jinja2 tag."""
    marked: list[str] = []
    inside: str | None = None
    for number, line in enumerate(text.split("\n"), start=1):
        if inside is None and (line or number <= text.count("\n")):
            marked.append(f"\ue0f0{source}:{number}\ue0f1")
        marked.append(line + "\n")
        for delimiter in _STATEMENT.findall(line):
            if inside is None and delimiter[0] == "[":
                inside = {"[[": "]]", "[%": "%]", "[#": "#]"}[delimiter]
            elif delimiter == inside:
                inside = None
    return "".join(marked)[:-1]


def _unmark(marked: str, sources: list[str]) -> Rendered:
    lines: list[str] = []
    origins: list[tuple[str, int]] = []
    for line in marked.split("\n"):
        found = _MARK.findall(line)
        last = origins[-1] if origins else (sources[0], 1)
        lines.append(_MARK.sub("", line))
        origins.append((sources[int(found[-1][0])], int(found[-1][1])) if found else last)
    return Rendered(text="\n".join(lines).rstrip("\n") + "\n", origins=tuple(origins))


def _line_of_failure(error: BaseException, name: str) -> int | None:
    """jinja2 rewrites the traceback of an error so that it names the template's own lines."""
    line: int | None = None
    trace = error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).name == name:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _not_found(path: Path, error: jinja2.TemplateNotFound) -> FleetError:
    if error.name == path.name:
        return ModelError(
            sentence=f"there is no Modelfile `{path}`",
            path=str(path),
            hint="restore the file, or name another one as `modelfile` in models.toml",
        )
    return ModelError(
        sentence=f"`{path.name}` includes `{error.name}`, which is not in `{path.parent}`",
        path=str(path),
        hint="include files that lie beside the Modelfile",
    )
