"""What the embedded mirror has to offer: repositories, revisions and files, and how the hub lists them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BRANCHES = frozenset({"master", "main"})
FIRST_RELEASE_EPOCH = 1_700_000_000
"""CreatedAt of the first revision of a repository that names no time; the next ones are a day later each."""

Content = Path | bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorRepo:
    """One model repository: `revisions` maps a revision to its files, oldest revision first.

    `master` and `main` are branches, every other revision is a tag. `created_at` (epoch seconds by
    revision) is optional.
    """

    repo: str
    revisions: Mapping[str, Mapping[str, Content]]
    created_at: Mapping[str, int] = field(default_factory=dict)


def read_repos(directory: Path) -> list[MirrorRepo]:
    """The repositories under `directory`, laid out as OWNER/NAME/REVISION/files...

    A revision is as old as its directory. Raises `ValueError` when there is none.
    """
    repos = []
    for root in sorted(path for path in directory.glob("*/*") if path.is_dir()):
        folders = sorted(
            (path for path in root.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime
        )
        revisions = {
            folder.name: {
                path.relative_to(folder).as_posix(): path
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
            for folder in folders
        }
        if revisions:
            created_at = {folder.name: int(folder.stat().st_mtime) for folder in folders}
            name = root.relative_to(directory).as_posix()
            repos.append(MirrorRepo(repo=name, revisions=revisions, created_at=created_at))
    if not repos:
        raise ValueError(f"no OWNER/NAME/REVISION directory under {directory}")
    return repos


def commit_of(repo: MirrorRepo, revision: str) -> str:
    """A stable stand-in for the git commit of a revision: 40 hex digits."""
    names = sorted(repo.revisions[revision])
    return hashlib.sha1(json.dumps([repo.repo, revision, names]).encode(), usedforsecurity=False).hexdigest()


def size_of(content: Content) -> int:
    """In bytes."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def revision_map(repo: MirrorRepo) -> dict[str, list[dict[str, Any]]]:
    """`Data.RevisionMap` of the hub: branches and tags with their time in epoch seconds."""
    rows: dict[str, list[dict[str, Any]]] = {"Branches": [], "Tags": []}
    for index, revision in enumerate(repo.revisions):
        created_at = repo.created_at.get(revision, FIRST_RELEASE_EPOCH + index * 86_400)
        row = {"Revision": revision, "CreatedAt": created_at, "CommitId": commit_of(repo, revision)}
        rows["Branches" if revision in BRANCHES else "Tags"].append(row)
    return rows


def list_entries(repo: MirrorRepo, revision: str, root: str, *, recursive: bool) -> dict[str, dict[str, Any]]:
    """`Data.Files` of the hub without sizes, by path: directories are `tree`, files are `blob`.

    `root` limits the listing to a directory; without `recursive` only its direct children are listed.
    """
    prefix = f"{root}/" if root else ""
    commit = commit_of(repo, revision)
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(repo.revisions[revision]):
        if not path.startswith(prefix):
            continue
        names = path.removeprefix(prefix).split("/")
        for depth in range(1, len(names)):
            folder = prefix + "/".join(names[:depth])
            if recursive or depth == 1:
                entries[folder] = _entry(folder, "tree", commit)
        if recursive or len(names) == 1:
            entries[path] = _entry(path, "blob", commit)
    return entries


def _entry(path: str, kind: str, commit: str) -> dict[str, Any]:
    mode = "33188" if kind == "blob" else "16384"
    return {"Name": path.rpartition("/")[2], "Path": path, "Type": kind, "Revision": commit, "Mode": mode}


def read_span(content: Content, first: int, end: int, chunk_bytes: int) -> Iterator[bytes]:
    """The bytes from `first` up to `end` (exclusive) in chunks."""
    if isinstance(content, bytes):
        for start in range(first, end, chunk_bytes):
            yield content[start : min(end, start + chunk_bytes)]
        return
    with content.open("rb") as stream:
        stream.seek(first)
        left = end - first
        while left > 0 and (chunk := stream.read(min(chunk_bytes, left))):
            left -= len(chunk)
            yield chunk
