"""The release before as what is desired: going back is a deploy of what is on the host already."""

from __future__ import annotations

from dataclasses import replace

from deploy.desired import ADOPTED, Desired
from deploy.errors import ServiceError
from deploy.facts import HostFacts
from deploy.steps import EndLease, Phase, Step, VerifyModel, phase_of


def release_before(desired: Desired, facts: HostFacts) -> Desired:
    """The host with the release that `previous` names. Raises ServiceError before anything is stopped.

    The settings of the server stay those of the inventory; the models stay as they are.
    """
    name = facts.previous
    if name is None:
        raise ServiceError(
            sentence=f"`{desired.host}` has no release to go back to",
            host=desired.host,
            cause="no release was switched on this host yet",
            unchanged="everything",
            hint=f"./fleet status --limit {desired.host}",
        )
    if name != ADOPTED and not facts.releases.get(name):
        raise ServiceError(
            sentence=f"release `{name}` is no longer on the host",
            host=desired.host,
            cause="its directory was removed or is not what was unpacked",
            unchanged="everything; the server was not stopped",
            hint=f"set `ollama_version` for `{desired.host}` in the inventory; deploy fetches it anew",
        )
    foreign = facts.systemd.foreign_version if facts.systemd is not None else None
    version = foreign or name if name == ADOPTED else version_of(name)
    server = replace(desired.server, version=version, archives={}, release=name)
    return replace(desired, server=server)


def version_of(release: str) -> str:
    """`0.17.5` of `0.17.5-28b735748dc0`: the part that tells other bytes of one version apart."""
    version, _, rest = release.rpartition("-")
    is_digest = len(rest) == 12 and all(letter in "0123456789abcdef" for letter in rest)
    return version if version and is_digest else release


def going_back(step: Step) -> bool:
    """`rollback`: the server, and the proof of what it serves; no model is made."""
    if isinstance(step, VerifyModel):
        return step.tag == "latest"
    return phase_of(step) is Phase.SERVICE or isinstance(step, EndLease)
