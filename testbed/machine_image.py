"""The disk of an emulated machine: a practice host's tree with a kernel of its own, made once and kept."""

from __future__ import annotations

import hashlib
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from testbed.hosts_machine import CACHE, Tell, call, find_tool, locked, missing_parts
from testbed.hosts_tree import ALONE, Suite, base_path, find_base

PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mkfs.ext4": "e2fsprogs",
}
"""The tools and the Debian packages they are in, beside those of the practice hosts."""

DISK_BYTES = 3 * 1024**3
"""What the guest sees; on this machine the file is sparse."""

ADDRESS, GATEWAY = "10.0.2.15", "10.0.2.2"
"""The guest's own address, and under which it reaches the loopback of this machine: qemu's user network."""

# What a kernel needs before it has its root; the network's is loaded by systemd, from the disk.
_EARLY_MODULES = "virtio_pci virtio_blk ext4"
# Everything is emulated, twenty times slower than this machine: the initrd is small, nobody looks for
# devices, no module is loaded unasked, and a login is no session of logind's.
_INSTALL = f"""set -eu
mount -t proc proc /proc
apt-get update -q
apt-get install -q -y --no-install-recommends initramfs-tools
echo MODULES=list >/etc/initramfs-tools/conf.d/machine
printf '%s\\n' {_EARLY_MODULES} >>/etc/initramfs-tools/modules
apt-get install -q -y --no-install-recommends linux-image-cloud-amd64 e2fsprogs
echo virtio_net >/etc/modules-load.d/machine.conf
cat >/etc/systemd/system/machine-network.service <<'UNIT'
[Unit]
Description=Address of an emulated machine
DefaultDependencies=no
After=systemd-modules-load.service
Before=network.target ssh.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/ip address replace {ADDRESS}/24 dev eth0
ExecStart=/bin/ip link set eth0 up
ExecStart=/bin/ip route replace default via {GATEWAY}
[Install]
WantedBy=multi-user.target
UNIT
systemctl disable fleet-testbed-network.service
systemctl enable machine-network.service
systemctl mask systemd-udevd.service systemd-udevd-kernel.socket systemd-udevd-control.socket \\
    systemd-udev-trigger.service modprobe@.service serial-getty@.service systemd-logind.service \\
    user@.service sys-kernel-debug.mount sys-kernel-tracing.mount sys-fs-fuse-connections.mount \\
    dev-hugepages.mount dev-mqueue.mount
pam-auth-update --package --remove systemd
echo machine >/etc/hostname
printf '127.0.0.1 localhost\\n127.0.1.1 machine\\n' >/etc/hosts
tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
apt-get clean
rm -rf /var/lib/apt/lists/*
umount /proc
"""  # noqa: S608 - no SQL


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What a machine starts from; nothing of it is ever written to again."""

    directory: Path

    @property
    def disk(self) -> Path:
        return self.directory / "disk.raw"

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd.img"

    @property
    def login_key(self) -> Path:
        """The private key with which `root` and `admin` log in; only root can read it."""
        return self.directory / "id_ed25519"

    @property
    def host_key(self) -> str:
        """The public key of its sshd, `ssh-ed25519 AAAA...`."""
        return " ".join((self.directory / "host_key.pub").read_text().split()[:2])


def missing_machine_parts() -> tuple[str, ...]:
    """What an emulated machine needs and this one lacks, each as a phrase; empty when it can be tried."""
    missing = list(missing_parts())
    packages = sorted(package for tool, package in PACKAGES.items() if find_tool(tool) is None)
    if platform.machine() != "x86_64":
        missing.append(f"an amd64 processor, whose kernel it runs (this is {platform.machine()})")
    if packages:
        missing.append(f"Debian packages ({' '.join(packages)})")
    return tuple(missing)


def image_path() -> Path:
    """Named by everything it is made of, so that a changed recipe makes a new one."""
    recipe = "\n".join([base_path(Suite.BOOKWORM).name, _INSTALL, str(DISK_BYTES)])
    return CACHE / f"machine-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def find_image(tell: Tell) -> Image:
    """The image, made now if it is not there: half a minute and 450 MB beside the base tree.

    Two who want it at once wait for each other; what a killed run left is no image. Raises MachineRefused.
    """
    base = find_base(Suite.BOOKWORM, tell)
    directory = image_path()
    with locked(
        directory.with_name(f"{directory.name}.lock"),
        waiting=lambda: tell("another process makes the image of the emulated machine; waiting for it"),
    ):
        if not directory.exists():
            partial = directory.with_name(f"{directory.name}.new")
            shutil.rmtree(partial, ignore_errors=True)
            try:
                _make_image(base, partial, tell)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            partial.rename(directory)
    return Image(directory=directory)


def _make_image(base: Path, target: Path, tell: Tell) -> None:
    began = time.monotonic()
    tell("making the image of the emulated machine (once, half a minute)")
    target.mkdir(mode=0o700)
    tree = target / "tree"
    call(["cp", "-a", "--reflink=auto", str(base), str(tree)])
    # The base tree may be older than this machine's network.
    call(["cp", "--remove-destination", "/etc/resolv.conf", str(tree / "etc/resolv.conf")])
    call([*ALONE, "chroot", str(tree), "/bin/sh", "-s"], stdin=_INSTALL)
    for name in ("id_ed25519", "host_key"):
        call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "machine", "-f", str(target / name)])
    ssh = tree / "etc/ssh"
    shutil.copy(target / "id_ed25519.pub", ssh / "authorized_keys")
    (target / "host_key").rename(ssh / "ssh_host_ed25519_key")
    shutil.copy(target / "host_key.pub", ssh / "ssh_host_ed25519_key.pub")
    for name in ("vmlinuz", "initrd.img"):
        (made,) = (tree / "boot").glob(f"{name}-*")
        made.rename(target / name)
    disk = target / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(DISK_BYTES)
    call(["mkfs.ext4", "-q", "-F", "-d", str(tree), str(disk)])
    shutil.rmtree(tree)
    tell(f"the image of the emulated machine is made ({time.monotonic() - began:.0f} s)")
