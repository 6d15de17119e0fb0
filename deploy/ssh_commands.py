"""What a host needs to be told only where it is not this machine: files, processes, releases.

Constant POSIX scripts with their values as `"$1"`..., as in `deploy.commands`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import PurePosixPath

from deploy.commands import Argv, shell
from deploy.facts import ProcessId

CUT_STREAM = "the stream was cut"
WRONG_SIZE = "wrong size"

# What every value must survive: a login shell that reads it otherwise is found out before anything is done.
HOSTILE = 'it\'s "one" \\ `word` $HOME !x\t%s;*&|\n#'

_GREET = r"""
user=$(id -u)
printf '%s\n' "$1" "$user"
if [ "$2" = root ] && [ "$user" != 0 ] && sudo -k -n -- true </dev/null >/dev/null 2>&1; then echo sudo; fi
"""

_SIZE = r"""
if [ -f "$1" ]; then wc -c <"$1"; else echo 0; fi
"""

_EXISTS = r"""
if [ -e "$1" ] || [ -L "$1" ]; then echo yes; else echo no; fi
"""

_APPEND = r"""
set -eu
umask 022
mkdir -p "$(dirname "$1")"
# A part that is longer than what it is a part of belongs to something else.
[ "$2" -gt 0 ] || : >"$1"
# A disk that is full stays full with what did not fit. After a cut cat(1) reads the end, and ends well.
cat >>"$1" || { code=$?; [ "$code" -gt 128 ] || rm -f "$1"; exit "$code"; }
"""

_FINISH = r"""
set -eu
part=$1 target=$2 size=$3 sha256=$4
actual=$(($(wc -c <"$part")))
[ "$actual" -eq "$size" ] || { echo "wrong size: $actual of $size bytes" >&2; exit 65; }
# Only a file that came in pieces is read again: the connection itself proves every byte of one stream.
if [ -n "$sha256" ] && [ "$(sha256sum "$part" | cut -d ' ' -f 1)" != "$sha256" ]; then
    rm -f "$part"
    echo "wrong sha256" >&2
    exit 66
fi
chmod 0644 "$part"
sync "$part" 2>/dev/null || sync
mv -T "$part" "$target"
sync "$(dirname "$target")" 2>/dev/null || sync
"""

# The record is the last member: a stream that was cut between two members has none.
_RECEIVE_RELEASE = r"""
set -eu
umask 022
release=$1
parent=$(dirname "$release")
name=$(basename "$release")
temporary=$parent/.unpack-$name-$$
old=$parent/.unpack-old-$name-$$
mkdir -p "$parent"
trap 'rm -rf "$temporary" "$old"' EXIT
trap 'exit 1' HUP INT TERM PIPE
mkdir "$temporary"
tar -xf - -C "$temporary"
[ -f "$temporary/release.json" ] || { echo "the stream was cut" >&2; exit 65; }
find "$temporary" -type d -exec chmod 0755 {} +
find "$temporary" ! -type l -exec sync {} + 2>/dev/null || sync
# rename(2) does not replace a directory that is not empty. A running server keeps its open files.
if [ -e "$release" ]; then mv -T "$release" "$old"; fi
mv -T "$temporary" "$release"
sync "$parent" 2>/dev/null || sync
"""

# `grep -H` keeps the lines of a file together, whatever newlines and brackets a process has in its name.
_PROCESS_TABLE = r"""
table() { # PID PARENT STATE START of every process; START in ticks since boot: proc(5), /proc/pid/stat
    grep -Hs '' /proc/[0-9]*/stat | awk '
        { end = index($0, ":"); split(substr($0, 1, end - 1), part, "/")
          text[part[3]] = text[part[3]] " " substr($0, end + 1) }
        END { for (pid in text) { line = text[pid]; sub(/.*[)] /, "", line); split(line, field, " ")
              print pid, field[2], field[1], field[20] } }'
}
btime=$(sed -n 's/^btime //p' /proc/stat)
ticks=$(getconf CLK_TCK 2>/dev/null || echo 100)
family_of() { # PID CREATED: `pid:start` of exactly this process and of all below it
    table | awk -v root="$1" -v created="$2" -v btime="$btime" -v ticks="$ticks" '
        { parent[$1] = $2; state[$1] = $3; start[$1] = $4 }
        END {
            if (!(root in start) || state[root] == "Z") exit
            age = btime + start[root] / ticks - created
            if (age >= 2 || age <= -2) exit
            mine[root] = 1
            do { grew = 0
                for (pid in parent) if (!(pid in mine) && (parent[pid] in mine)) { mine[pid] = 1; grew = 1 }
            } while (grew)
            for (pid in mine) printf "%s:%s ", pid, start[pid]
        }'
}
left_of() { # FAMILY: the pids of those that still run
    table | awk -v family=" $1" '
        $3 != "Z" && index(family, " " $1 ":" $4 " ") { print $1 }'
}
"""

_IS_RUNNING = (
    _PROCESS_TABLE
    + r"""
