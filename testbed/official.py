"""A host as Ollama's own installer leaves it, for tests of adoption.

Held to scripts/install.sh of v0.17.5; that of v0.24.0 sets up the service alike. What it downloads comes with
the command; what it does to the host is done in its order. Left out: drivers, JetPack, WSL, macOS.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass

ROOTS_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""PATH of root in Debian. The installer writes its own PATH into the unit, whatever it is."""
UNIT_FILE = "etc/systemd/system/ollama.service"

# scripts/install.sh, configure_systemd; docs/linux.mdx has the same with /usr/bin and multi-user.target.
_UNIT = """[Unit]
Description=Ollama Service
After=network-online.target

[Service]
ExecStart={bindir}/ollama serve
User=ollama
Group=ollama
Restart=always
RestartSec=3
Environment="PATH={path}"

[Install]
WantedBy=default.target
"""

_SCRIPT = r"""
set -eu
umask 022
root=$1 libraries=$2
available() { command -v "$1" >/dev/null; }
rm -rf "$root/${libraries:?}"
tar -xf - -C "$root"
if ! id ollama >/dev/null 2>&1; then
    useradd -r -s /bin/false -U -m -d /usr/share/ollama ollama
fi
for group in render video; do
    if getent group "$group" >/dev/null 2>&1; then usermod -a -G "$group" ollama; fi
done
usermod -a -G ollama "$(whoami)"
available systemctl || exit 0
case $(systemctl is-system-running || true) in
running | degraded)
    systemctl daemon-reload
    systemctl enable ollama
    systemctl restart ollama
    ;;
*) echo 'systemd is not running' >&2 ;;
esac
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialInstall:
    """What makes a host look officially installed: `argv`, run as root on it, with `archive` on its stdin."""

    argv: tuple[str, ...]
    archive: bytes
    files: Mapping[str, tuple[bytes, int]]
    """Content and mode by path relative to the root: what is in `archive`."""


def official_install(
    binary: bytes,
    *,
    libraries: Mapping[str, bytes] | None = None,
    path: str = ROOTS_PATH,
    root: str = "/",
) -> OfficialInstall:
    """Put `binary` (simulated or real) onto a host as the installer does, its service enabled and started.

    `libraries` is what lies in lib/ollama, by name; a README where none are given. `path` is the PATH the
    installer ran with: it decides between /usr/local and /usr, and stands in the unit. Models go where the
    server puts them by default, below /usr/share/ollama, the home of its user. `root` is another root for the
    files alone; users and services are always the host's. Raises ValueError for a PATH without a directory
    the installer would take.
    """
    bindir = _choose_bindir(path)
    prefix = bindir.removesuffix("/bin").removeprefix("/")
    files = {f"{prefix}/bin/ollama".removeprefix("/"): (binary, 0o755)}
    directory = f"{prefix}/lib/ollama".removeprefix("/")
    for name, content in (libraries or {"README": b"GPU libraries would lie here.\n"}).items():
        files[f"{directory}/{name}"] = (content, 0o644)
    files[UNIT_FILE] = (_UNIT.format(bindir=bindir, path=path).encode(), 0o644)
    return OfficialInstall(
        argv=("sh", "-c", _SCRIPT, "install", root, directory), archive=_pack(files), files=files
    )


def _choose_bindir(path: str) -> str:
    # As the installer does it: any PATH that holds these letters somewhere.
    for bindir in ("/usr/local/bin", "/usr/bin", "/bin"):
        if bindir in path:
            return bindir
    raise ValueError(f"the installer finds no directory for the binary in `{path}`")


def _pack(files: Mapping[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, (content, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
