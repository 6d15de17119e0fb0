"""What both backends plan alike: which release the server runs from, with which environment."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from deploy.desired import ADOPTED, Artefact, Desired, GpuKind, ServiceBackend
from deploy.errors import PinError
from deploy.facts import HostFacts, ServerProcess
from deploy.steps import Difference, RemoveDamagedBlob

ARCHITECTURES: Mapping[str, str] = {"x86_64": "amd64", "aarch64": "arm64"}
"""`uname -m` to the word in the archives' names."""

MARK_NAME = "OLLAMA_FLEET_RELEASE"
"""The variable that tells of a running server which release it was started from."""

ACCOUNT = "ollama"
ACCOUNT_HOME = "/usr/share/ollama"
"""As Ollama's own install.sh makes it."""

HIDES_GPUS = "CUDA_VISIBLE_DEVICES"

SERVER_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A release by the name of its directory; `mark` tells in a server's environment that it runs from it.

    `archive` is None for one that is on the host and in no pins: adopted, or gone back to.
    """

    name: str
    mark: str
    archive: Artefact | None = None

    @property
    def is_adopted(self) -> bool:
        return self.name == ADOPTED


def render_mark(sha256: str) -> bytes:
    """The environment file of a release: its server tells by it which one it was started from."""
    return f"{MARK_NAME}={sha256}\n".encode()


def choose_release(desired: Desired, facts: HostFacts) -> Release:
    """The release that the server should run from. Raises PinError when no archive of it is pinned."""
    there = desired.server.release
    if there == ADOPTED or (there is None and _is_adoptable(desired, facts)):
        return Release(name=ADOPTED, mark=_adopted_mark(facts))
    if there is not None:
        return Release(name=there, mark=facts.releases[there])
    archive = _archive(desired, facts)
    return Release(
        name=_directory(desired.server.version, archive, facts), mark=archive.sha256, archive=archive
    )


def _adopted_mark(facts: HostFacts) -> str:
    """Which file of another hand a server was started from: an old one would start runners of a new one."""
    stamp = facts.systemd.foreign_stamp if facts.systemd is not None else None
    return ADOPTED if stamp is None else f"{ADOPTED}-{hashlib.sha256(stamp.encode()).hexdigest()[:12]}"


def server_environment(desired: Desired, facts: HostFacts, release: Release) -> dict[str, str]:
    """The whole environment of the server: the inventory's settings and the marks we know it by."""
    home = str(desired.paths.server_home)
    if desired.server.backend is ServiceBackend.SYSTEMD:
        account = facts.systemd.account if facts.systemd is not None else None
        home = account.home if account is not None else ACCOUNT_HOME
    return {
        **desired.server.environment,
        "HOME": home,
        "PATH": SERVER_PATH,
        "OLLAMA_FLEET_ROOT": str(desired.paths.root),
        MARK_NAME: release.mark,
    }


def environment_differences(actual: Mapping[str, str], desired: Mapping[str, str]) -> tuple[Difference, ...]:
    """What of a running server's environment is not as desired; what systemd and shells add is not ours."""
    names = {*desired, *(name for name in actual if name.startswith("OLLAMA_"))}
    return tuple(
        Difference(what=name, actual=actual.get(name), desired=desired.get(name))
        for name in sorted(names)
        if actual.get(name) != desired.get(name)
    )


def hides_all_gpus(value: str | None) -> bool:
    """CUDA takes the devices before the first one that it does not know: CUDA's programming guide."""
    return value is not None and value.split(",")[0].strip().lower() in ("", "-1", "none")


def hidden_gpus(
    desired: Desired, server: ServerProcess, environment: Mapping[str, str]
) -> tuple[Difference, ...]:
    """A server that somebody has told to see no GPU computes on the CPU, and says nothing.

    What we start ourselves inherits nothing, so any value is from a start by hand; under systemd an
    operator's choice of some GPUs stands.
    """
    value = server.environment.get(HIDES_GPUS)
    is_systemd = desired.server.backend is ServiceBackend.SYSTEMD
    is_meant = is_systemd and not (desired.gpu is GpuKind.NVIDIA and hides_all_gpus(value))
    if value is None or HIDES_GPUS in environment or is_meant:
        return ()
    return (Difference(what=HIDES_GPUS, actual=value, desired=None),)


def replaced_program(server: ServerProcess, facts: HostFacts, release: Release) -> tuple[Difference, ...]:
    """The release that a server runs from is no longer what was unpacked, and is put in place anew.

    The server would start its next runner from other bytes than its own (measured on 0.17.5 and 0.24.0).
    """
    runs_from_it = server.environment.get(MARK_NAME) == release.mark
    if release.is_adopted or not runs_from_it or facts.releases.get(release.name) == release.mark:
        return ()
    return (Difference(what="release directory", actual="damaged", desired="as it was unpacked"),)


def retired_process(server: ServerProcess, desired: Desired) -> tuple[Difference, ...]:
    """The process is one that somebody has asked to be replaced by a new one."""
    process = server.process
    if not any(process.same_as(other) for other in desired.server.retired):
        return ()
    return (Difference(what="server process", actual=f"pid {process.pid}", desired="another one"),)


def previous_release(facts: HostFacts) -> str | None:
    """What a switch leaves as the way back: `current`, or, where that leads to no release, what it was."""
    return facts.current if facts.current in facts.releases else facts.previous


def damaged_blobs(desired: Desired, facts: HostFacts) -> Iterator[RemoveDamagedBlob]:
    """Weights that would keep the server from starting: they go before it starts."""
    blobs = {model.weights.sha256: facts.blobs.get(model.weights.sha256) for model in desired.models}
    for sha256, blob in sorted(blobs.items()):
        if blob is not None and not blob.is_gguf:
            yield RemoveDamagedBlob(reason="these bytes are no GGUF", sha256=sha256)


def _is_adoptable(desired: Desired, facts: HostFacts) -> bool:
    """A binary of another hand is kept while it is of the wanted version: nothing is downloaded again."""
    found = facts.systemd
    return (
        desired.server.backend is ServiceBackend.SYSTEMD
        and found is not None
        and facts.current is None
        and not found.is_replaced
        and found.foreign_version == desired.server.version
    )


def _archive(desired: Desired, facts: HostFacts) -> Artefact:
    architecture = ARCHITECTURES.get(facts.architecture, facts.architecture)
    archive = desired.server.archives.get(architecture)
    if archive is None:
        known = ", ".join(f"`{name}`" for name in sorted(desired.server.archives)) or "none"
        raise PinError(
            sentence=f"no archive of Ollama {desired.server.version} is pinned for `{architecture}`",
            host=desired.host,
            cause=f"pinned architectures: {known}; the ModelScope mirror usually holds amd64 only",
            unchanged="everything",
            hint="./fleet pin",
        )
    return archive


def _directory(version: str, archive: Artefact, facts: HostFacts) -> str:
    """The version; with a part of the sha256 where that name is another archive's: one can go back."""
    for name, sha256 in sorted(facts.releases.items()):
        if sha256 == archive.sha256:
            return name
    taken = facts.releases.get(version, "")
    return f"{version}-{archive.sha256[:12]}" if taken else version
