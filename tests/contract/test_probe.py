"""The probe script on a real tree, read back into facts."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import psutil
import pytest

from deploy import commands
from deploy.errors import ProbeFailed
from deploy.facts import Blob, HostFacts, LastHealth, Unpacked
from deploy.probe import PROBE_SCRIPT, parse_reply
from healthchecks.health_report import CheckResult, HealthReport, State
from healthchecks.results import write_last
from tests.contract.shells import need

SHELLS = (("sh",), ("bash", "--posix"), ("busybox", "sh"))


def probe(
    root: Path, models: Path, port: int = 1, shell: tuple[str, ...] = ("sh",), service: str = "process"
) -> HostFacts:
    argv = commands.probe(PurePosixPath(root), PurePosixPath(models), port, service=service)
    done = subprocess.run(
        [*shell, *argv[1:]], input=PROBE_SCRIPT.read_bytes(), capture_output=True, check=True
    )
    assert done.stderr == b""
    return parse_reply(done.stdout, PurePosixPath(root))


@pytest.fixture(params=SHELLS, ids=lambda shell: shell[0])
def shell(request: pytest.FixtureRequest) -> tuple[str, ...]:
    need(request.param[0])
    return tuple(request.param)


def store(models: Path, name: str, template: str, parameters: dict[str, object]) -> str:
    """A model in the layout that a real server writes (recorded on 0.17.5)."""
    blobs = models / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)

    def layer(kind: str, content: bytes) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / f"sha256-{digest}").write_bytes(content)
        return {
            "mediaType": f"application/vnd.ollama.image.{kind}",
            "digest": f"sha256:{digest}",
            "size": len(content),
        }

    weights = layer("model", b"GGUF weights")
    layers = [weights, layer("template", template.encode()), layer("params", json.dumps(parameters).encode())]
    manifest = models / "manifests/registry.ollama.ai/library" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    config = {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": "sha256:00", "size": 2}
    manifest.write_text(json.dumps({"schemaVersion": 2, "config": config, "layers": layers}))
    return str(weights["digest"]).removeprefix("sha256:")


def test_an_untouched_host_has_facts_too(tmp_path: Path, shell: tuple[str, ...]) -> None:
    facts = probe(tmp_path / "none", tmp_path / "none/models", shell=shell)
    assert facts.architecture == os.uname().machine
    assert facts.user_id == os.getuid()
    assert facts.tools["sha256sum"]
    assert (facts.current, facts.releases, facts.models, facts.servers, facts.leftovers) == (
        None,
        {},
        {},
        (),
        (),
    )
    disk = facts.disks[str(tmp_path / "none/models")]
    usage = shutil.disk_usage(tmp_path)
    assert abs(disk.available_bytes - usage.free) < 2**30
    assert os.path.ismount(disk.mount)


def test_releases_artefacts_blobs_and_leftovers_are_found(tmp_path: Path, shell: tuple[str, ...]) -> None:
    root, models = tmp_path / ".hidden/a root", tmp_path / "the models"
    release = root / "opt/ollama/releases/0.17.5"
    release.mkdir(parents=True)
    (release / "release.json").write_text('{"version": "0.17.5", "archive_sha256": "abc", "bytes": 3}')
    (release / "bin").mkdir()
    (release / "bin/ollama").write_bytes(b"123")
    (release / "release.env").write_text("OLLAMA_FLEET_RELEASE=abc\n")
    (root / "opt/ollama/releases/.unpack-0.17.6-1").mkdir()
    (root / "opt/ollama/current").symlink_to("releases/0.17.5")
    artefact = root / "var/lib/ollama-fleet/artefacts/sha256-beef"
    artefact.mkdir(parents=True)
    (artefact / "w.gguf").write_bytes(b"12345")
    (artefact / ".w.gguf.part").write_bytes(b"12")
    artefact.with_name("sha256-cafe.part").mkdir()
    # Its file has come to its place: a run was killed before it had tidied up.
    artefact.with_name("sha256-beef.part").mkdir()
    # A lease that was being taken, or forgotten, when the host lost its power.
    (root / "var/lib/ollama-fleet/lease.new").mkdir()
    (root / "var/lib/ollama-fleet/lease.old").mkdir()
    os.utime(release / "release.json", (1_700_000_000, 1_700_000_000))
    (models / "blobs").mkdir(parents=True)
    (models / "blobs/sha256-0001").write_bytes(b"GGUF and more")
    (models / "blobs/sha256-0002").write_bytes(b"<htm")
    (models / "blobs/sha256-0003").write_bytes(b"")
    owner = (models / "blobs/sha256-0003").owner()
    facts = probe(root, models, shell=shell)
    assert facts.releases == {"0.17.5": "abc"}
    assert facts.current == "0.17.5"
    assert facts.unpacked == {"0.17.5": Unpacked(size_bytes=3, at=1_700_000_000)}
    assert facts.artefacts == {"beef/w.gguf": 5}
    assert facts.parts.keys() == {"cafe.part", "beef.part", "beef/.w.gguf.part"}
    # As much as the file system gives it: two bytes take a block.
    assert facts.parts["beef/.w.gguf.part"] % 512 == 0
    assert facts.leftovers == (
        str(root / "opt/ollama/releases/.unpack-0.17.6-1"),
        str(root / "var/lib/ollama-fleet/lease.new"),
        str(root / "var/lib/ollama-fleet/lease.old"),
        f"{artefact}.part",
    )
    assert facts.blobs == {
        "0001": Blob(size_bytes=13, is_gguf=True, owner=owner),
        "0002": Blob(size_bytes=4, is_gguf=False, owner=owner),
        "0003": Blob(size_bytes=0, is_gguf=False, owner=owner),
    }


def unpacked(root: Path, program: bytes) -> Path:
    """A release as `deploy.releases` leaves it, stamped; returns its program."""
    release = root / "opt/ollama/releases/0.17.5"
    (release / "bin").mkdir(parents=True)
    path = release / "bin/ollama"
    path.write_bytes(program)
    record = {"archive_sha256": "abc", "bytes": len(program)}
    record["program_sha256"] = hashlib.sha256(program).hexdigest()
    (release / "release.json").write_text(json.dumps(record))
    (release / "release.env").write_text("OLLAMA_FLEET_RELEASE=abc\n")
    subprocess.run(commands.stamp_release(PurePosixPath(release)), check=True)
    return path


def test_a_program_that_was_changed_in_place_is_found_whatever_its_size_and_date(
    tmp_path: Path, shell: tuple[str, ...]
) -> None:
    program = unpacked(tmp_path, b"as it came")
    before = program.stat()
    assert probe(tmp_path, tmp_path / "models", shell=shell).releases == {"0.17.5": "abc"}
    program.write_bytes(b"as it is..")
    os.utime(program, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert probe(tmp_path, tmp_path / "models", shell=shell).releases == {"0.17.5": ""}
    program.write_bytes(b"as it came")
    assert probe(tmp_path, tmp_path / "models", shell=shell).releases == {"0.17.5": "abc"}


@pytest.mark.parametrize("mode", [0o755, 0o757])
def test_a_program_that_systemd_starts_is_roots_and_nobody_else_may_write_to_it(
    tmp_path: Path, shell: tuple[str, ...], mode: int
) -> None:
    program = unpacked(tmp_path, b"as it came")
    program.chmod(mode)
    is_whole = mode == 0o755 and program.owner() == "root"
    found = probe(tmp_path, tmp_path / "models", shell=shell, service="systemd").releases
    assert found == {"0.17.5": "abc" if is_whole else ""}
    assert probe(tmp_path, tmp_path / "models", shell=shell).releases == {"0.17.5": "abc"}


@pytest.mark.parametrize("mark", [None, "OLLAMA_FLEET_RELEASE=abc\nOLLAMA_DEBUG=1\n", ""])
def test_a_release_whose_mark_was_lost_or_edited_is_damaged(
    tmp_path: Path, shell: tuple[str, ...], mark: str | None
) -> None:
    env = unpacked(tmp_path, b"as it came").parents[1] / "release.env"
    env.unlink()
    if mark is not None:
        env.write_text(mark)
    assert probe(tmp_path, tmp_path / "models", shell=shell).releases == {"0.17.5": ""}


def test_only_a_program_that_was_touched_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = unpacked(tmp_path, b"as it came")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sha256sum").write_text(
        f'#!/bin/sh\necho read >>{tmp_path}/calls\nexec /usr/bin/sha256sum "$@"\n'
    )
    (tools / "sha256sum").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    assert probe(tmp_path, tmp_path / "models").releases == {"0.17.5": "abc"}
    assert not (tmp_path / "calls").exists()
    # As a restored backup: the same bytes in another file.
    shutil.copy2(program, tmp_path / "copy")
    (tmp_path / "copy").replace(program)
    assert probe(tmp_path, tmp_path / "models").releases == {"0.17.5": "abc"}
    assert (tmp_path / "calls").read_text() == "read\n"


@pytest.mark.parametrize(
    "template", ["{{ .Prompt }}", "ends in a line break\n", "@end\n@file x 3\nabc", "漢字 \t'\"$(id)"]
)
def test_a_stored_model_comes_back_byte_for_byte(
    tmp_path: Path, shell: tuple[str, ...], template: str
) -> None:
    weights = store(tmp_path, "MyModel/Latest", template, {"temperature": 0.7, "stop": ["<|im_end|>"]})
    model = probe(tmp_path, tmp_path, shell=shell).models["mymodel:latest"]
    assert model.model_sha256 == weights
    assert model.template == template
    assert model.parameters == {"temperature": 0.7, "stop": ["<|im_end|>"]}
    assert (model.system, model.other_layers) == (None, ())


def test_a_listener_is_known_by_its_pid(tmp_path: Path, shell: tuple[str, ...]) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        listener = probe(tmp_path, tmp_path, server.getsockname()[1], shell).listener
    assert listener is not None
    assert listener.pid == os.getpid()


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like a server of ours: our mark in its environment, `serve` as its last word."""
    process = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()", "serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OLLAMA_FLEET_ROOT": str(tmp_path), "MULTI": "a=b c"},
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_a_running_server_is_known_by_its_mark_with_pid_and_create_time(
    tmp_path: Path, shell: tuple[str, ...], sleeper: subprocess.Popen[bytes]
) -> None:
    (server,) = probe(tmp_path, tmp_path, shell=shell).servers
    assert server.process.pid == sleeper.pid
    assert abs(server.process.create_time - psutil.Process(sleeper.pid).create_time()) < 2
    assert server.command[-1] == "serve"
    assert server.environment["MULTI"] == "a=b c"


