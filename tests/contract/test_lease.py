"""The rollback lease of a host: its script, under dash and busybox, cut at every step."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.contract.shells import need

LEASE = Path(__file__).parents[2] / "deploy/templates/lease.sh"
UNIT = "/etc/systemd/system/ollama.service"
DROP_IN = "/etc/systemd/system/ollama.service.d/50-fleet.conf"
MODULES = "/etc/modules-load.d/a name with spaces.conf"
PATHS = (UNIT, DROP_IN, MODULES)
WANTS = "/etc/systemd/system/multi-user.target.wants/ollama.service"
TOOLS = "cat chmod cp date flock ln mkdir mv readlink rm rmdir sed stat sync tail tr".split()

# Stands before every tool: tells its arguments, and ends the whole run in place of the call it is told to.
WRAPPER = r"""#!/bin/sh
name=${0##*/}
read -r number <"$FAKE/number"
number=$((number + 1))
echo "$number" >"$FAKE/number"
{ printf '%s' "$name"; printf '\t%s' "$@"; echo; } >>"$FAKE/calls"
if [ "$number" = "$KILL_AT" ]; then
    # The worst that a copy may leave.
    if [ "$name" = cp ]; then for last in "$@"; do :; done; printf half >"$last"; fi
    kill -9 0
fi
PATH=$REAL_PATH
case $name in
    systemctl) exec sh "$FAKE/systemctl.sh" "$@" ;;
    flock) exec flock "$@" ;;
    # Not seen afterwards, and slow: what is there to be synced is told by the calls.
    sync) for path in "$@"; do [ -e "$path" ] || exit 1; done ;;
    *) exec ${TOOLBOX:+"$TOOLBOX"} "$name" "$@" ;;
