"""One practice host: switched on and off, reached by SSH or from inside, cut off from the network."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from testbed.hosts_cgroup import cgroup_name, make_cgroup, processes_in_cgroup, remove_cgroup
from testbed.hosts_kinds import Kind
from testbed.hosts_machine import MachineRefused, find_tool, last_lines, tools_environment
from testbed.hosts_network import remove_link, set_link
from testbed.hosts_state import ProcessId, identify, is_alive

# Waits until it is written down, then keeps the host on: nspawn ends with 133 when the host wants to reboot
# (systemd-nspawn(1), --keep-unit). Whoever kills this shell switches the host off.
_LEADER = """
link=$1
shift
read -r _go || exit 1
exec </dev/null
while :; do
    setpriv --pdeathsig KILL "$@"
    [ "$?" -eq 133 ] || exit
    ip link delete "$link" 2>/dev/null
done
"""
START_SECONDS = 60.0
KEEP_UNIT = "--keep-unit"
_POLL_SECONDS = 0.02


class NotInTime(Exception):
    """A host did not come to the state that was waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a client needs to log in: its private key, the hosts' keys, and for OpenSSH a configuration."""

    key: Path
    known_hosts: Path
    config: Path


@dataclass(kw_only=True)
class Host:
    """A host of a fleet. `home` has its tree and its console's log; `remember` writes `leader` down."""

    name: str
    number: int
    kind: Kind
    address: str
    home: Path
    bridge: str
    access: Access
    remember: Callable[[], None]
    leader: ProcessId | None = None
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def user(self) -> str:
        """Who logs in; root can on every host."""
        return self.kind.trait.user

    @property
    def port(self) -> int:
        return 22

    @property
    def key(self) -> Path:
        return self.access.key

    @property
    def root(self) -> Path:
        """Its file system, seen from outside; also while it is off."""
        return self.home / "root"

    @property
    def console(self) -> Path:
        return self.home / "console.log"

    @property
    def link(self) -> str:
        """This machine's end of its network cable, a port of the bridge."""
        return f"vb-{self.name}"

    @property
    def is_running(self) -> bool:
        return is_alive(self.leader)

    def start(self) -> None:
        """Switch it on; `wait_for_ssh` or `wait_for_system` tell when it is there."""
        assert not self.is_running, f"{self.name} runs already"
        remove_link(self.link)
        # In a cgroup of its own: hosts in one would find each other's processes in their services.
        booted = Path("/run/systemd/system").exists()
        scope = f"--slice={cgroup_name(self.name)}.slice" if booted else KEEP_UNIT
        nspawn = ["systemd-nspawn", "--quiet", "--register=no", scope, f"--directory={self.root}"]
        nspawn += [f"--machine={self.name}", f"--network-bridge={self.bridge}", "--boot"]
        with self.console.open("ab") as log:
            self._process = process = subprocess.Popen(
                ["/bin/sh", "-c", _LEADER, "leader", self.link, *nspawn],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=tools_environment(),
                start_new_session=True,
            )
        assert process.stdin is not None
        with process.stdin:
            self.leader = identify(process.pid)
            self.remember()
            if scope == KEEP_UNIT:
                make_cgroup(self.name, process.pid)
            process.stdin.write(b"go\n")

    def kill9(self) -> None:
        """The power button: all processes of the host end at once. Its tree stays; `start` again."""
        end_host(self.name, self.leader)
        if self._process is not None:
            self._process.wait(START_SECONDS)
        self.leader = None
        self.remember()

    def reboot(self) -> None:
        """As its own `systemctl reboot` does it; returns when SSH answers after it."""
        before = self.boot_marker()
        with suppress(NotInTime):
            self.shell("systemctl reboot")
        deadline = time.monotonic() + START_SECONDS
        while self.init_pid() in (None, before):
            self._check(deadline, "did not reboot")
        self.wait_for_ssh(max(1.0, deadline - time.monotonic()))

    def boot_marker(self) -> int | None:
        """Another value after every start of the host."""
        return self.init_pid()

    def cut_link(self) -> None:
        """Pull the network cable."""
        set_link(self.link, "down")

    def mend_link(self) -> None:
        """Plug it in again."""
        set_link(self.link, "up")

    def shell(
        self, script: str, *arguments: str, stdin: str = "", timeout_seconds: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a script of `sh` as root inside, without the network. Raises NotInTime: the host is off."""
        pid = self.init_pid()
        if pid is None:
            raise NotInTime(f"{self.name} is off")
        inside = ["nsenter", f"--target={pid}", "--all", "--", "/bin/sh", "-c", script, "sh", *arguments]
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
        }
        nsenter = find_tool("nsenter")
        assert nsenter is not None, "apt install util-linux"
        return subprocess.run(
            [nsenter, *inside[1:]],
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=timeout_seconds,
            check=False,
        )

    def ssh(
        self, *command: str, user: str | None = None, timeout_seconds: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command by OpenSSH's client with nobody's own configuration; 255 is a failed connection."""
        return subprocess.run(
            [*self.ssh_argv(user), *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_seconds,
            check=False,
        )

    def ssh_argv(self, user: str | None = None) -> list[str]:
        """`ssh -F CONFIG -l USER NAME`, to which a command can be added."""
        return ["ssh", "-F", str(self.access.config), "-l", user or self.user, self.name]

    def wait_for_ssh(self, deadline_seconds: float = START_SECONDS) -> None:
        """Until somebody can log in. Raises NotInTime with the end of the console's log."""
        deadline = time.monotonic() + deadline_seconds
        # A packet that nobody answers is sent again a second later: better none before somebody listens.
        while not self._listens():
            self._check(deadline, "has no sshd that listens")
        while (done := self.ssh("true")).returncode != 0:
            self._check(deadline, f"does not let `ssh` in ({done.stderr.strip()})")

    def wait_for_system(self, deadline_seconds: float = START_SECONDS) -> str:
        """Until systemd has started everything; returns its word: `running` or `degraded`."""
        deadline = time.monotonic() + deadline_seconds
        while True:
            with suppress(NotInTime, subprocess.TimeoutExpired):
                said = self.shell("systemctl is-system-running", timeout_seconds=5).stdout.strip()
                if said in ("running", "degraded"):
                    return said
            self._check(deadline, "did not finish its start")

    def _check(self, deadline: float, what: str) -> None:
        """Wait a moment. Raises NotInTime when there is nothing left to wait for."""
        if not self.is_running:
            what, deadline = "ended", 0.0
        if time.monotonic() > deadline:
            log = self.console.read_text(errors="replace") if self.console.exists() else ""
            raise NotInTime(f"{self.name} {what}; its console: {last_lines(log)}")
        time.sleep(_POLL_SECONDS)

    def _listens(self) -> bool:
        """Whether its sshd does, as the kernel tells it: proc_pid_net(5), port 22 in the state LISTEN."""
        pid = self.init_pid()
        with suppress(OSError):
            for table in ("tcp", "tcp6") if pid is not None else ():
                for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                    _, local, _, state, *_ = line.split()
                    if local.endswith(":0016") and state == "0A":
                        return True
        return False

    def init_pid(self) -> int | None:
        """The host's process 1 as this machine numbers it; None while it is off."""
        if self.leader is None or not self.is_running:
            return None
        for process in _tree_of(self.leader):
            with suppress(OSError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                numbers = status.partition("NSpid:")[2].partition("\n")[0].split()
                if len(numbers) > 1 and numbers[-1] == "1":
                    return process.pid
        return None


def end_host(name: str, leader: ProcessId | None) -> None:
    """End all processes of a host, whoever started it, and remove what the kernel and nspawn keep for it."""
    if leader is not None and is_alive(leader):
        # First, since it would start the host again.
        os.kill(leader.pid, signal.SIGKILL)
    deadline = time.monotonic() + START_SECONDS
    while (left := processes_in_cgroup(name)) or is_alive(leader):
        if time.monotonic() > deadline:
            raise MachineRefused(sentence=f"the processes of `{name}` do not end", cause=f"pids {left}")
        # An old systemd outlives nspawn (seen with Debian 11's); with it all processes of the host end.
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)
    remove_cgroup(name)
    remove_link(f"vb-{name}")
    with suppress(OSError):
        Path("/run/systemd/nspawn/propagate", name).rmdir()


def _tree_of(leader: ProcessId) -> list[psutil.Process]:
    try:
        first = psutil.Process(leader.pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
