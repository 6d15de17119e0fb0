"""Resolving pins: what the mirror lists for a release and for weights, and the bytes that prove it.

A listing alone is a claim. Nothing gets into `pins.toml` before the file was downloaded and its size and
sha256 were computed from the bytes: listing and bytes are two answers of the mirror that must agree.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deploy import mirror
from deploy.desired import Artefact
from deploy.errors import ChecksumMismatch, FleetError, MirrorError, ModelError
from deploy.mirror import MirrorFile, OnProgress
from deploy.models import ModelSpec
from deploy.pins import CONTAINED_REPO, SERVER_REPO, PinnedServer, check_version, parse_version
from deploy.pins_file import PinChange, is_commit

BRANCH = "master"
"""ModelScope's default branch, for repositories of weights: theirs have no releases."""
CONTAINED_REVISION = "contained"
ARCHITECTURES = ("amd64", "arm64")


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """An Ollama release as the mirror lists it; `missing` are the architectures without an archive."""

    version: str
    tag: str
    servers: tuple[PinnedServer, ...]
    missing: tuple[str, ...]


def find_release(version: str | None, *, endpoint: str | None = None) -> Release:
    """The release of that version, else the highest one that is no candidate, with its listed archives.

    The highest version is taken, not the newest tag: a fix of an old line may be tagged later. A tag is
    no version: whether the server is what its tag says is only known from `/api/version` after its start.

    Raises PinError for a refused version, MirrorError for an unknown one, for a release without any archive
    and for an archive listed without size or sha256, and what `list_tags` and `list_files` raise.
    """
    if version is not None:
        check_version(version.removeprefix("v"))
    tag = _choose_tag(version, mirror.list_tags(SERVER_REPO, endpoint=endpoint))
    found = tag.removeprefix("v")
    check_version(found)
    files = mirror.list_files(SERVER_REPO, tag, endpoint=endpoint)
    servers: list[PinnedServer] = []
    errors: dict[str, MirrorError] = {}
    for architecture in ARCHITECTURES:
        try:
            file = mirror.choose_archive(files, architecture)
        except MirrorError as error:
            errors[architecture] = error
            continue
        archive = _at_its_commit(_claimed(SERVER_REPO, tag, file), file, endpoint)
        servers.append(PinnedServer(version=found, architecture=architecture, archive=archive))
    if not servers:
        raise errors[ARCHITECTURES[0]]
    return Release(version=found, tag=tag, servers=tuple(servers), missing=tuple(errors))


def _choose_tag(version: str | None, tags: Sequence[str]) -> str:
    """`tags` come newest first; those that are no versions are skipped."""
    by_key: dict[tuple[int, ...], str] = {}
    for tag in tags:
        try:
            by_key.setdefault(parse_version(tag), tag)
        except ValueError:
            continue
    if version is not None:
        if (key := parse_version(version)) in by_key:
            return by_key[key]
        sentence = f"`{SERVER_REPO}` has no release `{version.removeprefix('v')}`"
    else:
        releases = [key for key in by_key if key[3]]
        if releases:
            return by_key[max(releases)]
        sentence = f"`{SERVER_REPO}` has no release"
    near = difflib.get_close_matches(version or "", list(by_key.values()), n=1, cutoff=0.5)
    raise MirrorError(
        sentence=sentence,
        cause=f"its tags, newest first: {', '.join(tags[:10]) or 'none'}",
        unchanged="every pin; nothing was downloaded",
        hint=f"./fleet pin --version {near[0].removeprefix('v')}" if near else "./fleet pin --version X.Y.Z",
    )


def find_weights(spec: ModelSpec, modelfiles: Path, *, endpoint: str | None = None) -> Artefact:
    """A model's weights as the mirror lists them; for a contained file what is read from it.

    Raises MirrorError where they are not listed, or without size or sha256, ModelError for a contained file
    that is not there, and what `list_files` raises.
    """
    if spec.repo == CONTAINED_REPO:
        return _read_contained(spec, modelfiles)
    files = mirror.list_files(spec.repo, BRANCH, endpoint=endpoint)
    for file in files:
        if file.path == spec.file:
            return _at_its_commit(_claimed(spec.repo, BRANCH, file), file, endpoint)
    paths = sorted(file.path for file in files)
    near = difflib.get_close_matches(spec.file, paths, n=1, cutoff=0.5)
    raise MirrorError(
        sentence=f"`{spec.repo}` revision `{BRANCH}` has no file `{spec.file}`",
        cause=f"listed: {', '.join(paths[:20]) or 'no file at all'}",
        unchanged="every pin; nothing was downloaded",
        hint=(f"did you mean `{near[0]}`? " if near else "")
        + f"correct the weights of `{spec.name}` in models.toml",
    )


