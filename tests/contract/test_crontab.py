"""Our line in a crontab: the scripts themselves, under dash, bash and busybox, and what the line starts.

The crontab(1) here is scripted, with the manners of Debian's; tests/hosts/test_cron.py has real ones.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import psutil
import pytest

from deploy import commands
from deploy.crontab import cron_files, cron_line, line_mark
from deploy.desired import Desired, HostPaths
from deploy.facts import HostFacts
from deploy.probe import PROBE_SCRIPT, parse_reply
from tests.contract.shells import shell
from tests.unit.test_plan import DESIRED

__all__ = ["shell"]

# A table without a line end is refused, and one that is not there is no success.
CRONTAB = """#!/bin/sh
table=$(dirname "$0")/../table
if [ -e "$(dirname "$0")/../denied" ]; then
    echo 'You (ann) are not allowed to use this program (crontab)' >&2
    exit 1
fi
case $1 in
    -l) if [ -e "$table" ]; then cat "$table"; else echo 'no crontab for ann' >&2; exit 1; fi ;;
    -r) rm "$table" ;;
    -)
        cat >"$table.new"
        [ -z "$(tail -c 1 "$table.new")" ] || { echo 'missing newline before EOF' >&2; exit 1; }
        mv "$table.new" "$table"
        ;;
esac
"""
MARK = line_mark(PurePosixPath("/srv/one"))
OURS = f"*/5 * * * * /srv/one/health-cron # sha256 0123456789abcdef {MARK}"
OTHERS = (
    b"# m h  dom mon dow   command\n"
    b"MAILTO=ann\n"
    b"\n"
    b"  30 2 * * *\tbackup --to '/mnt/a b' \\ \\n $HOME `x` # 50\\% done  \n"
    b"*/5 * * * * /srv/one/one/health-cron # sha256 0123456789abcdef # ollama-fleet: /srv/one/one\n"
    b"*/5 * * * * /srv/one/health-cron # ours it was # ollama-fleet: /srv/one and more\n"
)
EVERY_BYTE = bytes(value for value in range(1, 256) if value != 0x0A) + b"\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Its `table` is the crontab; `bin` stands first on PATH."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/crontab"
    program.write_text(CRONTAB)
    program.chmod(0o755)
    return tmp_path


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "PATH": f"{home}/bin:{os.environ['PATH']}"}


def edit(
    shell: Sequence[str], home: Path, line: str, backup: Path | None = None
) -> subprocess.CompletedProcess[str]:
    argv = commands.edit_crontab(MARK, line, None if backup is None else PurePosixPath(backup))
    return subprocess.run(
        [*shell, *argv[1:]], env=environment(home), capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("before", [OTHERS, EVERY_BYTE, OTHERS + EVERY_BYTE + b"\t \n\n"])
def test_the_lines_of_others_are_kept_byte_for_byte(shell: Sequence[str], home: Path, before: bytes) -> None:
    table = home / "table"
    table.write_bytes(before)
    assert edit(shell, home, OURS).returncode == 0
    assert table.read_bytes() == before + OURS.encode() + b"\n"
    assert edit(shell, home, OURS).returncode == 0
    assert table.read_bytes() == before + OURS.encode() + b"\n"
    assert edit(shell, home, "").returncode == 0
    assert table.read_bytes() == before


def test_a_line_of_ours_is_replaced_where_it_stands_and_a_second_one_goes(
    shell: Sequence[str], home: Path
) -> None:
    (home / "table").write_text(f"# first\n#{OURS}\n# between\n{OURS}\nPATH=/x\n")
    other = OURS.replace("/5", "/10")
    assert edit(shell, home, other, home / "kept/backups/crontab.1").returncode == 0
    assert (home / "table").read_text() == f"# first\n{other}\n# between\nPATH=/x\n"
    assert (home / "kept/backups/crontab.1").read_text() == f"#{OURS}\n{OURS}\n"


def test_a_user_without_a_crontab_gets_one_and_has_none_in_the_end(shell: Sequence[str], home: Path) -> None:
    assert edit(shell, home, "").returncode == 0
    assert not (home / "table").exists()
    assert edit(shell, home, OURS).returncode == 0
    assert (home / "table").read_text() == f"{OURS}\n"
    assert edit(shell, home, "").returncode == 0
    assert not (home / "table").exists()


def test_a_table_without_a_line_end_gets_one(shell: Sequence[str], home: Path) -> None:
    (home / "table").write_text("# the last line")
    assert edit(shell, home, OURS).returncode == 0
    assert (home / "table").read_text() == f"# the last line\n{OURS}\n"


@pytest.mark.parametrize("said", ["", "# the first half"])
def test_nothing_is_written_over_a_table_that_could_not_be_read(
    shell: Sequence[str], home: Path, said: str
) -> None:
    (home / "table").write_bytes(OTHERS)
    broken = CRONTAB.replace('cat "$table";', f"printf %s '{said}'; echo 'Input/output error' >&2; exit 1;")
    (home / "bin/crontab").write_text(broken)
    done = edit(shell, home, OURS)
    assert done.returncode != 0
    assert done.stderr == "Input/output error\n"
    assert (home / "table").read_bytes() == OTHERS


def test_a_user_who_may_have_no_crontab_is_told_so(shell: Sequence[str], home: Path) -> None:
    (home / "denied").touch()
    done = edit(shell, home, OURS)
    assert (done.returncode, done.stderr.count("not allowed")) == (1, 1)


# ---- what the probe sees


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[None]:
    """A process whose name is that of a cron daemon."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    program = tmp_path / "crond"
    shutil.copy(sleep, program)
    with subprocess.Popen([program, "600"]) as process:
        yield
        process.kill()


