"""What served before as what is desired: going back is a deploy of what is on the host already."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from deploy.desired import ADOPTED, Desired, DesiredModel, DesiredServer
from deploy.errors import ServiceError, UsageError
from deploy.facts import HostFacts, StoredModel
from deploy.steps import Phase, PromoteModel, RestoreModel, Step, SwitchRelease, phase_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be taken back, as the flags say; without any it is what the last change has changed."""

    release: bool = False
    models: bool = False
    names: tuple[str, ...] = ()

    @property
    def says_nothing(self) -> bool:
        return not (self.release or self.models or self.names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """What was replaced and is still on the host; `models` are names in lower case."""

    release: bool = False
    models: frozenset[str] = frozenset()

    @property
    def is_nothing(self) -> bool:
        return not self.release and not self.models


def state_before(
    desired: Desired, facts: HostFacts, asked: Asked, entries: Sequence[Mapping[str, Any]] = ()
) -> Desired:
    """The host with the release of `previous` and the models of `NAME:previous`, as asked.

    `entries` are the last ones of the host's journal: they tell what the last change was. Where they do not,
    everything that was replaced is taken back. The settings of the server, and which models there are, stay
    those of the inventory. Raises UsageError, or ServiceError before anything is stopped.
    """
    check_confirmed(desired, facts)
    there = _replaced(desired, facts)
    back = _last_change(facts, there, entries) if asked.says_nothing else _chosen(desired, there, asked)
    if back.is_nothing:
        raise _nothing(
            desired,
            "has nothing to go back to",
            "no release was switched and no model replaced, or the model is pruned",
        )
    models = tuple(
        replace(model, stored=facts.models[_previous(model.name)])
        if model.name.lower() in back.models
        else model
        for model in desired.models
    )
    server = _server_before(desired, facts) if back.release else current_server(desired, facts)
    return replace(desired, server=server, models=models)


def check_confirmed(desired: Desired, facts: HostFacts) -> None:
    """Nothing is taken back or stopped while the host may still go back by itself. Raises ServiceError."""
    if facts.systemd is None or not facts.systemd.is_leased:
        return
    now = "./fleet run --yes 'systemctl start ollama-fleet-lease.service'"
    raise ServiceError(
        sentence=f"what `{desired.host}` was switched to is not confirmed yet",
        host=desired.host,
        cause="a run was cut before it had verified the switch: the host goes back by itself, three minutes "
        "after that at the latest, or at its next start",
        unchanged="everything",
        hint=f"wait for it, or have it go back now: {now} --limit {shlex.quote(desired.host)}; "
        "then the same command again",
    )


def check_previous(model: DesiredModel, facts: HostFacts) -> None:
    """What is gone back to must be there, and whole. Raises ServiceError."""
    name, stored = _previous(model.name), model.stored
    if stored is None or facts.models.get(name) != stored:
        raise ServiceError(
            sentence=f"`{name}` is not what it was a moment ago",
            cause="another run, or another hand, has replaced it",
            unchanged="everything; the server was not stopped",
            hint="./fleet status; then ./fleet rollback once more",
        )
    blob = facts.blobs.get(stored.model_sha256 or "")
    if blob is not None and blob.is_gguf and stored.model_bytes in (None, blob.size_bytes):
        return
    actual = "absent" if blob is None else f"{blob.size_bytes} bytes{'' if blob.is_gguf else ', no GGUF'}"
    raise ServiceError(
        sentence=f"the weights of `{name}` are damaged",
        expected=f"{stored.model_bytes} bytes",
        actual=actual,
        cause="no server verifies what lies in its store",
        unchanged="everything; the server was not stopped",
        hint="./fleet rollback --release leaves the models; to have this one again, put what "
        "modelfiles/models.toml said of it back and deploy",
    )


def served_before(facts: HostFacts, steps: Iterable[Step]) -> dict[str, Any]:
    """For the journal: what a run replaces. `release` by its name, `models` by a mark of what they were."""
    told: dict[str, Any] = {}
    models = {}
    for step in steps:
        if isinstance(step, SwitchRelease) and step.previous is not None:
            told["release"] = step.previous
        if isinstance(step, RestoreModel) or (isinstance(step, PromoteModel) and step.keeps_previous):
            name = step.model.name.lower()
            models[name] = _mark(facts.models[f"{name}:latest"])
    return {**told, "models": models} if models else told


def version_of(release: str) -> str:
    """`0.17.5` of `0.17.5-28b735748dc0`: the part that tells other bytes of one version apart."""
    version, _, rest = release.rpartition("-")
    is_digest = len(rest) == 12 and all(letter in "0123456789abcdef" for letter in rest)
    return version if version and is_digest else release


def going_back(step: Step) -> bool:
    """`rollback`: server, models and what the checks expect; nothing is fetched and nothing made."""
    return phase_of(step) in (Phase.SERVICE, Phase.VERIFY, Phase.PROMOTE, Phase.SCHEDULE)


def _replaced(desired: Desired, facts: HostFacts) -> Replaced:
    models = set()
    for name in (model.name.lower() for model in desired.models):
        latest, previous = facts.models.get(f"{name}:latest"), facts.models.get(_previous(name))
        if latest is not None and previous not in (None, latest):
            models.add(name)
    is_switched = facts.previous is not None and facts.previous != (facts.current or ADOPTED)
    return Replaced(release=is_switched, models=frozenset(models))


def _last_change(facts: HostFacts, there: Replaced, entries: Sequence[Mapping[str, Any]]) -> Replaced:
    """Of what was replaced the part that belongs together: what one run has replaced, the last one.

    A run counts as far as what it has replaced is what the host keeps as `previous`: one that failed, or that
    was cut before it had changed anything, left nothing there.
    """
    for entry in reversed(entries):
        before = entry.get("before")
        if not isinstance(before, dict):
            continue
        marks = before.get("models")
        kept = {name: _mark(facts.models[_previous(name)]) for name in there.models}
        found = Replaced(
            release=there.release and before.get("release") == facts.previous,
            models=frozenset(
                name for name, mark in kept.items() if isinstance(marks, dict) and marks.get(name) == mark
            ),
        )
        if not found.is_nothing:
            return found
    return there


def _chosen(desired: Desired, there: Replaced, asked: Asked) -> Replaced:
    known = {model.name.lower() for model in desired.models}
    names = {name.lower().removesuffix(":latest") for name in asked.names}
    for name in sorted(names - known):
        raise UsageError(
            sentence=f"`--model {name}` is no model of `{desired.host}`",
            host=desired.host,
            cause=f"its models are {', '.join(sorted(known))}",
            unchanged="everything",
            hint=f"./fleet status --limit {desired.host}",
        )
    for name in sorted(names - there.models):
        raise _nothing(
            desired, f"keeps no other `{name}` to go back to", f"there is no other `{name}:previous`"
        )
    if asked.release and not there.release:
        raise _nothing(desired, "has no release to go back to", "no release was switched on this host yet")
    if asked.models and not there.models:
        raise _nothing(
            desired,
            "has no model to go back to",
            "no model was replaced on this host, or what was replaced is pruned",
        )
    return Replaced(release=asked.release, models=there.models if asked.models else frozenset(names))


def _server_before(desired: Desired, facts: HostFacts) -> DesiredServer:
    version = f"`ollama_version` for `{desired.host}` in the inventory"
    return _server(desired, facts, facts.previous, f"set {version} and deploy: it is fetched anew")


def current_server(desired: Desired, facts: HostFacts) -> DesiredServer:
    """The release stays the one that is current, whatever the inventory wants. Raises ServiceError."""
    is_foreign = facts.systemd is not None and facts.systemd.adopted_program is not None
    current = facts.current or (ADOPTED if is_foreign else None)
    return _server(desired, facts, current, f"./fleet deploy --limit {desired.host} unpacks it anew")


def _server(desired: Desired, facts: HostFacts, name: str | None, hint: str) -> DesiredServer:
    foreign = facts.systemd.foreign_version if facts.systemd is not None else None
    if not (foreign if name == ADOPTED else facts.releases.get(name or "")):
        raise ServiceError(
            sentence=f"release `{name or 'current'}` is no longer on the host",
            host=desired.host,
            cause=_why_no_adopted(facts)
            if name == ADOPTED
            else "its directory was removed or is not what was unpacked",
            unchanged="everything; the server was not stopped",
            hint=hint,
        )
    version = str(foreign) if name == ADOPTED else version_of(str(name))
    return replace(desired.server, version=version, archives={}, release=name)


def _why_no_adopted(facts: HostFacts) -> str:
    program = facts.systemd.foreign_program if facts.systemd is not None else None
    if program is None:
        return "there is no unit of another hand any more"
    return f"`{program}` does not say its version: it was removed, or does not run"


def _previous(name: str) -> str:
    return f"{name.lower()}:previous"


def _mark(stored: StoredModel) -> str:
    """Tells one stored model from another."""
    return hashlib.sha256(json.dumps(asdict(stored), sort_keys=True).encode()).hexdigest()[:16]


def _nothing(desired: Desired, words: str, cause: str) -> ServiceError:
    return ServiceError(
        sentence=f"`{desired.host}` {words}",
        host=desired.host,
        cause=cause,
        unchanged="everything",
        hint=f"./fleet status --limit {desired.host}",
    )
