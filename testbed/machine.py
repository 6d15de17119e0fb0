"""One machine with a kernel of its own, emulated: what containers cannot show, power cuts above all.

Its disk is a layer of its own over the image. `kill9` is a power cut: the pages that the guest has not
written yet are lost with qemu, and so is what its disk was not told to flush, since qemu keeps until then
where the layer's new blocks are. What was flushed is in this machine's page cache, which stays.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from testbed.hosts_host import Access, NotInTime
from testbed.hosts_machine import Tell, call, last_lines, tools_environment
from testbed.hosts_state import write_file
from testbed.machine_image import Image, find_image

START_SECONDS = 180.0
"""For a start on a machine that is busy otherwise; alone it takes a tenth of that."""
MEMORY_MIB = 1024
_PROBE_SECONDS = 10.0
_END_SECONDS = 20.0
_POLL_SECONDS = 0.2
# No device that is not needed: each costs the start of the guest time.
_QEMU = "qemu-system-x86_64 -nodefaults -no-user-config -no-reboot -display none".split()
_KERNEL = "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 mitigations=off cryptomgr.notests"


@dataclass(kw_only=True)
class Machine:
    """`home` has its disk and its console's log. It ends with the process that started it."""

    name: str
    home: Path
    image: Image
    port: int
    accelerator: tuple[str, ...]
    user: str = "root"
    address: str = "127.0.0.1"
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def access(self) -> Access:
        return Access(
            key=self.image.login_key,
            known_hosts=self.home / "known_hosts",
            config=self.home / "ssh_config",
        )

    @property
    def key(self) -> Path:
        return self.access.key

    @property
    def console(self) -> Path:
        return self.home / "console.log"

    @property
    def disk(self) -> Path:
        """The layer with all that it has written."""
        return self.home / "disk.qcow2"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Switch it on; `wait_for_ssh` tells when it is there."""
        assert not self.is_running, f"{self.name} runs already"
        # `unsafe` leaves out one thing: to sync this machine's page cache, which outlives qemu, after a flush
        # of the guest. The flush itself is obeyed: qemu writes down where the layer's blocks are.
        disk = f"file={self.disk},format=qcow2,if=virtio,cache=unsafe"
        network = f"user,id=network,restrict=off,hostfwd=tcp:{self.address}:{self.port}-:22"
        argv = [*_QEMU, *self.accelerator, "-m", str(MEMORY_MIB)]
        argv += ["-kernel", str(self.image.kernel), "-initrd", str(self.image.initrd), "-append", _KERNEL]
        argv += ["-drive", disk, "-device", "virtio-rng-pci"]
        argv += ["-netdev", network, "-device", "virtio-net-pci,netdev=network,romfile="]
        argv += ["-chardev", f"file,id=console,path={self.console},append=on", "-serial", "chardev:console"]
        with self.console.open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=tools_environment(),
                start_new_session=True,
            )

    def kill9(self) -> None:
        """A power cut. The disk stays; `start` again."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_END_SECONDS)
            self._process = None

    def down(self) -> None:
        """It and its disk are gone."""
        self.kill9()
        self.disk.unlink(missing_ok=True)

    def shell(
        self, script: str, *arguments: str, stdin: str = "", timeout_seconds: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a script of `sh` as root, by SSH. Raises NotInTime: the machine does not answer."""
        done = self._ssh("root", ["sh", "-c", script, "sh", *arguments], stdin, timeout_seconds)
        if done.returncode == 255:
            raise NotInTime(f"{self.name} does not let `ssh` in ({done.stderr.strip()})")
        return done

    def ssh(
        self, *command: str, user: str | None = None, timeout_seconds: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command by OpenSSH's client with nobody's own configuration; 255 is a failed connection."""
        return self._ssh(user or self.user, command, "", timeout_seconds)

    def ssh_argv(self, user: str | None = None) -> list[str]:
        """`ssh -F CONFIG -l USER NAME`, to which a command can be added."""
        return ["ssh", "-F", str(self.access.config), "-l", user or self.user, self.name]

    def wait_for_ssh(self, deadline_seconds: float = START_SECONDS) -> None:
        """Until somebody can log in. Raises NotInTime with the end of the console's log."""
        deadline = time.monotonic() + deadline_seconds
        while True:
            with suppress(subprocess.TimeoutExpired):
                done = self.ssh("true", timeout_seconds=max(1.0, deadline - time.monotonic()))
                if done.returncode == 0:
                    return
            what = "does not let `ssh` in"
            if not self.is_running:
                what, deadline = "ended", 0.0
            if time.monotonic() > deadline:
                log = self.console.read_text(errors="replace") if self.console.exists() else ""
                raise NotInTime(f"{self.name} {what}; its console: {last_lines(log)}")
            time.sleep(_POLL_SECONDS)

    def _ssh(
        self, user: str, command: list[str] | tuple[str, ...], stdin: str, timeout_seconds: float
    ) -> subprocess.CompletedProcess[str]:
        words = list(command) if user != "root" else [shlex.join(command)]
        return subprocess.run(
            [*self.ssh_argv(user), *words],
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_seconds,
            check=False,
        )


def make_machine(name: str, home: Path, tell: Tell) -> Machine:
    """A machine with a fresh disk, off; `home` is made. Raises MachineRefused."""
    image = find_image(tell)
    home.mkdir(parents=True, exist_ok=True)
    machine = Machine(
        name=name, home=home, image=image, port=_free_port(), accelerator=choose_accelerator(tell)
    )
    machine.disk.unlink(missing_ok=True)
    call(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(image.disk), str(machine.disk)])
    access = machine.access
    write_file(access.known_hosts, f"[{machine.address}]:{machine.port} {image.host_key}\n")
    # One connection a user: a handshake takes a second in there. It ends with the machine.
    write_file(
        access.config,
        f"Host {name}\n"
        f"  HostName {machine.address}\n"
        f"  Port {machine.port}\n"
        f"  IdentityFile {access.key}\n"
        f"  UserKnownHostsFile {access.known_hosts}\n"
        "  GlobalKnownHostsFile /dev/null\n"
        "  IdentitiesOnly yes\n"
        "  StrictHostKeyChecking yes\n"
        "  BatchMode yes\n"
        "  ConnectTimeout 30\n"
        "  LogLevel ERROR\n"
        "  ControlMaster auto\n"
        "  ControlPersist 60\n"
        f"  ControlPath {home}/%r\n",
    )
    return machine


def choose_accelerator(tell: Tell, device: Path = Path("/dev/kvm")) -> tuple[str, ...]:
    """KVM's options where a guest really runs with it, else those of emulation.

    `/dev/kvm` may be there and its guests still end at once (seen: an MSR that the outer machine refuses), so
    it is tried: a guest that waits for its monitor's word, and is told to quit.
    """
    kvm = ("-accel", "kvm", "-cpu", "host")
    emulated = ("-accel", "tcg,thread=multi", "-cpu", "max")
    if not os.access(device, os.R_OK | os.W_OK):
        return emulated
    with suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            [*_QEMU, *kvm, "-m", "64", "-monitor", "stdio"],
            input="quit\n",
            capture_output=True,
            text=True,
            env=tools_environment(),
            timeout=_PROBE_SECONDS,
            check=False,
        )
        if done.returncode == 0:
            return kvm
        tell(f"KVM is there and runs no guest ({last_lines(done.stderr).splitlines()[-1]}): emulating")
    return emulated


def _free_port() -> int:
    """One that nobody listens on at this moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
