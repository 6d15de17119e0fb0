"""`python PROJECT task`: how Invoke's program behaves under our name, with three tasks of the test's own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 20

TASKS = '''
import os, signal
from invoke import task

@task
def hello(c, name="you", json=False):
    """Says hello."""
    print(name, json, os.getcwd())

@task(positional=["action"])
def testbed(c, action, port=0):
    """A fleet to practise on."""
    print(action, port)

@task(positional=["model"])
def render(c, model, plain=False):
    print(model, plain)

@task
def slow(c):
    print("started", flush=True)
    signal.pause()
'''


@pytest.fixture
def project(tmp_path: Path) -> Path:
    copy = tmp_path / "a project"
    for name in ("__main__.py", "deploy/errors.py", "console/version.py"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, copy / name)
    (copy / "tasks.py").write_text(TASKS)
    return copy


def run(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(project), *words],
        cwd=project.parent,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "myqwen2 False"),
        ("--plain", "myqwen2 True"),
        ("canary", "canary False"),
        ("--model canary", "canary False"),
        ("--plain --model=canary", "canary True"),
        ("-m canary", "canary False"),
    ],
)
def test_a_first_word_may_be_left_out_or_given_as_a_flag(project: Path, words: str, said: str) -> None:
    assert run(project, "render", *words.split()).stdout == f"{said}\n"


def test_a_task_runs_in_the_callers_directory(project: Path) -> None:
    assert run(project, "hello", "--name=it", "--json").stdout == f"it True {project.parent}\n"


def test_an_action_is_a_positional_word(project: Path) -> None:
    assert run(project, "testbed", "mirror", "--port", "1").stdout == "mirror 1\n"


@pytest.mark.parametrize("words", [["--list"], ["--help"], []])
def test_every_task_is_listed_with_its_first_line(project: Path, words: list[str]) -> None:
    done = run(project, *words)
    assert done.returncode == 0
    assert "testbed   A fleet to practise on." in done.stdout


@pytest.mark.parametrize("words", [["testbed", "--help"], ["testbed", "up", "-h"], ["--help", "testbed"]])
def test_help_of_a_task_is_given_wherever_the_flag_stands(project: Path, words: list[str]) -> None:
    done = run(project, *words)
    assert done.returncode == 0
    assert "--port" in done.stdout


@pytest.mark.parametrize(
    "words", [["tesbed"], ["hello", "--nam=x"], ["testbed"], ["testbed", "up", "--port=x"], ["--help", "x"]]
)
def test_a_word_that_means_nothing_is_a_usage_error(project: Path, words: list[str]) -> None:
    done = run(project, *words)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "\n\nhint: `./fleet --list`" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["--name", "a"], ["--name=a"], ["-n", "a"]])
def test_a_flag_that_is_given_twice_is_named_and_nothing_runs(project: Path, words: list[str]) -> None:
    done = run(project, "hello", *words, "--name", "b")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: `--name` was given twice\n")


def test_an_interrupted_task_ends_with_130(project: Path) -> None:
    command = [sys.executable, str(project), "slow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, err) == (130, "")


def test_the_version_is_the_one_of_the_project_file(project: Path) -> None:
    declared = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    assert run(project, "--version").stdout == f"ollama-fleet {declared}\n"