def test_a_runner_without_its_server_is_an_orphan_and_one_with_it_is_not(
    tmp_path: Path, shell: tuple[str, ...]
) -> None:
    program = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'print(flush=True); input()', 'runner'],"
        " stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(child.pid, flush=True); input()"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", program, "serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OLLAMA_FLEET_ROOT": str(tmp_path)},
    )
    assert server.stdout is not None
    runner = psutil.Process(int(server.stdout.readline()))
    facts = probe(tmp_path, tmp_path, shell=shell)
    assert ([item.process.pid for item in facts.servers], facts.orphans) == ([server.pid], ())
    runner.suspend()  # or it would end with the pipe that its server held
    server.kill()
    server.communicate()
    try:
        facts = probe(tmp_path, tmp_path, shell=shell)
        assert (facts.servers, [item.process.pid for item in facts.orphans]) == ((), [runner.pid])
    finally:
        runner.kill()


def test_a_server_of_another_root_is_not_ours(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    assert probe(tmp_path.parent, tmp_path).servers == ()
    assert probe(tmp_path / "x", tmp_path).servers == ()
    assert str(tmp_path)[:-1] != str(tmp_path)
    assert probe(Path(str(tmp_path)[:-1]), tmp_path).servers == ()


@pytest.mark.parametrize(
    "reply", [b"", b"Welcome to host!\n@fleet-probe\t2\n@end\n", b"@fleet-probe\t2\n@boot_id\t0\n"]
)
def test_what_is_no_whole_reply_is_refused(reply: bytes) -> None:
    with pytest.raises(ProbeFailed):
        parse_reply(reply, PurePosixPath("/"))


def test_a_mount_point_and_a_device_with_spaces_are_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As df(1) prints a network share; POSIX promises one line, not that its names are words.
    fake = tmp_path / "tools/df"
    fake.parent.mkdir()
    fake.write_text(
        "#!/bin/sh\n"
        "echo 'Filesystem 1024-blocks Used Available Capacity Mounted on'\n"
        "shift\n"
        "for directory; do echo '//nas/My Share 1000 400 600 40% /mnt/My Share'; done\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    disk = probe(tmp_path / "root", tmp_path / "models").disks[str(tmp_path / "models")]
    assert (disk.available_bytes, disk.mount) == (600 * 1024, "/mnt/My Share")


def test_the_inodes_of_a_disk_are_told_where_it_has_a_number_of_them(
    tmp_path: Path, shell: tuple[str, ...]
) -> None:
    disk = probe(tmp_path / "root", tmp_path / "models", shell=shell).disks[str(tmp_path / "models")]
    told = os.statvfs(tmp_path)
    assert not disk.is_read_only
    if told.f_files == 0:
        assert disk.free_inodes is None
    else:
        # Others make files meanwhile.
        assert disk.free_inodes == pytest.approx(told.f_ffree, abs=max(1000, told.f_ffree // 10))


def test_a_current_that_is_no_release_of_ours_is_told_as_it_is(
    tmp_path: Path, shell: tuple[str, ...]
) -> None:
    current = tmp_path / "opt/ollama/current"
    current.parent.mkdir(parents=True)
    current.symlink_to("/elsewhere/0.17.5")
    assert probe(tmp_path, tmp_path / "models", shell=shell).current == "/elsewhere/0.17.5"


@pytest.mark.parametrize(
    "lines",
    [
        "@stat\t/proc/self\t0\t555\tme\troot",
        "@stat\t/proc/self",
        "@file\tgpu/gpus\tmany",
        "@files\t1\n/not/said",
        "@stat\t/a\t3\t644\t0\troot\n@files\t1\n/a\nabcd",
        "@stat\t/a\t9\t644\t0\troot\n@files\t1\n/a\nabcd",
        "@stat\t/m/blobs/sha256-00\t4\t644\t0\troot\n@blob_heads\tGGUFGGUF",
    ],
)
def test_a_reply_that_makes_no_sense_is_a_designed_error(lines: str) -> None:
    whole = "@fleet-probe\t2\n@paths\t/s\t/r\t/m\t/u\n@stat\t/proc/self\t0\t555\t0\troot\n{}@end\n"
    assert parse_reply(whole.format("").encode(), PurePosixPath("/")).user_id == 0
    with pytest.raises(ProbeFailed, match="probe"):
        parse_reply(whole.format(f"{lines}\n").encode(), PurePosixPath("/"))


@pytest.mark.parametrize("host", ["box", "b" * 253])
@pytest.mark.parametrize("state", list(State))
def test_how_the_hosts_own_checks_ended_is_found(
    tmp_path: Path, shell: tuple[str, ...], host: str, state: State
) -> None:
    report = HealthReport(host, "2026-11-26T03:00:00Z", 12.5, (CheckResult("api", state, "é " * 400),), {})
    path = tmp_path / "var/lib/ollama-fleet/health/last.json"
    path.parent.mkdir(parents=True)
    write_last(path, report)
    started = datetime(2026, 11, 26, 3, 0, tzinfo=UTC)
    assert probe(tmp_path, tmp_path, shell=shell).health == LastHealth(state=str(state), started=started)


@pytest.mark.parametrize(
    "text", ["", "{}", '{"format": 1, "host": "box", "started": "2026-', "\n@end\n", "@end\n"]
)
def test_a_report_that_says_nothing_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "var/lib/ollama-fleet/health/last.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert probe(tmp_path, tmp_path).health is None


def test_who_is_notified_is_told_by_a_sha256_alone(tmp_path: Path, shell: tuple[str, ...]) -> None:
    addresses = tmp_path / "var/lib/ollama-fleet/health/notify.urls"
    addresses.parent.mkdir(parents=True)
    addresses.write_bytes(b"slack://T1/A1/kept-secret\n")
    argv = commands.probe(PurePosixPath(tmp_path), PurePosixPath(tmp_path / "models"), 1, service="systemd")
    done = subprocess.run(
        [*shell, *argv[1:]], input=PROBE_SCRIPT.read_bytes(), capture_output=True, check=True
    )
    assert b"kept-secret" not in done.stdout
    told = hashlib.sha256(addresses.read_bytes()).hexdigest().encode()
    assert b"@addresses\t" + told + b"\n" in done.stdout
    parse_reply(done.stdout, PurePosixPath(tmp_path))