def probe(shell: Sequence[str], home: Path, root: PurePosixPath) -> HostFacts:
    argv = commands.probe(root, root / "models", 1)
    done = subprocess.run(
        [*shell, *argv[1:]],
        input=PROBE_SCRIPT.read_bytes(),
        env=environment(home),
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    return parse_reply(done.stdout, root)


@pytest.mark.usefixtures("daemon")
def test_the_probe_tells_the_daemon_and_our_lines_and_none_of_the_others(
    shell: Sequence[str], home: Path
) -> None:
    tabbed = f"#\t{OURS}"
    (home / "table").write_bytes(OTHERS + OURS.encode() + b"\n" + tabbed.encode() + b"\n")
    cron = probe(shell, home, PurePosixPath("/srv/one")).cron
    assert cron is not None
    assert cron.daemon in ("cron", "crond")
    assert not cron.is_refused
    assert cron.lines == (OURS, tabbed)
    (home / "table").unlink()
    cron = probe(shell, home, PurePosixPath("/srv/one")).cron
    assert cron is not None
    assert (cron.is_refused, cron.lines) == (False, ())
    (home / "denied").touch()
    cron = probe(shell, home, PurePosixPath("/srv/one")).cron
    assert cron is not None
    assert cron.is_refused


def test_the_probe_tells_the_files_that_cron_needs(shell: Sequence[str], home: Path) -> None:
    root = PurePosixPath(home / "a root")
    paths = HostPaths(root=root, models_dir=root / "models")
    for path in (paths.health_program, paths.cron_program, paths.health / "config.json", paths.addresses):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(path.name)
        Path(path).chmod(0o600)
    found = probe(shell, home, root)
    assert found.tools["crontab"] == str(home / "bin/crontab")
    assert found.systemd is None
    assert found.cron is not None
    texts = {path: fact.text for path, fact in found.cron.files.items()}
    assert texts == {
        str(path): path.name
        for path in (paths.health_program, paths.cron_program, paths.health / "config.json")
    }
    assert found.cron.addresses is not None
    assert found.cron.addresses.mode == "600"


# ---- what the line starts


def test_the_script_of_a_host_is_a_good_script(tmp_path: Path) -> None:
    """`./fleet check` reads scripts, and this one is a template."""
    _, program = cron_files(host_at(tmp_path / "it's a root"), 5)
    # The environment's own, else the system's: `.ci/run`.
    found = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found is not None
    checked = [found, "--shell=sh", "--severity=style", "-"]
    done = subprocess.run(checked, input=program.text, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.returncode == 0


def host_at(root: Path) -> Desired:
    place = PurePosixPath(root)
    return replace(DESIRED, paths=HostPaths(root=place, models_dir=place / "models"))


def start_as_cron(
    desired: Desired, program: str, *, shell: Sequence[str], deadline_seconds: int = 720
) -> subprocess.CompletedProcess[str]:
    """The line's own command with this health program, as cron(8) gives it to a shell.

    With busybox's own tools for its own shell: its timeout(1) is another one.
    """
    _, cron_program = cron_files(desired, 5)
    texts = {desired.paths.health_program: program, cron_program.path: cron_program.text}
    for path, text in texts.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        first, _, rest = text.partition("\n")
        # Whatever `sh` is on this machine, it is this one that runs the script.
        with_shell = f"#!{shutil.which(shell[0])}{' sh' if len(shell) > 1 else ''}"
        assert first == "#!/bin/sh"
        Path(path).write_text(f"{with_shell}\n{rest}".replace("timeout 720 ", f"timeout {deadline_seconds} "))
        Path(path).chmod(0o755)
    tools = Path(desired.paths.root, "tools")
    tools.mkdir()
    for name in ("date", "mkdir", "mv", "setsid", "sleep", "timeout", "wc") if len(shell) > 1 else ():
        (tools / name).symlink_to(str(shutil.which("busybox")))
    return subprocess.run(
        ["/bin/sh", "-c", cron_line(desired, 5).split(" ", 5)[5]],
        env={"PATH": f"{tools}:/usr/bin:/bin", "HOME": "/", "SHELL": "/bin/sh"},
        capture_output=True,
        text=True,
        check=False,
    )


def told(desired: Desired, word: str) -> str:
    """The log, once it has this word."""
    deadline = time.monotonic() + 20
    while True:
        log = Path(desired.paths.cron_log)
        text = log.read_text() if log.exists() else ""
        if word in text:
            return text
        assert time.monotonic() < deadline, text
        time.sleep(0.02)


def test_a_run_says_everything_to_the_log_and_nothing_to_cron(shell: Sequence[str], tmp_path: Path) -> None:
    desired = host_at(tmp_path / "it's a root")
    says = '#!/bin/sh\necho "$# words: $*"\necho "$PATH" >&2\nnice\necho over\n'
    done = start_as_cron(desired, says, shell=shell)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    log = told(desired, "over")
    root = desired.paths.root
    assert f"8 words: run h1 {root} {root}/models 127.0.0.1:5000 process none MyQwen2" in log
    assert "/usr/bin:/bin:/usr/local/sbin:/usr/local/bin:" in log
    assert "\n10\n" in log
    assert "the last run was" not in log
    assert Path(desired.paths.cron_log).stat().st_mode & 0o777 == 0o600


def test_a_run_tells_that_others_were_missed_and_a_long_log_is_moved_away(
    shell: Sequence[str], tmp_path: Path
) -> None:
    desired = host_at(tmp_path)
    log, last = Path(desired.paths.cron_log), Path(desired.paths.health / "last.json")
    for path in (log, last):
        path.parent.mkdir(parents=True)
        path.write_text("x" * 300_000)
    old = time.time() - 7200
    os.utime(last, (old, old))
    start_as_cron(desired, "#!/bin/sh\necho over\n", shell=shell)
    text = told(desired, "over")
    assert "the last run was 120 min ago; cron makes up for none that was missed" in text
    assert log.with_name("health.log.1").stat().st_size == 300_000


def test_what_outlives_the_deadline_is_ended_with_all_its_children(
    shell: Sequence[str], tmp_path: Path
) -> None:
    desired = host_at(tmp_path)
    # Neither the program nor its child listens to SIGTERM; whatever fails here, they end after a minute.
    waits = "for _ in 1 2 3 4 5 6; do sleep 10; done"
    hangs = (
        f"#!/bin/sh\ntrap '' TERM\nsh -c 'trap \"\" TERM; {waits}' &\n"
        f'echo "$$ $!" >{tmp_path}/pids\nwait "$!"\n{waits}\n'
    )
    start_as_cron(desired, hangs, shell=shell, deadline_seconds=1)
    told(desired, "ended: not done within 720 s")
    pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < deadline, f"{pids} live on"
        time.sleep(0.05)


def test_a_run_that_is_under_way_is_waited_for(shell: Sequence[str], tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    argv = commands.wait_for_run(PurePosixPath(lock), 20)
    assert subprocess.run([*shell, *argv[1:]], check=False).returncode == 0
    with subprocess.Popen(["flock", str(lock), "cat"], stdin=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        held = ["flock", "-n", str(lock), "true"]
        deadline = time.monotonic() + 10
        while subprocess.run(held, check=False).returncode == 0:
            assert time.monotonic() < deadline
        with subprocess.Popen([*shell, *argv[1:]]) as waiting:
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(1.5)
            holder.stdin.close()
            assert waiting.wait(10) == 0
        holder.send_signal(signal.SIGTERM)
