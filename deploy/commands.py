"""Every command that is run on a host, as a pure argument vector.

A script is a constant; what varies reaches it as `"$1"`, `"$2"`, so that no value is ever quoted by hand.
Each script is POSIX sh and ends non-zero at the first command that fails.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

Argv = tuple[str, ...]

_START_PROCESS = r"""
set -eu
umask 022
log=$1
shift
mkdir -p "$(dirname "$log")"
# Here and not in the background, where nobody would hear that the disk is full.
: >>"$log"
# A session of its own: no signal of the caller's terminal reaches it.
setsid "$@" </dev/null >>"$log" 2>&1 &
echo "$!"
"""

# `mv -T` (GNU and busybox) is rename(2): without it `current`, a link to a directory, would be moved into.
# The directory is synced too: a rename is durable only then. `sync FILE` is coreutils >= 8.24;
# plain `sync` is what every other system has.
_SWITCH_CURRENT = r"""
set -eu
current=$1 target=$2
directory=$(dirname "$current")
mkdir -p "$directory"
temporary=$directory/.current-$$
rm -f "$directory"/.current-*
ln -s "$target" "$temporary"
mv -T "$temporary" "$current"
sync "$directory" 2>/dev/null || sync
"""

WRONG_SHA256 = "wrong sha256"

_PLACE_BLOB = r"""
set -eu
source=$1 blobs=$2 hex=$3
blob=$blobs/sha256-$hex
sum() { sha256sum "$1" | cut -d ' ' -f 1; }
if [ -f "$blob" ]; then
    # Nothing ever verifies a blob of the store, and a present one is never replaced by the server.
    [ "$(sum "$blob")" = "$hex" ] && { echo present; exit 0; }
    rm -f "$blob"
fi
[ "$(sum "$source")" = "$hex" ] || { echo "$source: wrong sha256" >&2; exit 65; }
mkdir -p "$blobs"
temporary=$blobs/.place-$$
rm -f "$blobs"/.place-*
if ln "$source" "$temporary" 2>/dev/null; then how=linked; else cp "$source" "$temporary"; how=copied; fi
chmod 0644 "$temporary"
sync "$temporary" 2>/dev/null || sync
mv -T "$temporary" "$blob"
sync "$blobs" 2>/dev/null || sync
echo "$how"
"""

# Holds the lock until its standard input ends or stays silent for a minute; then it is free by itself.
_HOLD_LOCK = r"""
set -eu
lock=$1 owner=$2
exec 2>&1
mkdir -p "$(dirname "$lock")"
exec 9>>"$lock"
if ! flock -n 9; then
    echo "held $(head -n 1 "$lock" 2>/dev/null)"
    exit 0
fi
# On a full disk the name is lost, not the lock: `remove` must be able to make room.
printf '%s\n' "$owner" 2>/dev/null >"$lock" || :
echo locked
while timeout 60 sh -c 'IFS= read -r line' 9>&-; do :; done
: >"$lock"
"""

_REMOVE = r"""
set -eu
for path in "$@"; do
    [ -d "$path" ] && [ ! -L "$path" ] && chmod -R u+w "$path"
    rm -rf "$path"
done
"""

_REMOVE_EMPTY = r"""
for path in "$@"; do rmdir "$path" 2>/dev/null; done
exit 0
"""


def shell(script: str, *arguments: str) -> Argv:
    """A constant script with its arguments as `"$1"`..."""
    return ("sh", "-c", script, "fleet", *arguments)


def render_command(argv: Sequence[str]) -> str:
    """One line that a POSIX shell reads as exactly this argument vector: the only quoting there is."""
    return shlex.join(argv)


def shown_command(argv: Sequence[str]) -> str:
    """For an error's sentence. A script is long: its arguments stand for it."""
    if len(argv) > 2 and argv[1] == "-c":
        return f"{argv[0]} -c ... {render_command(argv[3:6])}"
    return render_command(argv)


def probe(root: PurePosixPath, models_dir: PurePosixPath, port: int, gpu: str = "none") -> Argv:
    """Reads `probe.sh` from standard input; with `gpu` "nvidia" it asks `nvidia-smi`."""
    return ("sh", "-s", "--", str(root), str(models_dir), str(port), gpu)


def start_process(log: PurePosixPath, environment: Mapping[str, str], argv: Sequence[str]) -> Argv:
    """Starts a command with exactly this environment; prints its pid.

    The script has that environment already: the process is known by its mark from its first moment on, not
    only once it has become the command.
    """
    settings = [f"{name}={value}" for name, value in sorted(environment.items())]
    return ("env", *settings, *shell(_START_PROCESS, str(log), "env", "-i", *settings, *argv))


def switch_current(current: PurePosixPath, release: PurePosixPath) -> Argv:
    """Points `current` at a release by rename(2)."""
    return shell(_SWITCH_CURRENT, str(current), f"releases/{release.name}")


def place_blob(source: PurePosixPath, models_dir: PurePosixPath, sha256: str) -> Argv:
    """Puts a verified file into the store by hard link; prints `present`, `linked` or `copied`."""
    return shell(_PLACE_BLOB, str(source), str(models_dir / "blobs"), sha256)


def hold_lock(lock: PurePosixPath, owner: str) -> Argv:
    """Prints `locked`, or `held OWNER` and ends."""
    return shell(_HOLD_LOCK, str(lock), owner)


def remove(paths: Sequence[PurePosixPath | str]) -> Argv:
    """Removes files and directories; absent ones are no error."""
    return shell(_REMOVE, *map(str, paths))


def remove_empty(paths: Sequence[PurePosixPath]) -> Argv:
    """Removes those of the directories that are empty."""
    return shell(_REMOVE_EMPTY, *map(str, paths))


def tail(path: PurePosixPath, lines: int) -> Argv:
    """The last lines of a file."""
    return ("tail", "-n", str(lines), str(path))