[ -n "$(family_of "$1" "$2")" ] && echo yes || echo no
"""
)

# The children are known before their parent is gone: a runner outlives a killed server (measured on 0.17.5).
_STOP = (
    _PROCESS_TABLE
    + r"""
set -u
pid=$1 created=$2 rounds=$3
family=$(family_of "$pid" "$created")
[ -n "$family" ] || exit 0
kill -TERM "$pid" 2>/dev/null
while [ "$rounds" -gt 0 ] && left_of "$family" | grep -qx "$pid"; do
    rounds=$((rounds - 1))
    sleep 0.1
done
rounds=50
while left=$(left_of "$family") && [ -n "$left" ] && [ "$rounds" -gt 0 ]; do
    kill -KILL $left 2>/dev/null
    rounds=$((rounds - 1))
    sleep 0.1
done
exit 0
"""
)

# sudo may read the password or, with NOPASSWD, leave it: everything up to the mark is thrown away.
_AFTER_MARK = r"""
mark=$1
shift
while IFS= read -r line; do [ "$line" = "$mark" ] && exec "$@"; done
exit 1
"""


def greet(rights: str) -> Argv:
    """Prints `HOSTILE`, the user's number, and `sudo` where "root" is wanted and a password is not.

    The first tells whether the login shell reads commands as they are meant.
    """
    return shell(_GREET, HOSTILE, rights)


def size_of(path: PurePosixPath) -> Argv:
    """Prints the bytes of a file, 0 where there is none."""
    return shell(_SIZE, str(path))


def exists(path: PurePosixPath) -> Argv:
    """Prints `yes` or `no`; a link that leads nowhere exists."""
    return shell(_EXISTS, str(path))


def append(part: PurePosixPath, offset_bytes: int) -> Argv:
    """Appends standard input to a part; with offset 0 it begins anew."""
    return shell(_APPEND, str(part), str(offset_bytes))


def finish(part: PurePosixPath, target: PurePosixPath, size_bytes: int, sha256: str) -> Argv:
    """Gives a whole part its name by rename. `sha256` is empty or 64 hex digits that must agree."""
    return shell(_FINISH, str(part), str(target), str(size_bytes), sha256)


def receive_release(release: PurePosixPath) -> Argv:
    """Unpacks a checked plain tar from standard input into a release directory, which appears whole."""
    return shell(_RECEIVE_RELEASE, str(release))


def is_running(process: ProcessId) -> Argv:
    """Prints `yes` or `no`."""
    return shell(_IS_RUNNING, str(process.pid), repr(process.create_time))


def stop(process: ProcessId, timeout_seconds: float) -> Argv:
    """SIGTERM, after the timeout SIGKILL, to all below it too."""
    rounds = max(1, math.ceil(timeout_seconds * 10))
    return shell(_STOP, str(process.pid), repr(process.create_time), str(rounds))


def with_limit(argv: Sequence[str], seconds: float) -> Argv:
    """Ended on the host itself, children included, when nobody is there any more to end it: timeout(1)."""
    return ("timeout", "-k", "5", str(max(1, math.ceil(seconds))), *argv)


def sudo(argv: Sequence[str]) -> Argv:
    """As root, by NOPASSWD. `-k`: never by a password that somebody gave a moment ago."""
    return ("sudo", "-k", "-n", "--", *argv)


def sudo_with_password(argv: Sequence[str], mark: str) -> Argv:
    """As root; standard input must begin with the password's line and the mark's."""
    return ("sudo", "-k", "-S", "-p", "", "--", *shell(_AFTER_MARK, mark, *argv))


def check_sudo_password() -> Argv:
    """Standard input is the password's line and nothing more."""
    return ("sudo", "-k", "-S", "-p", "", "--", "true")
