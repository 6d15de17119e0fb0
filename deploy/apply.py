"""One step after the other onto one host. Each ends completely or leaves what was there."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import assert_never

from deploy import commands, mirror, services, systemd
from deploy.baselines import find_baseline, make_baseline, read_baselines, with_baseline, write_baselines
from deploy.desired import ADOPTED, Artefact, Desired, DesiredModel, GpuKind, ServiceBackend
from deploy.errors import (
    ChecksumMismatch,
    CommandFailed,
    FleetError,
    HostLocked,
    HostUnreachable,
    ModelRefused,
    VerifyFailed,
    command_failed,
)
from deploy.facts import HostFacts, ProcessId
from deploy.host_lock import CheckHeld
from deploy.ollama_api import OllamaApi
from deploy.outcomes import Baseline, Events, ModelVerdict, Verify, VerifyRequest
from deploy.plan import model_differences
from deploy.release_stream import stream_release
from deploy.releases import unpack_release
from deploy.render import create_request
from deploy.schedule import apply_schedule
from deploy.steps import (
    CreateModel,
    EnableUnits,
    EndLease,
    FetchArchive,
    FetchWeights,
    InstallAgent,
    LoadModel,
    MakeAccount,
    OverwriteFile,
    Phase,
    PromoteModel,
    RemoveCandidate,
    RemoveDamagedBlob,
    RemoveLeftovers,
    RestoreModel,
    StartServer,
    StartTimer,
    Step,
    StopSchedule,
    StopServer,
    SwitchRelease,
    TakeLease,
    UnpackRelease,
    VerifyModel,
    WriteCrontab,
    WriteFile,
)
from deploy.systemd_plan import main_server
from deploy.transport import Transport

# Hashing 5 GiB on a slow disk takes minutes.
PLACE_SECONDS = 1800.0
# Of one verification, in one error.
MOST_REASONS = 12


def _nobody_else_is_there() -> None:
    """For a site whose host is only looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One host being changed: what it should be, how it is reached, and who is asked and told.

    `verified` are the processes that systemd ran the server as while it was verified. `check_held` raises
    HostLocked where the host's lock was lost.

    `cache` is a directory of this machine: what a host elsewhere needs is fetched and verified there first.
    """

    desired: Desired
    transport: Transport
    probe: Callable[[], HostFacts]
    verify: Verify
    events: Events
    endpoint: str | None
    cache: Path
    verdicts: dict[str, ModelVerdict]
    verified: list[ProcessId]
    check_held: CheckHeld = _nobody_else_is_there

    @property
    def host(self) -> str:
        return self.desired.host

    def emit(self, event: str, **fields: object) -> None:
        self.events(event, self.host, **fields)


def in_rounds(steps: Sequence[Step]) -> tuple[tuple[Step, ...], ...]:
    """The steps in their order; files that follow each other are written in one round trip."""
    return tuple(
        part
        for writes, group in groupby(steps, lambda step: isinstance(step, WriteFile | OverwriteFile))
        for part in ([tuple(group)] if writes else [(step,) for step in group])
    )


def apply_round(steps: Sequence[Step], site: Site) -> None:
    """Make the changes of one round. Raises as `apply_step` does."""
    files = [step for step in steps if isinstance(step, WriteFile | OverwriteFile)]
    if files:
        _write(files, site)
        return
    for step in steps:
        apply_step(step, site)


def apply_step(step: Step, site: Site) -> None:
    """Make one change. Raises FleetError; what was served before is then still there (see `converge`)."""
    match step:
        case RemoveLeftovers():
            _run(site, commands.remove(step.paths), "leftovers of a cut run could not be removed")
        case FetchArchive():
            _fetch(step.artefact, site)
        case FetchWeights():
            _deliver(_fetch(step.artefact, site), step.artefact, site)
        case UnpackRelease():
            _unpack(step, site)
        case MakeAccount():
            systemd.make_account(site.transport, site.desired, step)
        case WriteFile() | OverwriteFile():
            _write([step], site)
        case TakeLease():
            systemd.take_lease(site.transport, site.desired, step)
        case EnableUnits():
            systemd.enable_units(site.transport, step.names)
        case EndLease():
            systemd.check_still_serves(site.host, site.probe(), site.verified)
            systemd.end_lease(site.transport, site.desired)
        case StopServer():
            services.stop_server(site.transport, step.server.process)
        case SwitchRelease():
            release = None if step.version == ADOPTED else step.version
            switch = commands.switch_current(site.desired.paths, release, step.previous)
            _run(site, switch, "`current` was not switched")
        case RemoveDamagedBlob():
            blob = site.desired.paths.models_dir / "blobs" / f"sha256-{step.sha256}"
            _run(site, commands.remove([blob]), f"`{blob}` could not be removed")
        case StartServer():
            start(site, step, None if step.version == ADOPTED else site.desired.server.version)
        case CreateModel():
            _create(step.model, site)
        case VerifyModel():
            _verify(step, site)
        case PromoteModel() | RestoreModel():
            _promote(step, site)
        case RemoveCandidate():
            with site.transport.http_url(site.desired.url) as url:
                OllamaApi(site.host, url).delete(f"{step.name}:candidate")
        case LoadModel():
            _load(step, site)
        case InstallAgent() | StartTimer() | WriteCrontab() | StopSchedule():
            apply_schedule(step, site.transport, site.desired.paths, site.events)
        case _:
            assert_never(step)


def _write(steps: Sequence[WriteFile | OverwriteFile], site: Site) -> None:
    systemd.write_files(site.transport, steps)
    for step in steps:
        if isinstance(step, OverwriteFile):
            site.emit("note", text=f"kept a copy of {step.file.path}: {step.backup}")


def start(site: Site, step: StartServer, version: str | None) -> None:
    """Start a server and wait until it answers; one that never got ready is stopped.

    A tag is not a version: with `version` that is what it must say of itself. Once the connection was cut it
    is no more ours to stop: the host may have gone back by itself.
    """
    try:
        if step.account is None:
            binary = site.desired.paths.release(step.version) / "bin/ollama"
            services.start_server(site.transport, site.desired.paths, binary, step.environment)
        else:
            systemd.restart(site.transport, site.desired, step.account, step.environment["HOME"])
        actual = wait_until_ready(site)
        if version is not None:
            services.check_version(site.host, version, actual)
    except HostUnreachable:
        raise
    except FleetError:
        site.check_held()
        stop_servers(site)
        raise


def wait_until_ready(site: Site) -> str:
    """Wait for the server's answer and return its version.

    Raises ServiceError with the end of its log, or HostUnreachable where the connection or the lock is lost.
    """

    def is_alive() -> bool:
        try:
            site.check_held()
        except HostLocked as lost:
            # With its connection, mostly: commands would go on by a new one, requests would wait for the old.
            raise HostUnreachable(
                sentence=f"the lock of `{site.host}` was lost while the server started",
                host=site.host,
                cause=lost.cause,
            ) from lost
        if site.desired.server.backend is ServiceBackend.SYSTEMD:
            return systemd.is_alive(site.transport)
        return bool(site.probe().servers)

    return services.wait_until_ready(site.transport, site.desired, is_alive)


def stop_servers(site: Site) -> None:
    """Stop what runs. Raises ServiceError."""
    if site.desired.server.backend is ServiceBackend.SYSTEMD:
        systemd.stop(site.transport)
        return
    for server in site.probe().servers:
        services.stop_server(site.transport, server.process)


def _run(site: Site, argv: commands.Argv, sentence: str, timeout_seconds: float = 60.0) -> str:
    done = site.transport.run(argv, timeout_seconds=timeout_seconds)
    if done.exit_code != 0:
        raise command_failed(sentence=sentence, host=site.host, cause=done.last_words)
    return done.stdout.decode(errors="replace").strip()


def _fetch(artefact: Artefact, site: Site) -> Path:
    """The verified file on this machine: on a host elsewhere it is not yet."""
    here = site.transport.local_path(site.desired.paths.artefacts)
    cache = here or site.cache
    cache.mkdir(parents=True, exist_ok=True)
    if artefact.local_path is not None:
        source = _check_contained(Path(artefact.local_path), artefact)
        # A copy: the server changes the times of what lies in its store (measured on 0.24.0).
        return source if here is None else _take(source, artefact, cache, shutil.copyfile)

    proven = site.cache / artefact.place
    if here is not None and _is_pinned(proven, artefact):
        # `pin` has downloaded and proven it on this machine: by hard link it costs nothing.
        return _take(proven, artefact, cache, _link_or_copy)

    def tell(progress: mirror.Progress) -> None:
        site.emit(
            "progress",
            file=progress.file,
            doing=str(progress.phase),
            bytes=progress.done_bytes,
            total_bytes=progress.total_bytes,
            bytes_per_second=progress.bytes_per_second,
            eta_seconds=progress.eta_seconds,
        )

    return mirror.fetch(artefact, cache, on_progress=tell, endpoint=site.endpoint)


def _deliver(file: Path, artefact: Artefact, site: Site) -> None:
    """To a host elsewhere, under the name that it would have been fetched to."""
    if site.transport.local_path(site.desired.paths.artefacts) is not None:
        return

    def tell(done_bytes: int) -> None:
        site.emit(
            "progress", file=file.name, doing="copying", bytes=done_bytes, total_bytes=artefact.size_bytes
        )

    site.transport.put(file, site.desired.paths.artefact(artefact), on_progress=tell)


def _is_pinned(file: Path, artefact: Artefact) -> bool:
    if not file.is_file() or file.stat().st_size != artefact.size_bytes:
        return False
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == artefact.sha256


def _check_contained(source: Path, artefact: Artefact) -> Path:
    """What the project itself contains needs no mirror, but the same proof."""
    if not _is_pinned(source, artefact):
        raise ChecksumMismatch(
            sentence=f"`{source.name}` of the project is not the pinned file",
            expected=artefact.digest,
            actual="another sha256 or size",
            unchanged="the host",
            hint="git status; a checkout with converted line ends or without the file's content is usual",
        )
    return source


def _take(source: Path, artefact: Artefact, cache: Path, place: Callable[[Path, Path], object]) -> Path:
    """A proven file of this machine under the name that it would have been fetched to."""
    final = cache / artefact.place
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}")
    temporary.unlink(missing_ok=True)
    place(source, temporary)
    temporary.replace(final)
    return final


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Another file system, or one without hard links.
        shutil.copyfile(source, target)


def _artefact_path(artefact: Artefact, site: Site) -> Path:
    """Where the verified file lies on this machine."""
    return (site.transport.local_path(site.desired.paths.artefacts) or site.cache) / artefact.place


def _damaged(artefact: Artefact, site: Site) -> ChecksumMismatch:
    """It was verified when it came, and is not what it was: away with it, so that it comes anew."""
    here, there = _artefact_path(artefact, site), site.desired.paths.artefact(artefact)
    _run(site, commands.remove([there.parent]), f"`{there.parent}` could not be removed")
    # A copy on this machine that is damaged would only be sent once more; a good one serves other hosts too.
    is_good = _is_pinned(here, artefact)
    if not is_good:
        shutil.rmtree(here.parent, ignore_errors=True)
    return ChecksumMismatch(
        sentence=f"`{there if is_good else here}` has changed since it was verified",
        host=site.host,
        expected=artefact.digest,
        actual="another sha256",
        cause="a failing disk or a hand; the file was removed",
        hint=f"run the same command again: it is {'copied' if is_good else 'fetched'} anew",
    )


def _unpack(step: UnpackRelease, site: Site) -> None:
    release = site.desired.paths.release(step.version)
    here = site.transport.local_path(release)
    archive = _artefact_path(step.artefact, site)
    if not _is_pinned(archive, step.artefact):
        raise _damaged(step.artefact, site)

    def tell(written: int) -> None:
        site.emit("progress", file=archive.name, doing="unpacking", bytes=written)

    version, sha256 = step.version, step.artefact.sha256
    if here is None:
        # The archive stays in the cache: other hosts may need it.
        stream_release(site.transport, archive, release, version=version, sha256=sha256, on_progress=tell)
    else:
        here.parent.mkdir(parents=True, exist_ok=True)
        unpack_release(archive, here, version=version, sha256=sha256, on_progress=tell)
        # The release directory is the archive now; going back needs no archive either.
        _run(site, commands.remove([str(archive.parent)]), f"`{archive.name}` could not be removed")
    _run(site, commands.stamp_release(release), f"release `{version}` could not be stamped")


def _create(model: DesiredModel, site: Site) -> None:
    name = f"{model.name}:candidate"
    source = site.desired.paths.artefact(model.weights)
    place = commands.place_blob(source, site.desired.paths.models_dir, model.weights.sha256)
    try:
        how = _run(site, place, f"the weights of `{model.name}` could not be placed", PLACE_SECONDS)
    except CommandFailed as error:
        if commands.WRONG_SHA256 in str(error.cause):
            raise _damaged(model.weights, site) from error
        raise
    site.emit("blob", model=model.name, digest=model.weights.digest, how=how)
    with site.transport.http_url(site.desired.url) as url:
        OllamaApi(site.host, url).create(create_request(model, name))
    # Nothing of what create says is taken on trust: the store is read again.
    differences = model_differences(site.probe().models.get(name.lower()), model)
    if differences:
        raise ModelRefused(
            sentence=f"the server made something else of `{name}` than it was given",
            host=site.host,
            cause="; ".join(map(str, differences)),
        )


def _verify(step: VerifyModel, site: Site) -> None:
    if step.tag != "latest":
        # A runner that is loaded from the same weights would answer from the file it has open, healed or not.
        # It serves `latest` too: until the candidate is loaded nothing is in memory.
        with site.transport.http_url(site.desired.url) as url:
            OllamaApi(site.host, url).unload(f"{step.model.name}:{step.tag}")
    if site.desired.server.backend is ServiceBackend.SYSTEMD:
        server = main_server(site.probe())
        if server is not None:
            site.verified.append(server.process)
    prove(site, step.model, step.tag, site.verify)


def prove(site: Site, model: DesiredModel, tag: str, verify: Verify) -> None:
    """Have one model name checked. Raises VerifyFailed; the verdict is kept either way."""
    name = f"{model.name}:{tag}"
    # A candidate is compared with what is served, everything else with what it was itself.
    served = f"{model.name}:{'latest' if tag == 'candidate' else tag}".lower()

    def baseline() -> Baseline | None:
        return find_baseline(
            site.transport, site.desired.paths.baselines, model.name, lambda: site.probe().models.get(served)
        )

    with site.transport.http_url(site.desired.url) as url:
        verdict = verify(
            VerifyRequest(
                host=site.host,
                url=url,
                model=name,
                uses_tools=model.uses_tools,
                version=site.desired.server.version,
                gpu=str(site.desired.gpu),
                cases=model.cases,
                baseline=baseline,
            )
        )
    site.verdicts[model.name] = verdict
    for note in verdict.notes:
        site.emit("note", text=f"`{name}`: {note}")
    if not verdict.passed:
        raise VerifyFailed(
            sentence=f"`{name}` did not pass verification",
            host=site.host,
            cause="\n".join(_first(verdict.reasons)),
            hint="docs/smoke.md explains the rules; mend the cause and deploy again"
            if verdict.cases
            else _how_to_look(site, model, verdict),
        )


def _how_to_look(site: Site, model: DesiredModel, verdict: ModelVerdict) -> str:
    """Where nothing was played, the server or the bytes of the model are to blame; nobody verifies those."""
    if verdict.ollama is None:
        return f"./fleet logs --limit {site.host}; ./fleet service restart --limit {site.host}"
    blob = site.desired.paths.models_dir / f"blobs/sha256-{model.weights.sha256}"
    look = commands.render_command(["sha256sum", str(blob)])
    bytes_too = (
        f"then ./fleet run --yes {commands.render_command([look])} --limit {site.host}: where the sha256 is "
        "not the one in the name, remove that file and deploy again"
    )
    logs = f"./fleet logs --limit {site.host}"
    if site.desired.gpu is GpuKind.NVIDIA:
        # A model that runs, and on the CPU, has good bytes; the server's log says which GPUs it found.
        return f"{logs}: `inference compute` names what the server found; where that is the GPU, {bytes_too}"
    return f"{logs}; {bytes_too}"


def _first(reasons: Sequence[str]) -> Sequence[str]:
    """All of them were told when they were found; a server that is down fails every case."""
    if len(reasons) <= MOST_REASONS:
        return reasons
    return [*reasons[: MOST_REASONS - 1], f"and {len(reasons) - MOST_REASONS + 1} more, told above"]


def _load(step: LoadModel, site: Site) -> None:
    """Load under this very name: names on one GGUF share a runner, and `/api/ps` knows it by the first.

    That first name would be the deleted candidate's while the model stays loaded (measured on 0.17.5).
    """
    name = f"{step.name}:latest"
    with site.transport.http_url(site.desired.url) as url:
        api = OllamaApi(site.host, url)
        if name.lower() not in api.loaded_names():
            api.unload(name)
        api.load(name)
    if step.phase is Phase.PROMOTE and site.desired.server.backend is ServiceBackend.SYSTEMD:
        # What loads it at the next boot must work too.
        systemd.load_models(site.transport)


def _promote(step: PromoteModel | RestoreModel, site: Site) -> None:
    name = step.model.name
    _keep_baseline(step.model, site)
    with site.transport.http_url(site.desired.url) as url:
        api = OllamaApi(site.host, url)
        if isinstance(step, RestoreModel):
            swap_with_previous(api, name)
        else:
            if step.keeps_previous:
                api.copy(f"{name}:latest", f"{name}:previous")
            api.copy(f"{name}:candidate", f"{name}:latest")
            api.delete(f"{name}:candidate")
        if step.other_weights:
            # Its own runner would keep its memory for ever; one on the same weights serves what is promoted.
            api.unload(f"{name}:previous")


def swap_with_previous(api: OllamaApi, name: str) -> None:
    """`latest` and `previous` change places: done twice, nothing has changed.

    What `previous` holds has another name until it is served: however this is cut, it is not lost.
    """
    api.copy(f"{name}:latest", f"{name}:candidate")
    api.copy(f"{name}:previous", f"{name}:latest")
    api.copy(f"{name}:candidate", f"{name}:previous")
    api.delete(f"{name}:candidate")


def _keep_baseline(model: DesiredModel, site: Site) -> None:
    """Before the model is promoted: what is served always has its baseline, and one too many harms nobody."""
    verdict = site.verdicts.get(model.name)
    if verdict is None or not verdict.rates:
        return
    path = site.desired.paths.baselines
    new = make_baseline(model, site.desired.server.version, verdict, datetime.now(UTC))
    write_baselines(
        site.transport, path, with_baseline(read_baselines(site.transport, path), model.name, new)
    )
