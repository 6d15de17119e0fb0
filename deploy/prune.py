"""What nothing needs any more on a host: a pure function of what is desired and what was observed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, StrEnum
from pathlib import PurePosixPath
from typing import Any

from deploy.desired import Desired
from deploy.facts import HostFacts
from deploy.server_plan import MARK_NAME

PHASE = "prune"
_MIB = 1024 * 1024


class Kind(StrEnum):
    """What is taken away, by the name of its step."""

    LEFTOVER = "RemoveLeftover"
    PART = "RemovePart"
    MODEL = "RemoveModel"
    ARTEFACT = "RemoveArtefact"
    RELEASE = "RemoveRelease"


class Previous(Enum):
    """What becomes of the models that `rollback` could bring back."""

    KEEP = "keep"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """One thing to take away: `target` is a path, or a model's name.

    `frees_bytes` is what its end frees as far as the facts tell: weights lie in the store and in the fetched
    file as one file under two names.
    """

    kind: Kind
    target: str
    reason: str
    frees_bytes: int = 0

    @property
    def subject(self) -> str:
        path = PurePosixPath(self.target)
        match self.kind:
            case Kind.RELEASE:
                return f"release {path.name}"
            case Kind.ARTEFACT:
                return f"{path.name} of {path.parent.name[:19]}"
            case Kind.LEFTOVER | Kind.PART | Kind.MODEL:
                return self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePlan:
    """What is taken away from one host, in this order; `notes` say what is not, and why."""

    host: str
    removals: tuple[Removal, ...]
    notes: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not self.removals


def plan_prune(
    desired: Desired, facts: HostFacts, keep: int, previous: Previous = Previous.KEEP
) -> PrunePlan:
    """All but the `keep` releases that were unpacked last, and what only those needed that go.

    Never `current`, `previous`, what a process runs from or what the inventory wants, however old; nothing
    that is not ours. Under an open lease only leftovers go: the host may go back to everything else.
    """
    leftovers = tuple(
        Removal(kind=Kind.LEFTOVER, target=path, reason="a run was cut short") for path in facts.leftovers
    )
    if facts.systemd is not None and facts.systemd.is_leased:
        told = "releases, models and files stay: what was switched to is not confirmed yet"
        return PrunePlan(host=desired.host, removals=leftovers, notes=(told,))
    notes = []
    models = tuple(_models(desired, facts, previous))
    if models and not facts.servers:
        notes.append(f"no server runs that could remove {', '.join(models)}")
        models = ()
    releases = tuple(_releases(desired, facts, keep))
    needed = _needed(desired, facts, models, {PurePosixPath(removal.target).name for removal in releases})
    removals = (
        *leftovers,
        *_remove_models(facts, models, needed),
        *_remove_fetched(desired, facts, needed),
        *releases,
    )
    return PrunePlan(host=desired.host, removals=removals, notes=tuple(notes))


def render_prune(plan: PrunePlan) -> dict[str, Any]:
    """As JSON, in the form of every plan: see `docs/prune.md`."""
    return {
        "host": plan.host,
        "notes": list(plan.notes),
        "steps": [
            {
                "phase": PHASE,
                "step": str(removal.kind),
                "subject": removal.subject,
                "reason": f"{removal.reason}; {removal.frees_bytes / _MIB:.1f} MiB"
                if removal.frees_bytes
                else removal.reason,
                "differences": [],
                "bytes": removal.frees_bytes,
            }
            for removal in plan.removals
        ],
    }


def _releases(desired: Desired, facts: HostFacts, keep: int) -> Iterator[Removal]:
    whole = [name for name, sha256 in facts.releases.items() if sha256]
    newest = sorted(whole, key=lambda name: (facts.unpacked[name].at, name), reverse=True)[:keep]
    needed = {facts.current, facts.previous, *newest, *_running(facts)}
    wanted = {archive.sha256 for archive in desired.server.archives.values()}
    for name, sha256 in sorted(facts.releases.items(), key=lambda item: facts.unpacked[item[0]].at):
        if name in needed or sha256 in wanted:
            continue
        reason = f"not one of the {keep} unpacked last" if sha256 else "damaged: nobody can go back to it"
        yield Removal(
            kind=Kind.RELEASE,
            target=str(desired.paths.release(name)),
            reason=reason,
            frees_bytes=facts.unpacked[name].size_bytes,
        )


def _running(facts: HostFacts) -> Iterator[str]:
    """The releases that processes of ours were started from."""
    for server in (*facts.servers, *facts.orphans):
        mark = server.environment.get(MARK_NAME)
        for name, sha256 in facts.releases.items():
            is_marked = mark is not None and mark == sha256
            if is_marked or any(f"/releases/{name}/" in word for word in server.command):
                yield name


def _models(desired: Desired, facts: HostFacts, previous: Previous) -> Iterator[str]:
    """Of the inventory's models only: a tag of another one may be somebody's own."""
    for name in (model.name.lower() for model in desired.models):
        for tag in ("candidate", "previous") if previous is Previous.REMOVE else ("candidate",):
            if f"{name}:{tag}" in facts.models:
                yield f"{name}:{tag}"


def _needed(
    desired: Desired, facts: HostFacts, doomed_models: tuple[str, ...], doomed_releases: set[str]
) -> frozenset[str]:
    """The sha256 of what the inventory, or a model or a release that stays, is made from."""
    return frozenset(
        [
            *(model.weights.sha256 for model in desired.models),
            *(archive.sha256 for archive in desired.server.archives.values()),
            *(
                stored.model_sha256 or ""
                for name, stored in facts.models.items()
                if name not in doomed_models
            ),
            *(sha256 for name, sha256 in facts.releases.items() if name not in doomed_releases),
        ]
    )


def _remove_models(facts: HostFacts, doomed: tuple[str, ...], needed: frozenset[str]) -> Iterator[Removal]:
    named = {stored.model_sha256 for name, stored in facts.models.items() if name not in doomed}
    # The same file under another name: its bytes stay with that.
    told = named | {sha256 for sha256 in map(_sha256_of, facts.artefacts) if sha256 in needed}
    for name in doomed:
        sha256 = facts.models[name].model_sha256 or ""
        blob = facts.blobs.get(sha256) if sha256 not in told else None
        told.add(sha256)
        reason = "a run was cut short" if name.endswith(":candidate") else "there is no way back to it then"
        size_bytes = blob.size_bytes if blob is not None else 0
        yield Removal(kind=Kind.MODEL, target=name, reason=reason, frees_bytes=size_bytes)


def _remove_fetched(desired: Desired, facts: HostFacts, needed: frozenset[str]) -> Iterator[Removal]:
    """Files that were fetched, whole or in part, and that nothing is made from."""
    below = desired.paths.artefacts
    reason = "nothing that stays is made from it"
    for part in facts.parts:
        if _sha256_of(part) not in needed:
            # A copy over SSH grows in the directory of the file that it becomes.
            directory = below / f"sha256-{part.partition('/')[0]}"
            yield Removal(kind=Kind.PART, target=str(directory), reason=reason)
    for name, size_bytes in sorted(facts.artefacts.items()):
        if _sha256_of(name) not in needed:
            # A hard link to what the store has: the bytes go with the model.
            is_stored = _sha256_of(name) in facts.blobs
            yield Removal(
                kind=Kind.ARTEFACT,
                target=str(below / f"sha256-{name}"),
                reason=f"{reason}, and the store has it too" if is_stored else reason,
                frees_bytes=0 if is_stored else size_bytes,
            )


def _sha256_of(name: str) -> str:
    """Of the path of a fetched file after `sha256-`."""
    return name[:64]
