"""One contract, two transports: this machine, and a real OpenSSH server on a loopback port.

argv literal, bytes exact in any number, exit codes, deadlines, processes, files, the lock, the way to a port.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import psutil
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy import commands
from deploy.desired import HostPaths
from deploy.errors import CommandFailed, HostLocked, HostUnreachable
from deploy.facts import ProcessId
from deploy.host_lock import host_lock
from deploy.journal import Journal, parse_entries, this_user
from deploy.local import LocalTransport
from deploy.transport import Transport
from tests.contract.sshd import running_sshd

PROJECT = Path(__file__).resolve().parents[2]
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@pytest.fixture(scope="module", params=["local", "ssh"])
def box(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transport]:
    if request.param == "local":
        yield LocalTransport("box")
        return
    with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
        transport = server.transport()
        yield transport
        transport.close()


@pytest.mark.fault(37)
@given(words=st.lists(TEXT, max_size=4))
@settings(max_examples=40)
def test_hostile_arguments_arrive_as_they_are(box: Transport, words: list[str]) -> None:
    done = box.run(commands.shell('for word in "$@"; do printf "%s\\0" "$word"; done', *words))
    assert done.stdout.decode() == "".join(f"{word}\0" for word in words)


@given(words=st.lists(TEXT, min_size=1, max_size=4))
@settings(max_examples=40)
def test_a_rendered_command_is_read_back_by_a_shell_as_the_same_words(words: list[str]) -> None:
    line = commands.render_command(["printf", "%s\\0", *words])
    assert subprocess.run(["sh", "-c", line], capture_output=True, check=True).stdout.decode() == "".join(
        f"{word}\0" for word in words
    )


def test_bytes_that_are_no_text_pass_both_ways_and_through_arguments(box: Transport) -> None:
    data = bytes(range(256)) * 20
    assert box.run(["cat"], stdin=data).stdout == data
    name = os.fsdecode(b"caf\xe9")
    assert box.run(["printf", "%s", name]).stdout == b"caf\xe9"


def test_fifty_megabytes_pass_both_ways_while_both_outputs_are_full(box: Transport) -> None:
    data = os.urandom(1_000_000) * 50
    done = box.run(["sh", "-c", "tee /dev/stderr"], stdin=data)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()
    assert hashlib.sha256(done.stderr).digest() == hashlib.sha256(data).digest()


def test_a_command_need_not_read_what_it_is_given(box: Transport) -> None:
    assert box.run(["true"], stdin=bytes(5_000_000)).exit_code == 0


def test_without_input_a_command_reads_an_end_at_once(box: Transport) -> None:
    assert box.run(["cat"], timeout_seconds=20).stdout == b""


def test_an_exit_code_is_a_value_and_its_last_words_are_kept(box: Transport) -> None:
    done = box.run(["sh", "-c", "echo out; echo why >&2; exit 7"])
    assert (done.exit_code, done.stdout, done.last_words) == (7, b"out\n", "why")


def test_a_command_that_was_killed_has_not_ended_well(box: Transport) -> None:
    assert box.run(["sh", "-c", "kill -9 $$"]).exit_code != 0


def test_a_command_that_does_not_end_is_given_up_and_ended_with_its_children(
    box: Transport, tmp_path: Path
) -> None:
    script = 'sleep 600 & echo "$!" >"$1"; sleep 600'
    started = time.monotonic()
    with pytest.raises(CommandFailed, match=r"did not end within 0\.5 s"):
        box.run(commands.shell(script, str(tmp_path / "pid")), timeout_seconds=0.5)
    # The child keeps the outputs open: waiting for their end would take as long as the child.
    assert time.monotonic() - started < 30
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_alive(pid))


def test_a_command_that_reads_nothing_is_given_up_too(box: Transport) -> None:
    with pytest.raises(CommandFailed, match=r"did not end within 0\.5 s"):
        box.run(["sleep", "60"], stdin=bytes(20_000_000), timeout_seconds=0.5)


def test_a_command_that_does_not_exist_is_an_error_with_a_cause(box: Transport) -> None:
    with pytest.raises(CommandFailed, match=r"`no-such-command-here --flag` could not be started") as failed:
        box.run(["no-such-command-here", "--flag"])
    assert "No such file" in str(failed.value.cause)


def test_many_commands_run_at_once(box: Transport) -> None:
    answers: dict[int, bytes] = {}

    def ask(number: int) -> None:
        answers[number] = box.run(["sh", "-c", 'cat; echo "$0"', str(number)], stdin=b"in ").stdout

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == {number: b"in %d\n" % number for number in range(8)}


# Processes: known by pid and start time, found without Python on the host.


def start(box: Transport, tmp_path: Path, program: str) -> ProcessId:
    log = PurePosixPath(tmp_path / "a log/x.log")
    done = box.run(commands.start_process(log, {"ONLY": "this $HOME"}, [sys.executable, "-c", program]))
    assert done.exit_code == 0, done.last_words
    pid = int(done.stdout)
    return ProcessId(pid=pid, create_time=psutil.Process(pid).create_time())


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        os.sched_yield()


def wait_for(log: Path, text: str) -> str:
    wait_until(lambda: log.exists() and text in log.read_text())
    return log.read_text()


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_started_process_has_exactly_its_environment_and_outlives_its_starter(
    box: Transport, tmp_path: Path
) -> None:
    program = (
        "import os, signal; print(dict(os.environ), os.getsid(0) == os.getpid(), flush=True); signal.pause()"
    )
    process = start(box, tmp_path, program)
    said = wait_for(tmp_path / "a log/x.log", "}")
    assert "'ONLY': 'this $HOME'" in said
    assert "PATH" not in said
    assert "True" in said
    assert box.is_running(process)
    box.stop(process, timeout_seconds=5)
    assert not box.is_running(process)
    box.stop(process, timeout_seconds=5)


def test_a_process_that_ignores_sigterm_is_killed_with_its_children(box: Transport, tmp_path: Path) -> None:
    child = "import time; time.sleep(600)"
    program = (
        "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}]);"
        "print('child', p.pid, flush=True); signal.pause()"
    )
    process = start(box, tmp_path, program)
    pid = int(wait_for(tmp_path / "a log/x.log", "child").split()[1])
    box.stop(process, timeout_seconds=0.2)
    assert not box.is_running(process)
    wait_until(lambda: not is_alive(pid))


def test_children_of_a_process_that_ends_at_once_are_ended_too(box: Transport, tmp_path: Path) -> None:
    child = "import time; time.sleep(600)"
    program = (
        "import signal, subprocess, sys;"
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}]);"
        "print('child', p.pid, flush=True); signal.pause()"
    )
    process = start(box, tmp_path, program)
    pid = int(wait_for(tmp_path / "a log/x.log", "child").split()[1])
    box.stop(process, timeout_seconds=5)
    wait_until(lambda: not is_alive(pid))


def test_a_later_process_with_the_same_pid_is_not_touched(box: Transport, tmp_path: Path) -> None:
    process = start(box, tmp_path, "import signal; signal.pause()")
    stale = ProcessId(pid=process.pid, create_time=process.create_time - 100)
    assert not box.is_running(stale)
    box.stop(stale, timeout_seconds=1)
    assert box.is_running(process)
    box.stop(process, timeout_seconds=5)
    assert not is_alive(process.pid)


def test_a_process_with_a_misleading_name_misleads_nobody(box: Transport, tmp_path: Path) -> None:
    bystander = start(box, tmp_path / "1", "import signal; signal.pause()")
    program = (
        "import signal, ctypes; ctypes.CDLL(None).prctl(15, b'x) S 1 1\\n7 (y'); "
        "print('named', flush=True); signal.pause()"
    )
    process = start(box, tmp_path / "2", program)
    wait_for(tmp_path / "2/a log/x.log", "named")
    assert box.is_running(process)
    box.stop(process, timeout_seconds=5)
    assert not box.is_running(process)
    assert box.is_running(bystander)
    box.stop(bystander, timeout_seconds=5)


def test_a_log_that_cannot_be_written_is_told_at_once(box: Transport, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    done = box.run(
        commands.start_process(PurePosixPath(tmp_path / "log"), {"PATH": "/bin:/usr/bin"}, ["true"])
    )
    assert done.exit_code != 0
    assert "log" in done.last_words


# Files.


def test_what_is_there_is_told_links_to_nowhere_too(box: Transport, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "a file $HOME").touch()
    names = {"link": True, "a file $HOME": True, "none": False, "": True}
    assert {name: box.exists(PurePosixPath(tmp_path / name)) for name in names} == names


def put(box: Transport, source: Path, target: Path) -> list[int]:
    told: list[int] = []
    box.put(source, PurePosixPath(target), on_progress=told.append)
    return told


def test_a_file_is_put_whole_with_its_progress_told(box: Transport, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "new directory/it's a $HOME"
    source.write_bytes(os.urandom(3_000_000))
    told = put(box, source, target)
    assert target.read_bytes() == source.read_bytes()
    assert told == sorted(told)
    assert told[-1] == 3_000_000
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_file_that_was_there_is_replaced(box: Transport, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"new")
    target.write_bytes(b"old and longer")
    put(box, source, target)
    assert target.read_bytes() == b"new"


def test_an_empty_file_is_put(box: Transport, tmp_path: Path) -> None:
    (tmp_path / "source").touch()
    put(box, tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b""


def test_a_file_that_cannot_be_written_is_a_designed_error(box: Transport, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x")
    (tmp_path / "file").touch()
    with pytest.raises(CommandFailed):
        put(box, tmp_path / "source", tmp_path / "file/target")


# The blob store and the switch: scripts that must do the same through either transport.


def test_a_blob_is_placed_only_with_the_right_sha256_and_replaces_a_damaged_one(
    box: Transport, tmp_path: Path
) -> None:
    source, models = tmp_path / "w.gguf", tmp_path / "models"
    source.write_bytes(b"GGUF good")
    good = hashlib.sha256(b"GGUF good").hexdigest()
    blob = models / f"blobs/sha256-{good}"

    def place(sha256: str) -> tuple[int, str]:
        done = box.run(commands.place_blob(PurePosixPath(source), PurePosixPath(models), sha256))
        return done.exit_code, done.stdout.decode().strip()

    assert place(good) == (0, "linked")
    assert blob.stat().st_ino == source.stat().st_ino
    assert place(good) == (0, "present")
    blob.unlink()
    blob.write_bytes(b"GGUF bad!")
    assert place(good) == (0, "linked")
    assert blob.read_bytes() == b"GGUF good"
    assert place("0" * 64)[0] == 65
    assert [path.name for path in (models / "blobs").iterdir()] == [blob.name]


def test_current_is_switched_by_rename(box: Transport, tmp_path: Path) -> None:
    paths = HostPaths(root=PurePosixPath(tmp_path), models_dir=PurePosixPath(tmp_path / "models"))
    before = None
    for version in ("1", "2", "adopted", "2"):
        Path(paths.release(version)).mkdir(parents=True, exist_ok=True)
        done = box.run(commands.switch_current(paths, version, before))
        assert done.exit_code == 0, done.last_words
        assert Path(paths.current).readlink().name == version
        assert os.path.lexists(paths.previous) == (before is not None)
        before = version
    assert Path(paths.previous).readlink() == Path("adopted")
    assert box.run(commands.switch_current(paths, None, None)).exit_code == 0
    assert [path.name for path in Path(tmp_path / "opt/ollama").iterdir()] == ["releases"]


# The way to a port of the host.


class _Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def echo_port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_a_port_of_the_host_is_reached_and_bytes_pass_both_ways(box: Transport, echo_port: int) -> None:
    data = os.urandom(5_000_000)
    with box.http_url(f"http://127.0.0.1:{echo_port}") as url, requests.Session() as session:
        session.trust_env = False
        assert session.post(f"{url}/echo", data=data, timeout=60).content == data
        assert session.post(f"{url}/echo", data=b"again", timeout=60).content == b"again"


def test_a_port_on_which_nobody_listens_refuses_and_may_be_tried_again(
    box: Transport, echo_port: int
) -> None:
    from testbed.demo import free_port

    with box.http_url(f"http://127.0.0.1:{free_port()}") as url, pytest.raises(requests.ConnectionError):
        requests.post(url, data=b"x", timeout=20)
    with box.http_url(f"http://127.0.0.1:{echo_port}") as url:
        assert requests.post(url, data=b"x", timeout=20).content == b"x"


# The lock.


def test_a_channel_gives_its_lines_and_ends_when_it_is_closed(box: Transport, tmp_path: Path) -> None:
    script = 'echo "$$" >"$1"; echo "it\'s $2"; while IFS= read -r line; do echo "got $line"; done'
    channel = box.open_channel(commands.shell(script, str(tmp_path / "pid"), "a $HOME"))
    assert channel.read_line(20) == "it's a $HOME"
    channel.write_line("one two")
    assert channel.read_line(20) == "got one two"
    with pytest.raises(HostUnreachable, match="did not answer"):
        channel.read_line(0.1)
    channel.close()
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_a_followed_command_gives_its_lines_and_ends_with_its_reader(box: Transport, tmp_path: Path) -> None:
    log = tmp_path / "a log"
    log.write_text("one\n\nthree\n")
    script = 'echo "$$" >"$1"; exec tail -n 9 -F "$2"'
    command = commands.shell(script, str(tmp_path / "pid"), str(log))
    channel = box.open_channel(commands.follow(command))
    assert [channel.read_line(20) for _ in range(3)] == [" one", " ", " three"]
    with log.open("a") as file:
        file.write("four\n")
    assert channel.read_line(20) == " four"
    pid = int((tmp_path / "pid").read_text())
    assert is_alive(pid)
    channel.close()
    wait_until(lambda: not is_alive(pid))


def test_a_followed_command_that_ends_ends_the_channel(box: Transport) -> None:
    channel = box.open_channel(commands.follow(commands.shell("echo out; echo err >&2; exit 3")))
    assert [channel.read_line(20) for _ in range(3)] == [" out", " err", ""]
    channel.close()


def test_a_line_of_shell_is_run_as_it_is(box: Transport) -> None:
    done = box.run(commands.run_line("""a='x  y'; echo "$a" "$#"; exit 7"""))
    assert (done.stdout, done.exit_code) == (b"x  y 0\n", 7)


def test_a_channel_whose_command_is_gone_says_so(box: Transport) -> None:
    channel = box.open_channel(["echo", "last words"])
    assert [channel.read_line(20), channel.read_line(20)] == ["last words", ""]

    def write() -> bool:
        try:
            channel.write_line("anybody?")
        except HostUnreachable:
            return True
        return False

    wait_until(write)
    channel.close()


def test_a_lock_is_held_by_one_and_names_its_owner(box: Transport, tmp_path: Path) -> None:
    lock = PurePosixPath(tmp_path / "state/lock")
    with host_lock(box, lock, "deploy"):
        owner = json.loads(Path(lock).read_text().splitlines()[0])
        assert (owner["pid"], owner["what"]) == (os.getpid(), "deploy")
        with pytest.raises(HostLocked, match=f"pid {os.getpid()}, deploy"), host_lock(box, lock, "other"):
            pass
    with host_lock(box, lock, "again"):
        pass
    assert Path(lock).read_text() == ""


HOLDER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import PurePosixPath
from deploy.host_lock import host_lock
from deploy.local import LocalTransport
from deploy.ssh import Rights, SshTransport
from deploy.ssh_connection import SshTarget
from deploy.sudo import SudoPassword
port = int(sys.argv[3])
target = SshTarget(host="box", address="127.0.0.1", port=port)
transport = SshTransport(target, Rights.LOGIN, SudoPassword()) if port else LocalTransport("box")
with host_lock(transport, PurePosixPath(sys.argv[2]), "deploy"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_killed_holder_frees_the_lock_by_itself(box: Transport, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    port = 0 if isinstance(box, LocalTransport) else box._target.port  # type: ignore[attr-defined]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(PROJECT), str(lock), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(HostLocked), host_lock(box, PurePosixPath(lock), "other"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()

    told: list[str] = []

    def events(event: str, host: str | None, **fields: Any) -> None:
        told.append(fields["text"])

    path = PurePosixPath(tmp_path / "journal.jsonl")
    journal = Journal(transport=box, path=path, what="other", events=events)

    def free() -> bool:
        try:
            with host_lock(box, PurePosixPath(lock), "other", journal):
                return True
        except HostLocked:
            return False

    wait_until(free)
    # Once: the one after it was released in good order.
    assert free()
    (note,) = told
    assert note.startswith(f"took over the lock of {this_user()} (pid {holder.pid}, deploy, since ")
    (entry,) = parse_entries(Path(path).read_text())
    assert entry["result"] == note
