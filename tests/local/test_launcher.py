"""`./fleet` as a person meets it, with a stub in place of Python and pip, so that nothing is downloaded."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest

PROJECT = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 20

# Answers the launcher's question, "makes" an environment with itself as its Python, notes what pip is asked.
STUB = """#!/bin/sh
case $1 in
-c) echo "${STUB_ANSWER:-3.12 pip}" ;;
-m) case $2 in
    venv) echo venv >>"$STUB_LOG"; mkdir -p "$3/bin" "$3/lib" && cp "$0" "$3/bin/python" ;;
    pip) for last; do :; done
        echo "pip ${last##*/}" >>"$STUB_LOG"
        [ -z "${PYTHONDONTWRITEBYTECODE:-}" ] || echo "no bytecode" >>"$STUB_LOG"
        case ${STUB_PIP:-} in
        fail) echo "WARNING: Retrying after connection broken by 'no route to host'"; exit 1 ;;
        conflict) echo "ERROR: No matching distribution found for invoke==2.2.1"; exit 1 ;;
        kill) kill -9 $PPID ;;
        wait) cat "$STUB_GATE" >/dev/null ;;
        esac ;;
    esac ;;
*) printf '%s\\n' "cwd=$PWD" "path=${PYTHONPATH:-}" "$@" ;;
esac
"""


def usable_shells() -> list[str]:
    return [name for name in ("sh", "dash", "bash", "busybox") if shutil.which(name)]


@dataclass
class Launcher:
    """A project with the real `fleet` and two small requirement files; `log` is what the stub was asked."""

    project: Path
    stub: Path
    log: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def fleet(self) -> Path:
        return self.project / "fleet"

    @property
    def built(self) -> Path:
        return self.project / ".venv" / "built-from"

    def start(
        self, *words: str, command: list[str] | None = None, cwd: Path | None = None, **more: str
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*(command or [str(self.fleet)]), *words],
            cwd=cwd,
            env={**os.environ, **self.environment, **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self, *words: str, command: list[str] | None = None, cwd: Path | None = None, **more: str
    ) -> subprocess.CompletedProcess[str]:
        process = self.start(*words, command=command, cwd=cwd, **more)
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def asked(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def require(self, text: str, which: str = "run") -> None:
        (self.project / "requirements" / f"{which}.txt").write_text(text)


@pytest.fixture
def launcher(tmp_path: Path) -> Launcher:
    project = tmp_path / "a project"
    (project / "requirements").mkdir(parents=True)
    shutil.copy(PROJECT / "fleet", project)
    stub = write_script(tmp_path / "stub python", STUB)
    log = tmp_path / "log"
    made = Launcher(project, stub, log, {"FLEET_PYTHON": str(stub), "STUB_LOG": str(log)})
    made.require("invoke==2.2.1\n")
    made.require("pytest==9.2.0\n", "test")
    return made


def write_script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_SECONDS} s for {what}"
        os.sched_yield()


# --- the way of every day


@pytest.mark.parametrize("shell", usable_shells())
def test_the_first_run_builds_the_environment_and_the_second_does_not(launcher: Launcher, shell: str) -> None:
    command = [shell, *(["sh"] if shell == "busybox" else []), str(launcher.fleet)]
    first = launcher.run("demo", "--keep", command=command)
    second = launcher.run("demo", "--keep", command=command)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert launcher.asked() == ["venv", "pip run.txt"]
    assert "building" in first.stderr
    assert second.stderr == ""
    assert first.stdout == second.stdout
    assert first.stdout.splitlines()[-3:] == [str(launcher.project), "demo", "--keep"]


def test_words_with_spaces_and_empty_words_arrive_as_they_were(launcher: Launcher) -> None:
    assert launcher.run("plan", "--limit", "a b", "", "$HOME").stdout.splitlines()[-4:] == [
        "--limit",
        "a b",
        "",
        "$HOME",
    ]


def test_it_works_from_another_directory_and_leaves_the_caller_there(
    launcher: Launcher, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    assert f"cwd={elsewhere}" in launcher.run("plan", cwd=elsewhere).stdout
    assert list(elsewhere.iterdir()) == []


def test_it_finds_its_project_through_relative_and_absolute_links(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "one").symlink_to("../a project/fleet")
    (tmp_path / "two").symlink_to(tmp_path / "bin" / "one")
    done = launcher.run("plan", command=["./two"], cwd=tmp_path)
    assert done.stdout.splitlines()[-2:] == [str(launcher.project), "plan"]


def test_it_runs_by_its_bare_name_in_its_own_directory(launcher: Launcher) -> None:
    done = launcher.run("plan", command=["sh", "fleet"], cwd=launcher.project)
    assert done.stdout.splitlines()[-2:] == [str(launcher.project), "plan"]


def test_the_callers_python_path_does_not_leak_in(launcher: Launcher) -> None:
    assert "path=\n" in launcher.run("plan", PYTHONPATH="/somewhere", PYTHONHOME="/nowhere").stdout


def test_a_setting_against_bytecode_does_not_make_every_start_slow(launcher: Launcher) -> None:
    launcher.run("plan", PYTHONDONTWRITEBYTECODE="1")
    assert launcher.asked() == ["venv", "pip run.txt"]


def test_the_environment_can_live_elsewhere(launcher: Launcher, tmp_path: Path) -> None:
    assert launcher.run("plan", cwd=tmp_path, FLEET_VENV="cache/env").returncode == 0
    assert (tmp_path / "cache" / "env" / "built-from" / "run.txt").exists()
    assert not (launcher.project / ".venv").exists()


# --- when it is built anew


def test_changed_requirements_build_it_from_scratch(launcher: Launcher) -> None:
    launcher.run("plan")
    (launcher.project / ".venv" / "lib" / "no_longer_required").touch()
    launcher.require("invoke==2.2.0\n")
    assert launcher.run("plan").returncode == 0
    assert launcher.asked() == ["venv", "pip run.txt"] * 2
    assert not (launcher.project / ".venv" / "lib" / "no_longer_required").exists()
    assert not (launcher.project / ".venv.old").exists()


@pytest.mark.parametrize("task", ["test", "check", "bench"])
def test_only_our_own_tasks_install_what_the_tests_need(launcher: Launcher, task: str) -> None:
    launcher.run("demo")
    assert launcher.asked() == ["venv", "pip run.txt"]
    launcher.run(task)
    launcher.run(task)
    assert launcher.asked() == ["venv", "pip run.txt", "pip test.txt"]


def test_changed_test_requirements_do_not_touch_a_person_who_only_deploys(launcher: Launcher) -> None:
    launcher.run("test")
    launcher.require("pytest==9.1.0\n", "test")
    launcher.run("deploy")
    assert launcher.asked() == ["venv", "pip run.txt", "pip test.txt"]
    launcher.run("test")
    assert launcher.asked() == ["venv", "pip run.txt", "pip test.txt", "pip test.txt"]


def test_another_python_builds_it_anew(launcher: Launcher, tmp_path: Path) -> None:
    launcher.run("plan")
    other = write_script(tmp_path / "other", STUB)
    launcher.run("plan", FLEET_PYTHON=str(other))
    assert launcher.asked() == ["venv", "pip run.txt"] * 2
    launcher.run("plan", FLEET_PYTHON="")
    assert launcher.asked() == ["venv", "pip run.txt"] * 2


def test_a_python_that_was_removed_builds_it_anew(launcher: Launcher) -> None:
    launcher.run("plan")
    (launcher.project / ".venv" / "bin" / "python").unlink()
    assert launcher.run("plan").returncode == 0
    assert launcher.asked() == ["venv", "pip run.txt"] * 2


@pytest.mark.parametrize("task", ["plan", "test"])
def test_a_killed_build_is_not_taken_for_whole(launcher: Launcher, task: str) -> None:
    assert launcher.run(task, STUB_PIP="kill").returncode == -9
    assert not (launcher.built / "run.txt").exists()
    assert launcher.run(task).returncode == 0
    assert launcher.asked()[:4] == ["venv", "pip run.txt"] * 2


def test_after_a_killed_rebuild_the_old_environment_is_still_put_back(launcher: Launcher) -> None:
    launcher.run("plan")
    launcher.require("invoke==2.2.0\n")
    assert launcher.run("plan", STUB_PIP="kill").returncode == -9
    assert launcher.run("plan", STUB_PIP="fail").returncode == 1
    assert {path.name for path in (launcher.project / ".venv").iterdir()} == {"bin", "lib", "built-from"}
    launcher.require("invoke==2.2.1\n")
    asked = launcher.asked()
    assert launcher.run("plan").returncode == 0
    assert launcher.asked() == asked


def test_test_packages_that_were_half_changed_are_installed_again(launcher: Launcher) -> None:
    launcher.run("test")
    launcher.require("pytest==9.1.0\n", "test")
    assert launcher.run("test", STUB_PIP="kill").returncode == -9
    launcher.require("pytest==9.2.0\n", "test")
    assert launcher.run("test").returncode == 0
    assert launcher.asked() == ["venv", "pip run.txt"] + ["pip test.txt"] * 3


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "gate"
    os.mkfifo(path)
    yield path
    # Whoever still waits there after a failure is let go.
    os.close(os.open(path, os.O_RDWR))


@pytest.mark.parametrize("locks", ["flock", "no flock"])
def test_two_at_once_build_it_once(launcher: Launcher, gate: Path, tmp_path: Path, locks: str) -> None:
    if locks == "no flock":
        launcher.environment["PATH"] = str(path_without_flock(tmp_path / "tools"))
    first = launcher.start("plan", STUB_PIP="wait", STUB_GATE=str(gate))
    until(lambda: "pip run.txt" in launcher.asked(), "the first to reach pip")
    second = launcher.start("plan")
    until(
        lambda: "waiting for another" in read_what_is_there(second.stderr), "the second to say that it waits"
    )
    os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))
    for process in (first, second):
        out, _ = process.communicate(timeout=DEADLINE_SECONDS)
        assert (process.returncode, out.splitlines()[-1]) == (0, "plan")
    assert launcher.asked() == ["venv", "pip run.txt"]


def read_what_is_there(pipe: IO[str] | None) -> str:
    """The start of what a process wrote; empty when it wrote nothing yet."""
    assert pipe is not None
    return os.read(pipe.fileno(), 4096).decode() if select.select([pipe], [], [], 0)[0] else ""


def path_without_flock(directory: Path) -> Path:
    directory.mkdir()
    # `kill` is built into every sh, and procps, which has the program, may be missing.
    tools = "cat cmp cp grep id ln mkdir mv readlink rm sed sh sleep tail".split()
    for tool in tools:
        found = shutil.which(tool)
        assert found, f"`{tool}` is needed by the launcher"
        (directory / tool).symlink_to(found)
    return directory


def test_the_lock_of_a_killed_builder_is_taken_over(launcher: Launcher, tmp_path: Path) -> None:
    launcher.environment["PATH"] = str(path_without_flock(tmp_path / "tools"))
    assert launcher.run("plan", STUB_PIP="kill").returncode == -9
    assert os.path.lexists(launcher.project / ".venv.holder")
    assert launcher.run("plan").returncode == 0
    assert not os.path.lexists(launcher.project / ".venv.holder")


# --- when it cannot


def test_a_python_that_is_too_old_is_named(launcher: Launcher) -> None:
    done = launcher.run("plan", STUB_ANSWER="3.10 pip")
    assert done.returncode == 1
    assert done.stderr == (
        f"error: `FLEET_PYTHON={launcher.stub}` is no Python >= 3.11\n"
        f"  caused by: `{launcher.stub}` is Python 3.10\n"
        "  left unchanged: everything\n"
        "\n"
        "hint: unset FLEET_PYTHON, or give the path of a newer one\n"
    )
    assert not (launcher.project / ".venv").exists()


@pytest.mark.parametrize(
    ("answer", "code"), [("3.11 pip", 0), ("3.9 pip", 1), ("2.7 pip", 1), ("4.0 pip", 0)]
)
def test_versions_are_compared_as_numbers(launcher: Launcher, answer: str, code: int) -> None:
    assert launcher.run("plan", STUB_ANSWER=answer).returncode == code


def test_a_python_without_ensurepip_names_the_package_to_install(launcher: Launcher, tmp_path: Path) -> None:
    write_script(tmp_path / "apt-get", "#!/bin/sh\n")
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = launcher.run("plan", STUB_ANSWER="3.13 nopip", PATH=path)
    assert done.returncode == 1
    assert "error: Python 3.13 cannot make an environment" in done.stderr
    assert re.search(r"^hint: (sudo )?apt install python3\.13-venv$", done.stderr, re.MULTILINE)


def test_a_shim_that_exists_but_fails_is_passed_over(launcher: Launcher, tmp_path: Path) -> None:
    shims = tmp_path / "shims"
    shims.mkdir()
    write_script(shims / "python3", "#!/bin/sh\necho 'pyenv: python3: command not found' >&2\nexit 127\n")
    write_script(shims / "python3.14", STUB)
    done = launcher.run("plan", FLEET_PYTHON="", PATH=f"{shims}:{os.environ['PATH']}")
    assert done.returncode == 0
    assert "pyenv" not in done.stderr
    assert launcher.asked() == ["venv", "pip run.txt"]


def test_no_answer_from_the_index_is_told_with_its_cause_and_leaves_the_old_environment(
    launcher: Launcher,
) -> None:
    launcher.run("plan")
    launcher.require("invoke==2.2.0\n")
    done = launcher.run("plan", STUB_PIP="fail")
    assert done.returncode == 1
    assert "error: the package index did not answer\n  caused by: WARNING: Retrying after" in done.stderr
    assert "left unchanged: everything" in done.stderr
    launcher.require("invoke==2.2.1\n")
    assert launcher.run("plan").returncode == 0
    assert launcher.asked() == ["venv", "pip run.txt"] * 2


def test_a_failed_first_build_leaves_nothing_but_its_log(launcher: Launcher) -> None:
    done = launcher.run("plan", STUB_PIP="conflict")
    assert done.returncode == 1
    assert "caused by: ERROR: No matching distribution found for invoke==2.2.1" in done.stderr
    assert not (launcher.project / ".venv").exists()
    assert "No matching distribution" in (launcher.project / ".venv.log").read_text()


def test_a_directory_that_fleet_did_not_make_is_never_replaced(launcher: Launcher, tmp_path: Path) -> None:
    theirs = tmp_path / "documents"
    theirs.mkdir()
    (theirs / "thesis").touch()
    done = launcher.run("plan", FLEET_VENV=str(theirs))
    assert done.returncode == 1
    assert f"error: `{theirs}` was not made by fleet" in done.stderr
    assert [path.name for path in theirs.iterdir()] == ["thesis"]


def test_a_place_that_cannot_be_written_is_named(launcher: Launcher, tmp_path: Path) -> None:
    # A file where a directory would have to be: it stops root as well.
    (tmp_path / "file").touch()
    done = launcher.run("plan", FLEET_VENV=str(tmp_path / "file" / "env"))
    assert done.returncode == 1
    assert f"error: `{tmp_path / 'file'}` is not writable" in done.stderr
    assert "hint: FLEET_VENV=" in done.stderr


# --- the requirements themselves


def names(lines: list[str]) -> set[str]:
    return {
        re.split(r"[ <>=!~;]", line)[0] for line in lines if line and not line.startswith(("#", "-", " "))
    }


def test_the_project_file_and_the_requirements_name_the_same_packages() -> None:
    declared = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    listed = (PROJECT / "requirements" / "run.in").read_text().splitlines()
    assert sorted(declared) == sorted(line for line in listed if line and not line.startswith("#"))


@pytest.mark.parametrize("which", ["run", "test"])
def test_every_requirement_is_locked_by_hash_and_by_nothing_of_one_machine(which: str) -> None:
    requirements = PROJECT / "requirements"
    locked = (requirements / f"{which}.txt").read_text()
    assert names((requirements / f"{which}.in").read_text().splitlines()) <= names(locked.splitlines())
    entries = re.split(r"\n(?! )", locked.strip())
    assert all(
        re.match(r"[a-z0-9.-]+==\S+( ; [^\\]+)?( \\\n +--hash=sha256:[0-9a-f]{64})+$", e) for e in entries
    )


def test_both_sets_agree_about_the_versions_they_share() -> None:
    requirements = PROJECT / "requirements"
    run, test = (
        dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", (requirements / name).read_text(), re.MULTILINE))
        for name in ("run.txt", "test.txt")
    )
    assert {name: run[name] for name in run.keys() & test.keys()} == {
        name: test[name] for name in run.keys() & test.keys()
    }