esac
"""

# What systemd does with these, seen on systemd 252. Anything else ends with 64.
SYSTEMCTL = r"""
system=$FLEET_ROOT/etc/systemd/system
known() { [ -s "$FAKE/loaded" ] || [ "$(cat "$FAKE/active")" = active ]; }
load() { cat "$system/ollama.service" "$system"/ollama.service.d/*.conf >"$FAKE/loaded" 2>/dev/null; }
begin() { { cat "$FAKE/loaded"; readlink "$FLEET_ROOT/opt/ollama/current"; } >"$FAKE/running"; }
case $* in
    'daemon-reload') load; exit 0 ;;
    'is-active ollama.service') cat "$FAKE/active"; [ "$(cat "$FAKE/active")" = active ] ;;
    'is-active --quiet ollama.service') [ "$(cat "$FAKE/active")" = active ] ;;
    'is-enabled ollama.service')
        [ -e "$system/ollama.service" ] || { echo 'Failed to get unit file state' >&2; exit 1; }
        [ -L "$system/multi-user.target.wants/ollama.service" ] || { echo disabled; exit 1; }
        echo enabled ;;
    'enable ollama.service')
        [ -e "$system/ollama.service" ] || exit 1
        ln -sf ../ollama.service "$system/multi-user.target.wants/ollama.service" ;;
    'disable ollama.service')
        [ -e "$system/ollama.service" ] || exit 1
        rm -f "$system/multi-user.target.wants/ollama.service" ;;
    'reset-failed ollama.service') known ;;
    'restart ollama.service')
        [ -s "$FAKE/loaded" ] || exit 5
        [ ! -e "$FAKE/broken" ] || { echo failed >"$FAKE/active"; rm -f "$FAKE/running"; exit 1; }
        begin; echo active >"$FAKE/active" ;;
    'stop ollama.service') known || exit 5; rm -f "$FAKE/running"; echo inactive >"$FAKE/active" ;;
    '--no-block stop ollama.service') rm -f "$FAKE/queued"; known || exit 5 ;;
    'restart ollama-fleet-lease.timer') echo active >"$FAKE/timer" ;;
    'stop ollama-fleet-lease.timer') echo inactive >"$FAKE/timer" ;;
    'test boot') load; [ ! -L "$system/multi-user.target.wants/ollama.service" ] || touch "$FAKE/queued" ;;
    'test begin') begin ;;
    *) echo "systemctl $*: unknown" >&2; exit 64 ;;
esac
"""


@dataclass(frozen=True, slots=True)
class Host:
    """A tree that stands for a host's root, with a systemd of two units and tools that can be watched."""

    directory: Path
    shell: tuple[str, ...]
    toolbox: str

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def fake(self) -> Path:
        return self.directory / "fake"

    def path(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def write(self, name: str, content: bytes, mode: int = 0o644) -> None:
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        self.path(name).write_bytes(content)
        self.path(name).chmod(mode)

    def link(self, name: str, target: str) -> None:
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        self.path(name).unlink(missing_ok=True)
        self.path(name).symlink_to(target)

    def run(self, argv: tuple[str, ...], kill_at: int | None = None) -> subprocess.CompletedProcess[str]:
        """Only with `kill_at`, which may be 0 for never, every tool is watched; systemctl always is."""
        tools = self.directory / ("systemd" if kill_at is None else "bin")
        (self.fake / "calls").write_text("")
        (self.fake / "number").write_text("0\n")
        return subprocess.run(
            argv,
            env={
                "PATH": f"{tools}:{os.environ['PATH']}",
                "REAL_PATH": os.environ["PATH"],
                "TOOLBOX": self.toolbox,
                "FLEET_ROOT": str(self.root),
                "FAKE": str(self.fake),
                "KILL_AT": str(kill_at or 0),
            },
            capture_output=True,
            text=True,
            start_new_session=True,
            timeout=60,
            check=False,
        )

    def lease(self, *arguments: str, kill_at: int | None = None) -> subprocess.CompletedProcess[str]:
        done = self.run((*self.shell, str(LEASE), *arguments), kill_at)
        assert "unknown" not in done.stderr
        return done

    def says(self, *arguments: str) -> str:
        done = self.lease(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout.strip()

    def systemctl(self, *arguments: str) -> None:
        done = self.run(("sh", str(self.fake / "systemctl.sh"), *arguments))
        assert done.returncode == 0, done

    def calls(self) -> list[list[str]]:
        return [line.split("\t") for line in (self.fake / "calls").read_text().splitlines()]

    def journal(self) -> list[dict[str, Any]]:
        lines = self.path("/var/lib/ollama-fleet/journal.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def has_lease(self) -> bool:
        return self.path("/var/lib/ollama-fleet/lease").exists()

    def fake_word(self, name: str) -> str:
        return (self.fake / name).read_text().strip() if (self.fake / name).exists() else "absent"

    def seen(self) -> dict[str, object]:
        """All that a person could tell apart, but for what only the lease itself uses."""
        found: dict[str, object] = {name: self.fake_word(name) for name in ("active", "running")}
        for top in ("etc", "opt"):
            for path in sorted((self.root / top).rglob("*")):
                mode = path.lstat().st_mode
                content = str(path.readlink()) if path.is_symlink() else path.is_file() and path.read_bytes()
                found[str(path.relative_to(self.root))] = (mode, content)
        return found

    def switch(self) -> None:
        """What a deploy does between taking and ending a lease."""
        self.write(UNIT, b"[Service]\nExecStart=/opt/ollama/current/bin/ollama serve\n", 0o600)
        self.write(DROP_IN, b"[Service]\nEnvironment=NEW=1\n")
        self.write(MODULES, b"nvidia-uvm\n")
        if self.path("/opt/ollama/current").is_symlink():
            self.link("/opt/ollama/previous", str(self.path("/opt/ollama/current").readlink()))
        self.link("/opt/ollama/current", "releases/0.18.0")
        for call in ("daemon-reload", "enable ollama.service", "restart ollama.service"):
            self.systemctl(*call.split())

    def reboot(self) -> None:
        """As after the power went: another boot id, nothing runs, an enabled server's start is queued."""
        self.write("/proc/sys/kernel/random/boot_id", b"boot-2\n")
        for name, word in (("active", "inactive"), ("timer", "inactive")):
            (self.fake / name).write_text(word)
        (self.fake / "running").unlink(missing_ok=True)
        self.systemctl("test", "boot")

    def start_queued(self) -> None:
        """What systemd does once our boot service has ended."""
        if (self.fake / "queued").exists():
            self.systemctl("test", "begin")
            (self.fake / "queued").unlink()
            (self.fake / "active").write_text("active")

    def copy_to(self, directory: Path) -> Host:
        shutil.copytree(self.directory, directory, symlinks=True)
        return Host(directory, self.shell, self.toolbox)


def empty_host(directory: Path, shell: tuple[str, ...], toolbox: str) -> Host:
    host = Host(directory, shell, toolbox)
    for path in (
        host.fake,
        directory / "bin",
        directory / "systemd",
        host.path(WANTS).parent,
        host.path("/opt"),
    ):
        path.mkdir(parents=True)
    (directory / "bin/wrapper").write_text(WRAPPER)
    (directory / "bin/wrapper").chmod(0o755)
    for name in (*TOOLS, "systemctl"):
        (directory / "bin" / name).symlink_to("wrapper")
    for name in ("systemctl", "sync"):
        (directory / "systemd" / name).symlink_to("../bin/wrapper")
    (host.fake / "systemctl.sh").write_text(SYSTEMCTL)
    host.write("/proc/sys/kernel/random/boot_id", b"boot-1\n")
    host.write("/etc/modules-load.d/other.conf", b"other\n")
    for name in ("active", "timer"):
        (host.fake / name).write_text("inactive")
    return host


def make_serving(host: Host) -> Host:
    """Has an enabled server that runs, with contents that a careless shell would change."""
    host.write(UNIT, b"[Service]\nExecStart=/usr/bin/ollama  serve\n\n\n", 0o664)
    host.write(DROP_IN, b'[Service]\nEnvironment="A= two  spaces \\" `x` $y"\nno newline at the end')
    host.link("/opt/ollama/current", "releases/0.17.5")
    host.link("/opt/ollama/previous", "releases/0.17.4-rc.1+cu12")
    for call in ("daemon-reload", "enable ollama.service", "restart ollama.service"):
        host.systemctl(*call.split())
    return host


# busybox sh has its own tools and looks for no others: there only systemctl and flock can be watched.
SHELLS = {
    "dash": (("dash",), ""),
    "dash and busybox": (("dash",), "busybox"),
    "busybox": (("busybox", "sh"), "busybox"),
}


@pytest.fixture(params=SHELLS)
def bare(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    need("busybox" if "busybox" in request.param else "dash")
    return empty_host(tmp_path / "host", *SHELLS[request.param])


@pytest.fixture
def serving(bare: Host) -> Host:
    return make_serving(bare)


WATCHED = pytest.mark.parametrize("bare", ["dash", "busybox"], indirect=True)


def killed_at_each_step(host: Host, directory: Path, *arguments: str) -> Iterator[Host]:
    """The host, once for each tool that the script calls, cut just before that call."""
    for kill_at in range(1, 1000):
        copy = host.copy_to(directory / f"killed-{kill_at}")
        done = copy.lease(*arguments, kill_at=kill_at)
        if done.returncode != -9:
            assert done.returncode == 0, done
            assert kill_at > 2, "the wrappers were not called"
            return
        yield copy
        shutil.rmtree(copy.directory)
    raise AssertionError("never ends")


def test_a_revert_gives_back_every_byte_mode_link_and_the_running_server(serving: Host) -> None:
    before = serving.seen()
    assert serving.says("take", *PATHS) == "taken"
    assert serving.fake_word("timer") == "active"
    serving.switch()
    assert serving.seen() != before
    assert serving.says("revert", 'a "cause" with \\ and\na newline') == "reverted to 0.17.5"
    assert serving.seen() == before
    assert serving.fake_word("timer") == "inactive"
    assert not serving.has_lease()
    (line,) = serving.journal()
    at = line.pop("at")
    assert len(at) == len("2026-11-22T23:59:59Z")
    assert line == {
        "who": "lease",
        "what": "revert",
        "result": "release 0.17.5 is current again",
        "cause": 'a "cause" with \\ and a newline',
    }


def test_what_was_absent_is_absent_again_with_its_directory_and_the_server_is_stopped(bare: Host) -> None:
    before = bare.seen()
    assert bare.says("take", *PATHS) == "taken"
    bare.switch()
    assert bare.says("revert", "verify failed") == "reverted to none"
    after = bare.seen()
    # The directory of `current` stays, empty.
    assert after.pop("opt/ollama")
    assert after == before
    assert bare.journal()[-1]["result"] == "what was here before the first release is back"


def test_a_link_that_is_saved_comes_back_as_a_link(serving: Host) -> None:
    serving.link(MODULES, "/dev/null")
    before = serving.seen()
    serving.says("take", *PATHS)
    serving.path(MODULES).unlink()
    serving.switch()
    serving.says("revert", "verify failed")
    assert serving.seen() == before


def test_a_directory_that_holds_something_else_by_now_stays(bare: Host) -> None:
    bare.says("take", *PATHS)
    bare.switch()
    mine = "/etc/systemd/system/ollama.service.d/mine.conf"
    bare.write(mine, b"[Service]\n")
    bare.says("revert", "verify failed")
    assert bare.path(mine).exists()
    assert not bare.path(DROP_IN).exists()


def test_a_server_that_was_stopped_and_disabled_is_so_again(serving: Host) -> None:
    serving.systemctl("stop", "ollama.service")
    serving.systemctl("disable", "ollama.service")
    before = serving.seen()
    serving.says("take", *PATHS)
    serving.switch()
    serving.says("revert", "verify failed")
    assert serving.seen() == before


def test_a_server_that_was_enabled_is_so_again(serving: Host) -> None:
    before = serving.seen()
    serving.says("take", *PATHS)
    serving.switch()
    serving.systemctl("disable", "ollama.service")
    serving.says("revert", "verify failed")
    assert serving.seen() == before


def test_a_second_take_keeps_what_the_cut_run_saved(serving: Host) -> None:
    before = serving.seen()
    serving.says("take", *PATHS)
    serving.switch()
    (serving.fake / "timer").write_text("inactive")
    assert serving.says("take", *PATHS) == "kept"
    assert serving.fake_word("timer") == "active"
    serving.says("revert", "verify failed")
    assert serving.seen() == before


def test_end_keeps_the_new_state_and_a_later_revert_finds_nothing(serving: Host) -> None:
    serving.says("take", *PATHS)
    serving.switch()
    new = serving.seen()
    assert serving.says("renew") == "renewed"
    assert serving.says("end") == "ended"
    assert serving.fake_word("timer") == "inactive"
    for command in (("end",), ("renew",), ("revert", "late"), ("expire",), ("boot",)):
        assert serving.says(*command) == "none"
    assert serving.seen() == new
    assert serving.fake_word("timer") == "inactive"


def test_a_lease_that_ran_out_goes_back(serving: Host) -> None:
    before = serving.seen()
    serving.says("take", *PATHS)
    serving.switch()
    assert serving.says("expire") == "reverted to 0.17.5"
    assert serving.seen() == before
    assert serving.journal()[-1]["cause"] == "the lease ran out"
    assert serving.path("/var/lib/ollama-fleet/lock").read_text() == ""


def test_a_line_that_a_crash_cut_short_does_not_spoil_the_next_one(serving: Host) -> None:
    serving.says("take", *PATHS)
    serving.write("/var/lib/ollama-fleet/journal.jsonl", b'{"at": "20')
    serving.says("expire")
    lines = serving.path("/var/lib/ollama-fleet/journal.jsonl").read_text().splitlines()
    assert lines[0] == '{"at": "20'
    assert json.loads(lines[1])["cause"] == "the lease ran out"


def test_a_lease_does_not_run_out_while_a_deploy_holds_the_lock(serving: Host) -> None:
    serving.says("take", *PATHS)
    serving.switch()
    new = serving.seen()
    (serving.fake / "timer").write_text("elapsed")
    lock = serving.path("/var/lib/ollama-fleet/lock")
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write("the deploy's name")
        held.flush()
        assert "holds the lock" in serving.says("expire")
        assert lock.read_text() == "the deploy's name"
    assert serving.seen() == new
    assert serving.has_lease()
    assert serving.fake_word("timer") == "active"


def test_after_another_boot_the_queued_start_gets_the_old_state(serving: Host) -> None:
    before = serving.seen()
    serving.says("take", *PATHS)
    serving.switch()
    serving.reboot()
    assert serving.says("boot") == "reverted to 0.17.5"
    assert ["systemctl", "restart", "ollama.service"] not in serving.calls()
    serving.start_queued()
    assert serving.seen() == before
    assert not serving.has_lease()
    assert serving.journal()[-1]["cause"] == "the host was started again before the lease had ended"


def test_after_another_boot_a_server_that_was_stopped_is_not_started_and_has_its_release_back(
    serving: Host,
) -> None:
    serving.systemctl("stop", "ollama.service")
    before = serving.seen()
    serving.says("take", *PATHS)
    serving.switch()
    serving.reboot()
    assert serving.says("boot") == "reverted to 0.17.5"
    serving.start_queued()
    assert serving.seen() == before
    assert not serving.has_lease()


def test_after_another_boot_a_server_that_was_not_there_is_not_started(bare: Host) -> None:
    before = bare.seen()
    bare.says("take", *PATHS)
    bare.switch()
    bare.reboot()
    bare.says("boot")
    bare.start_queued()
    after = bare.seen()
    assert after.pop("opt/ollama")
    assert after == before


def test_in_the_same_boot_the_boot_service_only_starts_the_timer(serving: Host) -> None:
    serving.says("take", *PATHS)
    serving.switch()
    new = serving.seen()
    (serving.fake / "timer").write_text("inactive")
    serving.says("boot")
    assert serving.seen() == new
    assert serving.fake_word("timer") == "active"


def test_an_old_server_that_does_not_start_is_told_and_its_lease_kept(serving: Host) -> None:
    before = serving.seen()
    serving.says("take", *PATHS)
    serving.switch()
    (serving.fake / "broken").touch()
    done = serving.lease("expire")
    assert done.returncode == 1
    assert "ollama.service does not start; the lease is kept" in done.stderr
    assert serving.has_lease()
    assert serving.path("/var/lib/ollama-fleet/lock").read_text() == ""
    assert serving.fake_word("timer") == "inactive", "it would be restarted over and over"
    assert serving.journal()[-1]["result"] == (
        "release 0.17.5 is current again, but ollama.service does not start"
    )
    (serving.fake / "broken").unlink()
    assert serving.says("expire") == "reverted to 0.17.5"
    assert serving.seen() == before


def test_a_file_that_cannot_be_written_changes_nothing_and_is_tried_again(serving: Host) -> None:
    before = serving.seen()
    serving.says("take", *PATHS)
    serving.switch()
    new = serving.seen()
    # A file that cannot be written, for root too.
    obstacle = serving.path(DROP_IN).with_name(".50-fleet.conf.lease")
    obstacle.mkdir()
    done = serving.lease("expire")
    assert done.returncode != 0
    assert serving.fake_word("timer") == "active"
    assert serving.has_lease()
    assert {**serving.seen(), **new} == serving.seen(), "something of the new state was touched"
    assert [path for path in serving.root.rglob("*.lease") if path.is_file()] == []
    obstacle.rmdir()
    serving.says("expire")
    assert serving.seen() == before


@WATCHED
def test_a_second_take_adds_what_was_not_saved_and_an_add_that_is_killed_is_as_if_it_never_was(
    serving: Host, tmp_path: Path
) -> None:
    manifest = "/usr/share/ollama/manifest"
    serving.write(manifest, b"old")
    before = serving.seen()
    serving.says("take", *PATHS)
    serving.switch()
    for host in killed_at_each_step(serving, tmp_path, "take", *PATHS, manifest):
        assert host.has_lease()
        host.says("take", *PATHS, manifest)
        host.write(manifest, b"new")
        assert host.says("revert", "why") == "reverted to 0.17.5"
        assert host.seen() == before


@pytest.mark.parametrize(
    ("bare", "again"),
    [("dash", "boot"), ("dash and busybox", "expire"), ("busybox", "revert"), ("busybox", "boot")],
    indirect=["bare"],
)
def test_a_revert_that_is_killed_at_any_step_ends_the_same_when_run_again(
    serving: Host, tmp_path: Path, again: str
) -> None:
    before = serving.seen()
    serving.says("take", *PATHS)
    serving.switch()
    if again == "boot":
        serving.reboot()
    commands = {"revert": ("revert", "why"), "expire": ("expire",), "boot": ("boot",)}
    for host in killed_at_each_step(serving, tmp_path, *commands[again]):
        assert host.has_lease() or host.journal(), "the lease was lost without a word"
        done = host.lease(*commands[again])
        assert done.returncode == 0, done
        host.start_queued()
        assert host.seen() == before
        assert not host.has_lease()
        assert host.journal()[-1]["result"] == "release 0.17.5 is current again"


@pytest.mark.parametrize(
    ("bare", "power"), [("dash", "fails"), ("busybox", "fails"), ("busybox", "stays")], indirect=["bare"]
)
def test_a_first_release_whose_revert_is_killed_at_any_step_leaves_nothing(
    bare: Host, tmp_path: Path, power: str
) -> None:
    before = bare.seen()
    bare.says("take", *PATHS)
    bare.switch()
    for host in killed_at_each_step(bare, tmp_path, "expire"):
        if power == "fails":
            host.reboot()
        done = host.lease("boot" if power == "fails" else "expire")
        assert done.returncode == 0, done
        host.start_queued()
        after = host.seen()
        assert after.pop("opt/ollama")
        assert after == before


@WATCHED
def test_a_take_that_is_killed_at_any_step_leaves_no_lease_or_a_whole_one(
    serving: Host, tmp_path: Path
) -> None:
    before = serving.seen()
    for host in killed_at_each_step(serving, tmp_path, "take", *PATHS):
        if host.has_lease():
            assert host.fake_word("timer") == "active"
        assert host.says("take", *PATHS) in {"taken", "kept"}
        host.switch()
        host.says("expire")
        assert host.seen() == before


@WATCHED
def test_an_end_that_is_killed_at_any_step_ends_old_or_new(serving: Host, tmp_path: Path) -> None:
    before = serving.seen()
    serving.says("take", *PATHS)
    serving.switch()
    new = serving.seen()
    for host in killed_at_each_step(serving, tmp_path, "end"):
        if host.has_lease():
            assert host.fake_word("timer") == "active"
            host.says("expire")
            assert host.seen() == before
        else:
            assert host.says("expire") == "none"
            assert host.seen() == new


@pytest.mark.parametrize("command", ["take", "expire"])
def test_everything_is_on_the_disk_before_its_rename_and_the_rename_before_anything_goes_on(
    tmp_path: Path, command: str
) -> None:
    host = make_serving(empty_host(tmp_path / "host", ("dash",), ""))
    if command == "expire":
        host.says("take", *PATHS)
        host.switch()
    assert host.lease(command, *PATHS, kill_at=0).returncode == 0
    calls = host.calls()
    renames = [(index, call[2], call[3]) for index, call in enumerate(calls) if call[:2] == ["mv", "-T"]]
    assert len(renames) == {"take": 1, "expire": 5}[command]
    for index, source, target in renames:
        synced_before = [path for call in calls[:index] if call[0] == "sync" for path in call[1:]]
        made_before = [call for call in calls[:index] if call[0] in {"cp", "ln"} and call[-1] == source]
        # A link is its name; the lease that is forgotten was whole since it was taken.
        if made_before and made_before[0][0] == "cp":
            assert source in synced_before
        directory = str(Path(target).parent)
        later = next(call for call in calls[index:] if call[0] == "systemctl" or call == ["sync", directory])
        assert later[0] == "sync"
    if command == "take":
        new = host.path("/var/lib/ollama-fleet/lease.new")
        synced = {path for call in calls[: renames[0][0]] if call[0] == "sync" for path in call[1:]}
        saved = {path.name for path in host.path("/var/lib/ollama-fleet/lease").iterdir()}
        assert {"current", "previous", "active", "enabled", "boot_id", "1.content"} <= saved
        assert {str(new), *(str(new / name) for name in saved)} <= synced


@pytest.mark.parametrize(
    "arguments", [(), ("forget",), ("revert",), ("take", "relative/path"), ("take", "/opt")]
)
def test_what_it_cannot_do_is_refused_and_leaves_no_lease(serving: Host, arguments: tuple[str, ...]) -> None:
    if arguments == ("revert",):
        serving.says("take", *PATHS)
    before = serving.seen()
    done = serving.lease(*arguments)
    assert done.returncode not in {0, -9}
    assert done.stderr
    assert serving.seen() == before
    assert serving.has_lease() == (arguments == ("revert",))
