"""`modelfiles/models.toml` and the models it describes, down to the value a host is compared with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from deploy.desired import Artefact, DesiredModel, Modelfile
from deploy.errors import FleetError, InputErrors, ModelError, PinError
from deploy.modelfile import parse_commands, parse_modelfile, raise_problems, suggest
from deploy.pins import CONTAINED_REPO, FileName, Pins, RepoName, parse_pins
from deploy.render import Rendered, render_modelfile, render_with_sources
from deploy.template_lint import lint_template
from deploy.toml_file import StrictModel, find_line, parse_table, read_toml

__all__ = [
    "MODELS_FILE",
    "ModelSpec",
    "Pins",
    "desired_model",
    "find_model",
    "parse_models",
    "parse_pins",
    "render_as_published",
    "rendered_modelfile",
]

MODELS_FILE = "models.toml"
# The tags every model gets from us on a host: `name:latest` is served.
RESERVED_TAGS = ("candidate", "previous", "latest")
# isValidPart for kindModel in Ollama's types/model/name.go (0.17.5).
_MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")


class _Weights(StrictModel):
    repo: RepoName
    file: FileName


class _ModelTable(StrictModel):
    weights: _Weights
    modelfile: FileName
    tools: bool
    cases: Literal["core", "extended"] = "extended"
    summary: str = ""
    as_published: FileName | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One table of models.toml. `repo` "." is a file beside it; so are `modelfile` and `as_published`.

    `cases` is which cases of the smoke suite it plays: "core" for the few of the article, "extended" for all.
    """

    name: str
    repo: str
    file: str
    modelfile: str
    uses_tools: bool
    cases: str = "extended"
    summary: str = ""
    as_published: str | None = None


def parse_models(directory: Path) -> Mapping[str, ModelSpec]:
    """`directory`/models.toml -> its models by name, in the file's order.

    Raises ModelError, or InputErrors with all problems: broken TOML, a wrong key or value, an invalid name,
    two names that differ in case only (they are one on the server: measured on 0.17.5), a Modelfile that is
    not there.
    """
    path = directory / MODELS_FILE
    text, value = read_toml(path, ModelError)
    problems: list[FleetError] = []
    specs: dict[str, ModelSpec] = {}
    for position, (name, table) in enumerate(value.items()):
        line = find_line(text, (name,))
        problems.extend(_find_name_problems(name, list(value)[:position], path, line))
        try:
            checked = parse_table(_ModelTable, table, path, text, (name,), ModelError)
        except InputErrors as error:
            problems.extend(error.problems)
            continue
        except ModelError as error:
            problems.append(error)
            continue
        specs[name] = ModelSpec(
            name=name,
            repo=checked.weights.repo,
            file=checked.weights.file,
            modelfile=checked.modelfile,
            uses_tools=checked.tools,
            cases=checked.cases,
            summary=checked.summary,
            as_published=checked.as_published,
        )
        problems.extend(_find_missing_files(specs[name], directory, text))
    raise_problems(problems, f"file `{path.name}`")
    return specs


def desired_model(name: str, models: Mapping[str, ModelSpec], pins: Pins, directory: Path) -> DesiredModel:
    """The model with its pinned weights and its Modelfile, rendered and linted.

    Raises ModelError for an unknown name or a Modelfile that cannot be used, TemplateRefused for a TEMPLATE,
    PinError where the weights have no pin, InputErrors for several of these; paths and lines are those of the
    source files.
    """
    spec = find_model(name, models)
    problems: list[FleetError] = []
    weights: Artefact | None = None
    modelfile: Modelfile | None = None
    try:
        weights = pins.weights(spec.repo, spec.file)
    except PinError as error:
        problems.append(error)
    try:
        modelfile = rendered_modelfile(spec, directory)
    except InputErrors as error:
        problems.extend(error.problems)
    except ModelError as error:
        problems.append(error)
    raise_problems(problems, f"model `{spec.name}`")
    assert weights is not None
    assert modelfile is not None
    return DesiredModel(
        name=spec.name, weights=weights, modelfile=modelfile, uses_tools=spec.uses_tools, cases=spec.cases
    )


def rendered_modelfile(spec: ModelSpec, directory: Path) -> Modelfile:
    """The model's Modelfile, rendered and linted; it needs no pin.

    Raises ModelError, TemplateRefused, or InputErrors with all problems, at the lines of the source files.
    """
    path = str(directory / spec.modelfile)
    rendered = render_with_sources(directory / spec.modelfile, _variables(spec))
    try:
        modelfile = parse_modelfile(rendered.text, path)
        problems = _find_from_problems(rendered, path, spec)
        problems += lint_template(
            modelfile.template,
            uses_tools=spec.uses_tools,
            first_line=_line_of_template(rendered, path),
            path=path,
        )
        raise_problems(problems, f"Modelfile `{path}`")
    except FleetError as error:
        _locate(error, rendered)
        raise
    return modelfile