def _read_contained(spec: ModelSpec, modelfiles: Path) -> Artefact:
    path = modelfiles / spec.file
    try:
        sha256, size_bytes = _read_digest(path)
    except OSError as error:
        raise ModelError(
            sentence=f"the weights of `{spec.name}` cannot be read",
            path=str(path),
            cause=error.strerror,
            unchanged="every pin",
            hint=f"ls -l {path}",
        ) from error
    return Artefact(
        repo=CONTAINED_REPO,
        revision=CONTAINED_REVISION,
        file=spec.file,
        size_bytes=size_bytes,
        sha256=sha256,
        local_path=str(path.resolve()),
    )


def _claimed(repo: str, revision: str, file: MirrorFile) -> Artefact:
    """What the listing says of a file; not proven yet."""
    missing = "size" if not file.size_bytes else None
    if file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256) is None:
        missing = "sha256"
    if missing is not None or file.sha256 is None:
        raise MirrorError(
            sentence=f"the mirror lists no {missing} for `{file.path}` (`{repo}`, revision `{revision}`)",
            cause="bytes that arrive could be compared with nothing",
            unchanged="every pin; nothing was downloaded",
            hint="take size and sha256 from the publisher and write this pin by hand",
        )
    return Artefact(
        repo=repo, revision=revision, file=file.path, size_bytes=file.size_bytes, sha256=file.sha256
    )


def _at_its_commit(claimed: Artefact, file: MirrorFile, endpoint: str | None) -> Artefact:
    """With the file's commit as revision, where the mirror tells one and knows the same file at it.

    A tag or a branch can be moved, a commit cannot.
    """
    if file.commit is None or not is_commit(file.commit):
        return claimed
    try:
        files = mirror.list_files(claimed.repo, file.commit, endpoint=endpoint)
    except MirrorError:
        return claimed
    return replace(claimed, revision=file.commit) if file in files else claimed


def prove(
    changes: Sequence[PinChange],
    cache_dir: Path,
    *,
    on_progress: OnProgress,
    on_proven: Callable[[PinChange], None],
    endpoint: str | None = None,
) -> None:
    """Download every changed file of the mirror and compute its size and sha256; `on_proven` after each.

    What is in the cache is not downloaded again, but hashed again; an interrupted download goes on.
    Raises ChecksumMismatch where the bytes are not what was listed, and what `mirror.fetch` raises.
    """
    for change in changes:
        if change.artefact.local_path is None:
            try:
                path = mirror.fetch(change.artefact, cache_dir, on_progress=on_progress, endpoint=endpoint)
            except FleetError as error:
                raise _retold(error, change.artefact) from error
            _check_cached(path, change.artefact)
        on_proven(change)


def _check_cached(path: Path, artefact: Artefact) -> None:
    """`fetch` trusts a file in its cache by name and size: enough to use a pin, not enough to write one."""
    sha256, size_bytes = _read_digest(path)
    if (sha256, size_bytes) == (artefact.sha256, artefact.size_bytes):
        return
    path.unlink()
    raise ChecksumMismatch(
        sentence=f"the copy of `{path.name}` in the cache is damaged",
        path=str(path),
        expected=artefact.digest,
        actual=f"sha256:{sha256} after {size_bytes:,} bytes",
        cause="it was changed after it had been verified: a failing disk, or somebody",
        unchanged="every pin; the damaged copy was deleted",
        hint="run the same command again: it is downloaded anew",
    )


def _read_digest(path: Path) -> tuple[str, int]:
    """sha256 (64 hex digits) and size in bytes, from one reading."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest(), stream.tell()


def _retold(error: FleetError, artefact: Artefact) -> FleetError:
    """`fetch` speaks of pins, and of a host; here the listing is what the bytes are held against."""
    if isinstance(error, ChecksumMismatch):
        error.sentence = (
            f"the mirror lists one thing and sends another for `{artefact.file}` "
            f"(`{artefact.repo}`, revision `{artefact.revision}`)"
        )
        if error.expected == "the pinned size":
            error.expected = f"{artefact.size_bytes:,} bytes"
        error.cause = "its listing names a size or sha256 that the bytes which arrived do not have"
        error.unchanged = "every pin; the download was deleted"
        error.hint = "run the same command again; if it happens twice, do not use this file"
    else:
        kept = (error.unchanged or "").replace("nothing was installed; ", "")
        error.unchanged = f"every pin; {kept}" if kept else "every pin"
    return error
