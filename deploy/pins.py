"""`pins.toml`: revision, size and sha256 of every artefact. What has no pin is never fetched."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import pydantic

from deploy.desired import Artefact
from deploy.errors import FleetError, InputErrors, PinError
from deploy.modelfile import raise_problems, suggest
from deploy.toml_file import StrictModel, find_line, parse_table, read_toml

SERVER_REPO = "modelscope/ollama-linux"
# Up to 0.17.0 anyone who reaches the server can read its memory (CVE-2026-7482, closed in 0.17.1).
OLDEST_VERSION = "0.17.1"
# Its llama-server closes loader bugs that a prepared GGUF can use in older ones.
ADVISED_VERSION = "0.32.15"
# From here on `create` writes the weights anew (server/create.go): what is stored is not the pinned file,
# and no deploy would ever find the host as desired.
REWRITES_WEIGHTS_SINCE = "0.30.0"
CONTAINED_REPO = "."

_VERSION = re.compile(r"v?([0-9]{1,9})\.([0-9]{1,9})\.([0-9]{1,9})(?:-rc([0-9]{1,9}))?")


def _check_file(name: str) -> str:
    """A relative POSIX path that stays below its repository."""
    path = PurePosixPath(name)
    if (
        path.is_absolute()
        or ".." in path.parts
        or "\\" in name
        or not name.isprintable()
        or str(path) != name
    ):
        raise ValueError("a file is a relative path without `..`")
    if name == ".":
        raise ValueError("a file has a name")
    return name


def _check_repo(name: str) -> str:
    if name != CONTAINED_REPO and re.fullmatch(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+", name) is None:
        raise ValueError('a repository is `owner/name`, or "." for a file beside models.toml')
    return name


def _check_version(version: str) -> str:
    parse_version(version)
    return version


FileName = Annotated[str, pydantic.Field(min_length=1), pydantic.AfterValidator(_check_file)]
RepoName = Annotated[str, pydantic.AfterValidator(_check_repo)]
Revision = Annotated[str, pydantic.Field(min_length=1, pattern=r"^[!-~]+$")]
SizeBytes = Annotated[int, pydantic.Field(gt=0)]
Sha256 = Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")]


class _ServerPin(StrictModel):
    version: Annotated[str, pydantic.AfterValidator(_check_version)]
    repo: RepoName = SERVER_REPO
    revision: Revision
    file: FileName
    architecture: Literal["amd64", "arm64"]
    size_bytes: SizeBytes
    sha256: Sha256


class _WeightsPin(StrictModel):
    repo: RepoName
    revision: Revision
    file: FileName
    size_bytes: SizeBytes
    sha256: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedServer:
    """An Ollama release that may be installed."""

    version: str
    architecture: str
    archive: Artefact


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins:
    """All pins of one file; `directory` is where files of the repository "." lie."""

    path: str
    directory: Path
    servers: tuple[PinnedServer, ...]
    artefacts: tuple[Artefact, ...]

    def over(self, other: Pins) -> Pins:
        """These pins, and what the other ones have beside them; all server pins come from one file."""
        return replace(
            self, servers=self.servers or other.servers, artefacts=(*self.artefacts, *other.artefacts)
        )

    def server(self, version: str | None, architecture: str) -> PinnedServer:
        """The release to install; None is the newest pinned one, candidates of a release below it.

        `architecture` is `amd64` or `arm64`. Raises PinError: a refused version, or no pin.
        """
        if version is not None:
            version = version.removeprefix("v")
            check_version(version)
        fitting = [
            server
            for server in self.servers
            if server.architecture == architecture and version in (None, server.version)
        ]
        if fitting:
            return max(fitting, key=lambda server: parse_version(server.version))
        raise self._no_server(version, architecture)

    def weights(self, repo: str, file: str) -> Artefact:
        """The pinned file. Raises PinError where there is none."""
        for artefact in self.artefacts:
            if (artefact.repo, artefact.file) == (repo, file):
                return artefact
        shown = file if repo == CONTAINED_REPO else f"{repo}/{file}"
        raise PinError(
            sentence=f"no pin for `{shown}`",
            path=self.path,
            unchanged="nothing was fetched",
            hint="./fleet pin",
        )

    def _no_server(self, version: str | None, architecture: str) -> PinError:
        others = sorted({server.architecture for server in self.servers if version in (None, server.version)})
        versions = sorted({server.version for server in self.servers}, key=parse_version)
        cause = None
        if others:
            cause = (
                f"the pins of this release are for {', '.join(others)} only; the mirror often has amd64 alone"
            )
        elif versions:
            cause = f"pinned are {', '.join(versions)}"
        wanted = "modelscope/ollama-linux" if version is None else f"ollama {version}"
        return PinError(
            sentence=f"no pin for `{wanted} ({architecture})`",
            path=self.path,
            cause=cause,
            unchanged="nothing was fetched",
            hint="./fleet pin",
        )


def parse_version(version: str) -> tuple[int, int, int, int, int]:
    """Sort key of a release: three numbers, then candidates (`-rc2`) before the release itself.

    Raises ValueError for anything else.
    """
    found = _VERSION.fullmatch(version)
    if found is None:
        raise ValueError("a version is three numbers, for example 0.32.15")
    major, minor, patch, candidate = found.groups()
    return int(major), int(minor), int(patch), int(candidate is None), int(candidate or 0)


def check_version(version: str) -> None:
    """Raises PinError for what is no version and for releases below 0.17.1 (CVE-2026-7482)."""
    try:
        key = parse_version(version)
    except ValueError as error:
        raise PinError(
            sentence=f"`{version}` is no Ollama version", cause=str(error), hint="write it as `0.32.15`"
        ) from None
    if key < parse_version(OLDEST_VERSION):
        raise PinError(
            sentence=f"ollama `{version}` is refused",
            cause="whoever reaches such a server can read its memory (CVE-2026-7482)",
            unchanged="nothing was fetched",
            hint=f"use {OLDEST_VERSION} or newer, best {ADVISED_VERSION} or newer",
        )


def check_deployable(version: str) -> None:
    """Raises PinError for a release that can be pinned but not deployed yet."""
    if parse_version(version)[:3] >= parse_version(REWRITES_WEIGHTS_SINCE)[:3]:
        raise PinError(
            sentence=f"ollama `{version}` cannot be deployed yet",
            cause=f"from {REWRITES_WEIGHTS_SINCE} on it rewrites weights: they cannot be compared",
            unchanged="nothing was fetched",
            hint=f"./fleet pin --version X, below {REWRITES_WEIGHTS_SINCE}, and set `ollama_version=X`",
        )


def version_warning(version: str) -> str | None:
    """What to tell about a release that is allowed but old, else None."""
    if parse_version(version) >= parse_version(ADVISED_VERSION):
        return None
    return (
        f"ollama {version} is older than {ADVISED_VERSION}: its GGUF loader has known bugs; "
        "serve only weights whose sha256 is pinned"
    )


def parse_pins(path: Path, contained: Path | None = None) -> Pins:
    """`pins.toml` -> pins. Raises PinError with the line, or InputErrors with all of them.

    `contained` is the directory of models.toml where that is another one: files of the repository "." lie
    there.
    """
    directory = contained or path.parent
    text, value = read_toml(path, PinError)
    problems: list[FleetError] = []
    for name in value:
        if name not in ("server", "weights"):
            near = suggest(name, ("server", "weights"))
            problems.append(
                PinError(
                    sentence=f"unknown key `{name}`",
                    path=str(path),
                    line=find_line(text, (name,)),
                    hint=f"did you mean `[[{near}]]`?"
                    if near
                    else "the tables are `[[server]]` and `[[weights]]`",
                )
            )
    servers = _parse_servers(value, path, text, problems)
    artefacts = _parse_weights(value, path, directory, text, problems)
    raise_problems(problems, f"file `{path.name}`")
    return Pins(path=str(path), directory=directory, servers=tuple(servers), artefacts=tuple(artefacts))


def _tables(
    value: dict[str, Any], name: str, path: Path, text: str, problems: list[FleetError]
) -> list[tuple[int, object]]:
    tables = value.get(name, [])
    if isinstance(tables, list):
        return list(enumerate(tables))
    problems.append(
        PinError(
            sentence=f"`{name}` is not a list of tables",
            path=str(path),
            line=find_line(text, (name,)),
            hint=f"begin each pin with `[[{name}]]`",
        )
    )
    return []


def _parse_servers(
    value: dict[str, Any], path: Path, text: str, problems: list[FleetError]
) -> list[PinnedServer]:
    servers: list[PinnedServer] = []
    for index, table in _tables(value, "server", path, text, problems):
        try:
            pin = parse_table(_ServerPin, table, path, text, ("server", index), PinError)
            version = pin.version.removeprefix("v")
            check_version(version)
        except (PinError, InputErrors) as error:
            _collect(error, problems, path, find_line(text, ("server", index, "version")))
            continue
        server = PinnedServer(
            version=version, architecture=pin.architecture, archive=_artefact(pin, path.parent)
        )
        if any((known.version, known.architecture) == (version, pin.architecture) for known in servers):
            problems.append(
                _pinned_twice(f"ollama {version} ({pin.architecture})", path, text, ("server", index))
            )
        servers.append(server)
    return servers


def _parse_weights(
    value: dict[str, Any], path: Path, directory: Path, text: str, problems: list[FleetError]
) -> list[Artefact]:
    artefacts: list[Artefact] = []
    for index, table in _tables(value, "weights", path, text, problems):
        try:
            pin = parse_table(_WeightsPin, table, path, text, ("weights", index), PinError)
        except (PinError, InputErrors) as error:
            _collect(error, problems, path, None)
            continue
        if any((known.repo, known.file) == (pin.repo, pin.file) for known in artefacts):
            problems.append(_pinned_twice(f"{pin.repo}/{pin.file}", path, text, ("weights", index)))
        artefacts.append(_artefact(pin, directory))
    return artefacts


def _artefact(pin: _ServerPin | _WeightsPin, directory: Path) -> Artefact:
    return Artefact(
        repo=pin.repo,
        revision=pin.revision,
        file=pin.file,
        size_bytes=pin.size_bytes,
        sha256=pin.sha256,
        local_path=str(directory.resolve() / pin.file) if pin.repo == CONTAINED_REPO else None,
    )


def _collect(error: FleetError, problems: list[FleetError], path: Path, line: int | None) -> None:
    if error.path is None:
        error.path, error.line = str(path), line
    problems.extend(error.problems if isinstance(error, InputErrors) else (error,))


def _pinned_twice(what: str, path: Path, text: str, at: tuple[int | str, ...]) -> PinError:
    return PinError(
        sentence=f"`{what}` is pinned twice",
        path=str(path),
        line=find_line(text, at),
        hint="keep one of the two",
    )
