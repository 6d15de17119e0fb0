"""How each tool is started for the eight tasks, at the fastest of its common settings."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.hosts import environment
from bench.peers.environment import REQUIREMENTS, pinned_versions
from console.paths import PROJECT
from deploy.errors import CommandFailed

TASKS = Path(__file__).with_name("tasks")
OURS, ANSIBLE, PYINFRA, FABRIC, OPENSSH = "ollama-fleet", "Ansible", "pyinfra", "bare Fabric", "plain OpenSSH"


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """What the tasks of every peer are filled in with; `*_file` and `archive` are paths of this machine."""

    names: Sequence[str]
    ssh_config: str
    known_hosts: str
    account: str
    home: str
    release: str
    current: str
    models_dir: str
    unit: str
    drop_in: str
    unit_file: str
    drop_in_file: str
    archive: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One way to do the eight tasks on all hosts; `run` does them and raises CommandFailed."""

    name: str
    run: Callable[[], None]


def make_tools(values: Values, inventory: Path, peers: Path, work: Path) -> tuple[Tool, ...]:
    """All of them, ours first, over the same hosts; `work` is a directory for what they write."""
    file = work / "values.json"
    file.write_text(json.dumps(asdict(values)))
    given = {**os.environ, "PEERS_VALUES": str(file), "LC_ALL": "C.UTF-8"}
    versions = pinned_versions(REQUIREMENTS.read_text())
    commands = {
        OURS: (_ours(inventory, len(values.names)), {**environment(), "FLEET_VENV": sys.prefix}),
        f"{ANSIBLE} {versions['ansible-core']}": (
            [
                *[str(peers / "bin/ansible-playbook"), "--inventory", ",".join(values.names) + ","],
                *["--forks", str(len(values.names)), "--extra-vars", f"@{file}", str(TASKS / "playbook.yml")],
            ],
            {**given, **_ansible_settings(values, work)},
        ),
        f"{PYINFRA} {versions['pyinfra']}": (
            [
                str(peers / "bin/pyinfra"),
                "-y",
                str(TASKS / "pyinfra_hosts.py"),
                str(TASKS / "pyinfra_deploy.py"),
            ],
            given,
        ),
        f"{FABRIC} {versions['fabric']}": (
            [str(peers / "bin/python"), str(TASKS / "fabric_deploy.py")],
            given,
        ),
    }
    tools = [
        Tool(name=name, run=_process(name, argv, settings, work))
        for name, (argv, settings) in commands.items()
    ]
    return (*tools, Tool(name=OPENSSH, run=lambda: _openssh(values)))


def close_connections(work: Path) -> None:
    """Those that Ansible has OpenSSH keep open: a first deploy finds none."""
    for socket in (work / "control").glob("*"):
        subprocess.run(
            ["ssh", "-O", "exit", "-o", f"ControlPath={socket}", "any"], capture_output=True, check=False
        )


def _ours(inventory: Path, hosts: int) -> list[str]:
    return [
        *[str(PROJECT / "fleet"), "deploy", "--yes", "--soak=0", "--forks", str(hosts)],
        *["--inventory", str(inventory)],
    ]


def _ansible_settings(values: Values, work: Path) -> Mapping[str, str]:
    options = "-o ControlMaster=auto -o ControlPersist=60s"
    return {
        "ANSIBLE_CONFIG": str(TASKS / "ansible.cfg"),
        "ANSIBLE_HOME": str(work / "ansible"),
        "ANSIBLE_SSH_ARGS": f"-F {shlex.quote(values.ssh_config)} {options}",
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(work / "control"),
    }


def _process(name: str, argv: Sequence[str], settings: Mapping[str, str], work: Path) -> Callable[[], None]:
    def run() -> None:
        done = subprocess.run(
            argv,
            env=settings,
            cwd=work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            said = f"{done.stdout}\n{done.stderr}".strip().splitlines()
            raise CommandFailed(sentence=f"`{name}` failed at the eight tasks", cause="\n".join(said[-30:]))

    return run


def _openssh(values: Values) -> None:
    """One process a host, all at once."""
    texts = [Path(file).read_text().rstrip("\n") for file in (values.unit_file, values.drop_in_file)]
    places = [values.release, values.current, values.models_dir, values.unit, values.drop_in]
    script = (TASKS / "openssh.sh").read_text()
    line = shlex.join(["sudo", "sh", "-c", script, "tasks", values.account, values.home, *places, *texts])
    processes = []
    for host in values.names:
        with Path(values.archive).open("rb") as archive:
            processes.append(
                subprocess.Popen(
                    ["ssh", "-F", values.ssh_config, host, line],
                    stdin=archive,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
    for process in processes:
        _, said = process.communicate()
        if process.returncode != 0:
            raise CommandFailed(sentence="`ssh` failed at the eight tasks", cause=said)