def find_model(name: str, models: Mapping[str, ModelSpec]) -> ModelSpec:
    """The model of that name, case aside as on the server. Raises ModelError with the nearest name."""
    by_lower = {known.lower(): spec for known, spec in models.items()}
    if name.lower() in by_lower:
        return by_lower[name.lower()]
    near = suggest(name, by_lower)
    raise ModelError(
        sentence=f"there is no model `{_printable(name)}` in {MODELS_FILE}",
        hint=f"did you mean `{by_lower[near].name}`?"
        if near
        else f"it has {', '.join(models) or 'no models'}",
    )


def render_as_published(spec: ModelSpec, directory: Path) -> str:
    """The Modelfile as its author published it, not linted: for comparison only.

    Raises ModelError where the model has none.
    """
    if spec.as_published is None:
        raise ModelError(
            sentence=f"the model `{spec.name}` has no published Modelfile",
            path=str(directory / MODELS_FILE),
            hint="leave --as-published out",
        )
    return render_modelfile(directory / spec.as_published, _variables(spec))


def _variables(spec: ModelSpec) -> dict[str, str]:
    return {"name": spec.name, "weights": PurePosixPath(spec.file).name}


def _find_name_problems(name: str, earlier: Iterable[str], path: Path, line: int | None) -> list[FleetError]:
    base, colon, _ = name.partition(":")
    cause: str | None = None
    hint = "use letters, digits, `_`, `-` and `.`, 80 at most, the first a letter, a digit or `_`"
    if colon and _MODEL_NAME.fullmatch(base):
        cause = f"the tags of a name are ours: {', '.join(RESERVED_TAGS)}"
        hint = f"write `{base}`"
    elif "/" in name:
        cause = "a name has no host and no namespace here"
    elif name.lower() in RESERVED_TAGS:
        cause = "the word is one of our tags"
        hint = "choose another name"
    elif _MODEL_NAME.fullmatch(name) is None:
        cause = "Ollama would refuse it"
    problems: list[FleetError] = []
    if cause is not None:
        problems.append(
            ModelError(
                sentence=f"`{_printable(name)}` cannot be the name of a model",
                path=str(path),
                line=line,
                cause=cause,
                hint=hint,
            )
        )
    problems.extend(
        ModelError(
            sentence=f"`{_printable(name)}` and `{_printable(known)}` are one name on the server",
            path=str(path),
            line=line,
            cause="Ollama does not tell capitals in names: the second would overwrite the first",
            hint="rename one of them",
        )
        for known in earlier
        if known.lower() == name.lower()
    )
    return problems


def _printable(name: str) -> str:
    """A name that may hold anything, safe to show."""
    return name.encode("unicode_escape").decode("ascii")[:100]


def _find_missing_files(spec: ModelSpec, directory: Path, text: str) -> list[FleetError]:
    wanted = [("modelfile", spec.modelfile, "Modelfile")]
    if spec.as_published is not None:
        wanted.append(("as_published", spec.as_published, "Modelfile"))
    if spec.repo == CONTAINED_REPO:
        wanted.append(("weights", spec.file, "weights file"))
    return [
        ModelError(
            sentence=f"the model `{spec.name}` has no {kind} `{directory / file}`",
            path=str(directory / MODELS_FILE),
            line=find_line(text, (spec.name, key)),
            hint=f"restore the file, or name another one as `{key}`",
        )
        for key, file, kind in wanted
        if not (directory / file).is_file()
    ]


def _find_from_problems(rendered: Rendered, path: str, spec: ModelSpec) -> list[FleetError]:
    wanted = PurePosixPath(spec.file).name
    return [
        ModelError(
            sentence=f"`FROM {command.value}` does not name the weights of `{spec.name}`",
            path=path,
            line=command.line,
            expected=f"`./{wanted}`",
            actual=f"`{command.value}`",
            hint="write `FROM ./[[ weights ]]`; the file is chosen in models.toml",
        )
        for command in parse_commands(rendered.text, path)
        if command.name == "from" and command.value.removeprefix("./") != wanted
    ]


def _line_of_template(rendered: Rendered, path: str) -> int:
    lines = [command.line for command in parse_commands(rendered.text, path) if command.name == "template"]
    return lines[0] if lines else 1


def _locate(error: FleetError, rendered: Rendered) -> None:
    """Point an error at the lines a person edits, not at those of the rendered text."""
    for problem in error.problems if isinstance(error, InputErrors) else (error,):
        if problem.line is not None:
            problem.path, problem.line = rendered.locate(problem.line)
