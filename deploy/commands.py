"""Every command that is run on a host, as a pure argument vector.

A script is a constant; what varies reaches it as `"$1"`, `"$2"`, so that no value is ever quoted by hand.
Each script is POSIX sh and ends non-zero at the first command that fails.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from deploy.desired import ADOPTED, HostFile, HostPaths

Argv = tuple[str, ...]

LEASE = PurePosixPath("/usr/local/lib/ollama-fleet/lease")


# The mark is there before the server: a run that is cut after it has started one leaves it.
_PREPARE_PROCESS = r"""
set -eu
umask 022
mark=$1
shift
mkdir -p "$(dirname "$mark")" "$@"
: >"$mark"
"""

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
point() { # LINK TARGET: an empty target removes the link
    temporary=$directory/.$(basename "$1")-$$
    rm -f "$directory/.$(basename "$1")"-*
    if [ -n "$2" ]; then
        ln -s "$2" "$temporary"
        mv -T "$temporary" "$1"
    else
        rm -f "$1"
    fi
}
current=$1 target=$2 previous=$3 old=$4
directory=$(dirname "$current")
mkdir -p "$directory"
# The way back is known before the way is taken.
point "$previous" "$old"
sync "$directory" 2>/dev/null || sync
point "$current" "$target"
sync "$directory" 2>/dev/null || sync
"""

# Each file by rename; a backup of what was there goes first, where one is wanted. Standard input has the
# contents one after the other: dd(1) takes the bytes of one and not one more, which not every head(1) does.
# Each program that is started costs milliseconds, on every host: what the shell can do, it does.
# Systemd reads its units once, also when a file after them could not be written.
# All contents are there before the first file gets its name.
_WRITE_FILES = r"""
set -eu
umask 022
each() { # ACTION PATH MODE SIZE BACKUP ...: how many more come is `left`
    action=$1
    shift
    while [ "$#" -gt 0 ]; do
        path=$1 mode=$2 size=$3 backup=$4
        shift 4
        left=$#
        directory=${path%/*} name=${path##*/}
        temporary=$directory/.$name.fleet-$$
        "$action"
    done
}
receive() {
    if [ -n "$backup" ] && [ -e "$path" ]; then
        mkdir -p "${backup%/*}"
        cp -p "$path" "$backup"
        sync "$backup" 2>/dev/null || sync
    fi
    [ -d "$directory" ] || mkdir -p "$directory"
    for cut in "$directory/.$name".fleet-*; do [ ! -e "$cut" ] || rm -f "$cut"; done
    # While it comes it is nobody else's to read: it may be a secret.
    umask 077
    : >"$temporary"
    umask 022
    if [ "$left" -gt 0 ]; then
        dd ibs=1 obs=4096 count="$size" 2>/dev/null | cat >"$temporary"
    else
        cat >"$temporary"
    fi
    actual=$(($(wc -c <"$temporary")))
    [ "$actual" -eq "$size" ] || { echo "$path: $actual of $size bytes arrived" >&2; exit 65; }
    chmod "$mode" "$temporary"
    printf '%s\n' "$path"
}
place() {
    mv -T "$temporary" "$path"
    # Before the next one gets its name: their order holds on the disk too.
    sync "$directory" 2>/dev/null || sync
    printf '%s\n' "$path"
}
flush() { # PATH MODE SIZE BACKUP ...: the temporary files, by one sync(1)
    left=$#
    while [ "$left" -gt 0 ]; do
        temporary=${1%/*}/.${1##*/}.fleet-$$
        shift 4
        left=$((left - 4))
        set -- "$@" "$temporary"
    done
    sync "$@" 2>/dev/null || sync
}
discard() { rm -f "$temporary"; }
note_unit() { case $path in */systemd/system/*) units=yes ;; esac; }
# In a shell of its own, which ends with the first failure: this one tidies up, as on a full disk.
set +e
(
    set -e
    each receive "$@"
    flush "$@"
    each place "$@"
)
ended=$?
set -e
[ "$ended" -eq 0 ] || each discard "$@"
units=
each note_unit "$@"
[ -z "$units" ] || systemctl daemon-reload
exit "$ended"
"""

# systemd-sysusers is on every host that has systemd, and does nothing for what is there: sysusers.d(5).
_MAKE_ACCOUNT = r"""
set -eu
record=$1 name=$2 home=$3
shift 3
if ! id "$name" >/dev/null 2>&1; then
    # `remove` takes away an account that we made, and no other.
    mkdir -p "$(dirname "$record")"
    printf '%s\n' "$name" >"$record"
    systemd-sysusers --inline "u $name - \"Ollama\" $home"
fi
for group in "$@"; do systemd-sysusers --inline "m $name $group"; done
"""

# What an agent before it had unpacked goes with it, once nobody runs it. Prints why it does not start.
_START_AGENT = r"""
set -eu
umask 022
agent=$1 state=$2
mkdir -p "$state"
exec 9>>"$state/agent.lock"
! command -v flock >/dev/null 2>&1 || flock -w 240 9
for path in "$(dirname "$agent")"/*; do [ "$path" = "$agent" ] || rm -rf "$path"; done
rm -rf "$state/agent"
said=$(PEX_ROOT=$state/agent python3 "$agent" version 2>&1 </dev/null 9>&-) ||
    printf '%s\n' "$said" | tail -n 1
"""

# By links alone, systemd is not told: nothing that runs is changed. Told, it would read all units once more;
# or with `--no-reload` call all of them outdated, from 255 on. `SYSTEMD_OFFLINE`: systemd's ENVIRONMENT.md.
_ENABLE_UNITS = r"""
set -eu
SYSTEMD_OFFLINE=1 systemctl --quiet enable "$@"
units=/etc/systemd/system
sync "$units" "$units"/*.wants 2>/dev/null || sync
"""

_START_TIMER = rf"""
{_ENABLE_UNITS}systemctl restart "$1"
"""

# A model that is not there is no failure of the unit, which starts with the server: load.sh. Here it is one.
_LOAD_MODELS = r"""
set -eu
systemctl restart "$1"
[ "$(systemctl show --property=ExecMainStatus "$1")" = ExecMainStatus=0 ]
"""

_STOP_SCHEDULE = r"""
set -eu
systemctl --quiet disable --now ollama-fleet-health.timer
systemctl stop ollama-fleet-health.service
systemctl reset-failed ollama-fleet-health.service 2>/dev/null || :
for path in "$@"; do rm -rf "$path"; done
systemctl daemon-reload
"""

# A table is written as a whole, so it must have been read as a whole: what crontab(1) says where there is
# none yet ("no crontab for"; "No such file" of busybox) is told apart from every other failure. A file that
# ends without a line end is no table to Debian's: it gets one.
_EDIT_CRONTAB = r"""
set -eu
umask 077
export LC_ALL=C
mark=$1 wanted=$2 backup=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
there=yes
if ! crontab -l >"$work/old" 2>"$work/said" </dev/null; then
    case $(cat "$work/said") in
        *'no crontab for'* | *'No such file'*) there= ;;
        *) cat "$work/said" >&2; exit 1 ;;
    esac
fi
: >"$work/replaced"
while IFS= read -r line || [ -n "$line" ]; do
    case $line in
        *" $mark")
            printf '%s\n' "$line" >>"$work/replaced"
            [ -z "$wanted" ] || printf '%s\n' "$wanted"
            wanted=
            ;;
        *) printf '%s\n' "$line" ;;
    esac
done <"$work/old" >"$work/new"
[ -z "$wanted" ] || printf '%s\n' "$wanted" >>"$work/new"
if [ -n "$backup" ]; then
    mkdir -p "${backup%/*}"
    cp "$work/replaced" "$backup"
fi
if [ -s "$work/new" ]; then
    crontab - <"$work/new"
elif [ -n "$there" ]; then
    crontab -r
fi
"""

# As systemd does when a unit is stopped, but a run is waited for: it takes seconds, and ends at its deadline.
_WAIT_FOR_RUN = r"""
lock=$1 tries=$2
while [ -e "$lock" ] && [ "$tries" -gt 0 ] && ! flock -n "$lock" true; do
    tries=$((tries - 1))
    sleep 1
done
"""

_RESTART_UNIT = r"""
set -eu
umask 022
user=$1
shift
make_owned() { # DIRECTORY: with its parents, those that are absent; what is there keeps its owner
    [ -d "$1" ] && return
    make_owned "$(dirname "$1")"
    mkdir "$1"
    chown "$(id -u "$user"):$(id -g "$user")" "$1"
}
for directory in "$@"; do make_owned "$directory"; done
# The count of starts that failed begins anew.
systemctl reset-failed ollama.service 2>/dev/null || :
systemctl restart ollama.service
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
# The server sets the times of its blobs, which only their owner may (measured on 0.24.0).
mkdir -p "$blobs"
# A store may be a link to another disk: the link's own owner says nothing.
owner=$(stat -L -c %u:%g "$(dirname "$blobs")")
chown "$owner" "$blobs"
temporary=$blobs/.place-$$
rm -f "$blobs"/.place-*
# On a full disk: gigabytes that did not fit.
trap 'rm -f "$temporary"' EXIT
if ln "$source" "$temporary" 2>/dev/null; then how=linked; else cp "$source" "$temporary"; how=copied; fi
chmod 0644 "$temporary"
chown "$owner" "$temporary"
sync "$temporary" 2>/dev/null || sync
mv -T "$temporary" "$blob"
sync "$blobs" 2>/dev/null || sync
echo "$how"
"""

# Holds the lock until its standard input ends or stays silent for a minute; then it is free by itself.
# Every line but `done` is a sign of life. Only `done` clears the name: whoever finds one has taken over from
# somebody who died. The kernel's lock is on the file, not on its name: where `remove` has unlinked it since
# it was opened, it would lock nobody out. `test -ef` is POSIX.1-2024; dash, bash and busybox have it.
_HOLD_LOCK = r"""
set -eu
lock=$1 owner=$2 lease=$3
state=$(dirname "$lock")
exec 2>&1
tries=10
while :; do
    mkdir -p "$state"
    exec 9>>"$lock"
    if ! flock -n 9; then
        holder=$(sed -n 2p "$lock" 2>/dev/null || :)
        if [ -n "$holder" ] && [ "/proc/$holder/fd/9" -ef "$lock" ]; then
            # It took the lock as it started. In ticks since the boot, a hundred a second for every program:
            # a clock that was set meanwhile changes nothing. proc_pid_stat(5), after the name in brackets.
            started=$(sed 's/.*) //' "/proc/$holder/stat" | cut -d ' ' -f 20)
            read -r now _ </proc/uptime
            age=$((${now%%.*} - started / 100))
        else
            # Another account's holder cannot be looked at: by the file, written when the lock was taken.
            holder=-
            age=$(($(date +%s) - $(date -r "$lock" +%s 2>/dev/null || date +%s)))
        fi
        echo "held $age $holder $(head -n 1 "$lock" 2>/dev/null)"
        exit 0
    fi
    [ "$lock" -ef /proc/self/fd/9 ] && break
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || { echo "$lock is removed again and again"; exit 1; }
done
before=$(head -n 1 "$lock")
# On a full disk the name is lost, not the lock: `remove` must be able to make room.
printf '%s\n%s\n' "$owner" "$$" 2>/dev/null >"$lock" || :
echo "locked${before:+ after $before}"
exec 3<&0 </dev/null
reader=
trap 'kill "$reader" 2>/dev/null; exit 1' TERM
while :; do
    # Waited for in the background, or the trap would have to wait for a whole minute too.
    timeout 60 sh -c 'IFS= read -r line || exit 1; [ "$line" != done ] || exit 3' \
        <&3 >/dev/null 2>&1 3<&- 9>&- &
    reader=$!
    ended=0
    wait "$reader" || ended=$?
    [ "$ended" -eq 0 ] || break
    if [ -x "$lease" ] && [ -e "$state/lease" ]; then
        timeout 5 "$lease" renew </dev/null >/dev/null 2>&1 3<&- 9>&- || :
    fi
done
if [ "$ended" -eq 3 ]; then
    if [ "$lock" -ef /proc/self/fd/9 ]; then : >"$lock"; fi
    exit 0
fi
# The controller is gone: the lock is free now. Maybe it had unloaded a model, to verify its new settings: the
# host loads what it serves.
trap - TERM
exec 3<&- 9>&-
if timeout 2 systemctl is-active ollama.service >/dev/null 2>&1; then
    timeout 2 systemctl --no-ask-password --no-block start ollama-fleet-load.service >/dev/null 2>&1 || :
fi
"""

# One line at the end. One that a full disk or a crash cut short is ended first: it must not spoil the next.
_APPEND_ENTRY = r"""
set -eu
umask 022
journal=$1 entry=$2 limit=$3
mkdir -p "$(dirname "$journal")"
if [ -f "$journal" ]; then
    [ "$(wc -c <"$journal")" -le "$limit" ] || mv -f "$journal" "$journal.1"
fi
if [ -f "$journal" ] && [ -n "$(tail -c 1 "$journal")" ]; then echo >>"$journal"; fi
printf '%s\n' "$entry" >>"$journal"
sync "$journal" 2>/dev/null || sync
"""

_READ_ENTRIES = r"""
set -eu
journal=$1 lines=$2
set --
for file in "$journal.1" "$journal"; do
    if [ -e "$file" ]; then
        : <"$file"
        set -- "$@" "$file"
    fi
done
[ "$#" -eq 0 ] || cat "$@" | tail -n "$lines"
"""

# Every line with a blank before it: an empty one is the channel's end. The command ends with its reader, who
# cannot be asked but holds standard input.
_FOLLOW = r"""
{
    "$@" 3<&- &
    command=$!
    { cat >/dev/null; kill "$command" 2>/dev/null; } <&3 >/dev/null 2>&1 &
    wait "$command"
} 3<&0 </dev/null 2>&1 | while IFS= read -r line; do printf ' %s\n' "$line"; done
"""

# `Result` is forgotten when systemd starts the server again, three seconds later: then the journal tells,
# from where somebody stopped the server last. systemd's own starts count in NRestarts and say no "Stopping".
_MEMORY_KILL = r"""
unit=$1
result=$(systemctl show --property=Result "$unit")
restarts=$(systemctl show --property=NRestarts "$unit")
killed=no
if [ "$result" = Result=oom-kill ]; then
    killed=yes
elif [ "${restarts#NRestarts=}" != 0 ]; then
    said=$(journalctl _PID=1 UNIT="$unit" -b -n 40 --no-pager -q -o cat | sed -n \
        -e '/^Stopping /s/.*/stop/p' -e "/Failed with result 'oom-kill'/s/.*/kill/p")
    case $said in
        *kill) killed=yes ;;
    esac
fi
echo "killed=$killed"
systemctl show --property=MemoryMax "$unit"
"""

_RUN_LINE = r"""
exec sh -c "$1"
"""

# By rename; not synced, for a stamp that is lost or wrong only makes the probe read the program.
_STAMP_RELEASE = r"""
set -eu
umask 022
cd "$1"
trap 'rm -f .release.stamp' EXIT
stat -c '%i %z' bin/ollama >.release.stamp
mv -T .release.stamp release.stamp
"""

_REMOVE = r"""
set -eu
for path in "$@"; do
    [ -d "$path" ] && [ ! -L "$path" ] && chmod -R u+w "$path"
    rm -rf "$path"
done
"""

# df(1) before and after would count what others write meanwhile; a file that has another name frees nothing.
_LAST_NAMES = r"""
set -u
blocks=0
while read -r more; do blocks=$((blocks + more)); done <<END
$(find "$@" -type f -links 1 -exec stat -c %b {} + 2>/dev/null)
END
echo "$((blocks * 512))"
"""

# By the name of a leftover first: a release is there as a whole or not at all, however this is cut.
_REMOVE_RELEASE = r"""
set -eu
release=$1
directory=$(dirname "$release")
doomed=$directory/.unpack-$(basename "$release")-pruned
for path in "$doomed" "$release"; do
    [ "$path" = "$doomed" ] || mv -T "$path" "$doomed"
    [ ! -d "$doomed" ] || chmod -R u+w "$doomed"
    rm -rf "$doomed"
done
sync "$directory" 2>/dev/null || sync
"""

# What is half gone already is no obstacle: the same command again goes on. An adopted server is started anew
# without what we gave it, as it ran before us.
_REMOVE_UNITS = r"""
set -eu
adopted=$1 record=$2
shift 2
before='active enabled'
[ ! -s "$record" ] || before=$(cat "$record")
was_active=$(systemctl is-active ollama.service) || :
systemctl stop ollama-fleet-lease.timer 2>/dev/null || :
systemctl --quiet disable --now ollama-fleet-health.timer 2>/dev/null || :
systemctl stop ollama-fleet-health.service 2>/dev/null || :
systemctl --quiet clean --what=state ollama-fleet-health.timer 2>/dev/null || :
systemctl --quiet disable --now ollama-fleet-load.service ollama-fleet-boot.service 2>/dev/null || :
[ "$adopted" = yes ] || systemctl --quiet disable --now ollama.service 2>/dev/null || :
for path in "$@"; do
    rm -rf "$path"
    rmdir "$(dirname "$path")" 2>/dev/null || :
done
systemctl daemon-reload
systemctl reset-failed 'ollama*' 2>/dev/null || :
[ "$adopted" = yes ] || exit 0
case $before in *' disabled') systemctl --quiet disable ollama.service ;; esac
case $before in
    inactive*) systemctl stop ollama.service ;;
    *) [ "$was_active" != active ] || systemctl restart ollama.service ;;
esac
"""

_REMOVE_ACCOUNT = r"""
set -eu
name=$1 home=$2 record=$3
if id "$name" >/dev/null 2>&1; then userdel "$name"; fi
rm -rf "$home" "$record"
"""

_EXISTING = r"""
for path in "$@"; do
    if [ -e "$path" ] || [ -L "$path" ]; then printf '%s\n' "$path"; fi
done
"""

# What the health checks have left, and what time it is here. A history is large and says the same again and
# again: it travels packed where the host can.
_READ_KEPT_REPORTS = r"""
set -eu
directory=$1 runs=$2
refuse() { echo "$1" >&2; exit 1; }
[ ! -d "$directory" ] || [ -x "$directory" ] || refuse "$directory may not be entered"
for file in "$directory/last.json" "$directory/history.jsonl"; do
    [ ! -e "$file" ] || [ -r "$file" ] || refuse "$file may not be read"
done
{
    date +%s
    if [ -e "$directory/config.json" ]; then echo scheduled; else echo never; fi
    if [ -s "$directory/last.json" ]; then cat "$directory/last.json"; else echo; fi
    [ ! -e "$directory/history.jsonl" ] || tail -n "$runs" "$directory/history.jsonl"
} | if command -v gzip >/dev/null 2>&1; then gzip -c; else cat; fi
"""

_READ_IF_THERE = r"""
[ ! -e "$1" ] || cat "$1"
"""

_REMOVE_EMPTY = r"""
for path in "$@"; do rmdir "$path" 2>/dev/null; done
exit 0
"""

# Upwards, as `restart_unit` has made them.
_REMOVE_MADE = r"""
user=$1 directory=$2
while [ "$(stat -c %U "$directory" 2>/dev/null)" = "$user" ] && rmdir "$directory" 2>/dev/null; do
    directory=$(dirname "$directory")
done
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


def probe(
    root: PurePosixPath, models_dir: PurePosixPath, port: int, gpu: str = "none", service: str = "process"
) -> Argv:
    """Reads `probe.sh` from standard input; "nvidia" asks `nvidia-smi`, "systemd" asks systemd."""
    return ("sh", "-s", "--", str(root), str(models_dir), str(port), gpu, service)


def shell_from_input(*arguments: str) -> Argv:
    """A script that comes on standard input, with its arguments."""
    return ("sh", "-s", "--", *arguments)


def prepare_process(mark: PurePosixPath, directories: Sequence[PurePosixPath]) -> Argv:
    """Makes the directories that a server needs, and the mark of one that is not proven."""
    return shell(_PREPARE_PROCESS, str(mark), *map(str, directories))


def start_process(log: PurePosixPath, environment: Mapping[str, str], argv: Sequence[str]) -> Argv:
    """Starts a command with exactly this environment; prints its pid.

    The script has that environment already: the process is known by its mark from its first moment on, not
    only once it has become the command.
    """
    settings = [f"{name}={value}" for name, value in sorted(environment.items())]
    return ("env", *settings, *shell(_START_PROCESS, str(log), "env", "-i", *settings, *argv))


def switch_current(paths: HostPaths, release: str | None, previous: str | None) -> Argv:
    """Points `current` at a release and `previous` at the one before by rename(2); None removes the link.

    `ADOPTED`, which is no release of ours, is a link that leads nowhere.
    """

    def target(name: str | None) -> str:
        return "" if name is None else name if name == ADOPTED else f"releases/{name}"

    return shell(_SWITCH_CURRENT, str(paths.current), target(release), str(paths.previous), target(previous))


def write_files(files: Sequence[HostFile], backups: Sequence[PurePosixPath | None]) -> Argv:
    """Reads the contents, one after the other, from standard input; then each file gets its name by rename.

    Prints the path of each file that has arrived, then that of each file that was written, a line each;
    systemd has read its units when it ends.
    """
    arguments: list[str] = []
    for file, backup in zip(files, backups, strict=True):
        arguments += [str(file.path), file.mode, str(len(file.text.encode())), str(backup or "")]
    return shell(_WRITE_FILES, *arguments)


def make_account(record: PurePosixPath, name: str, home: str, groups: Sequence[str]) -> Argv:
    """A system account, and into these groups; `record` tells later that it was us who made it."""
    return shell(_MAKE_ACCOUNT, str(record), name, home, *groups)


def restart_unit(user: str, directories: Sequence[PurePosixPath | str]) -> Argv:
    """Starts `ollama.service` anew, with the directories that it needs."""
    return shell(_RESTART_UNIT, user, *map(str, directories))


def enable_units(names: Sequence[str]) -> Argv:
    """Has systemd start them at every boot, durably."""
    return shell(_ENABLE_UNITS, *names)


def disable_units(names: Sequence[str]) -> Argv:
    """Has systemd start them at no boot any more."""
    return ("systemctl", "--quiet", "disable", *names)


def load_models(unit: str) -> Argv:
    """Runs the unit that loads the models, anew; fails where it has not loaded all of them."""
    return shell(_LOAD_MODELS, unit)


def start_agent(agent: PurePosixPath, state: PurePosixPath) -> Argv:
    """Removes every other agent and starts this one; prints nothing, or why it does not start."""
    return shell(_START_AGENT, str(agent), str(state))


def start_timer(name: str) -> Argv:
    """Enabled, and started anew with what its file says now."""
    return shell(_START_TIMER, name)


def stop_schedule(paths: Sequence[PurePosixPath]) -> Argv:
    """Ends the timer of the health checks and a run that is under way; removes these files."""
    return shell(_STOP_SCHEDULE, *map(str, paths))


def edit_crontab(mark: str, line: str, backup: PurePosixPath | None = None) -> Argv:
    """Puts a line into the user's own crontab, in place of those that end with the mark; `""` takes them out.

    Every other line stays as it is. `backup` gets what was replaced.
    """
    return shell(_EDIT_CRONTAB, mark, line, str(backup or ""))


def wait_for_run(lock: PurePosixPath, tries: int) -> Argv:
    """Until no run of the health checks is under way, about so many seconds at most."""
    return shell(_WAIT_FOR_RUN, str(lock), str(tries))


def take_lease(program: PurePosixPath, files: Sequence[str]) -> Argv:
    """Saves what the host serves by, and starts the clock."""
    return (str(program), "take", *files)


def stamp_release(release: PurePosixPath) -> Argv:
    """Notes which file its program is, and when it was last touched, so that nobody needs to hash it again.

    The time is that of the last change of any kind, which no program can set: stat(2), `st_ctim`.
    """
    return shell(_STAMP_RELEASE, str(release))


def place_blob(source: PurePosixPath, models_dir: PurePosixPath, sha256: str) -> Argv:
    """Puts a verified file into the store by hard link; prints `present`, `linked` or `copied`."""
    return shell(_PLACE_BLOB, str(source), str(models_dir / "blobs"), sha256)


def hold_lock(lock: PurePosixPath, owner: str, lease: PurePosixPath = LEASE) -> Argv:
    """Prints `locked`, or `held SECONDS PID OWNER` and ends; PID is `-` where the holder is not known.

    `locked after OWNER` when that owner died without releasing it. Lines on standard input keep it, the line
    `done` releases it. While the host has a rollback lease (`lease` beside the lock), every line renews it.
    At any other end a server that systemd runs loads its models, if they are not.
    """
    return shell(_HOLD_LOCK, str(lock), owner, str(lease))


def remove(paths: Sequence[PurePosixPath | str]) -> Argv:
    """Removes files and directories; absent ones are no error."""
    return shell(_REMOVE, *map(str, paths))


def last_names(paths: Sequence[PurePosixPath | str]) -> Argv:
    """Prints the bytes on disk of the files in these trees that have no other name: what a removal frees."""
    return shell(_LAST_NAMES, *map(str, paths))


def remove_release(release: PurePosixPath | str) -> Argv:
    """Removes a release directory; cut anywhere, it is whole or a leftover that the next run removes."""
    return shell(_REMOVE_RELEASE, str(release))


def remove_units(paths: Sequence[PurePosixPath], record: PurePosixPath, *, adopted: bool) -> Argv:
    """Stops and disables our units and removes these files; an adopted server is as `record` says."""
    return shell(_REMOVE_UNITS, "yes" if adopted else "no", str(record), *map(str, paths))


def remove_account(name: str, home: str, record: PurePosixPath) -> Argv:
    """An account that we made, with its home."""
    return shell(_REMOVE_ACCOUNT, name, home, str(record))


def existing(paths: Sequence[PurePosixPath]) -> Argv:
    """Prints those of the paths that are there, a line each; a link that leads nowhere is."""
    return shell(_EXISTING, *map(str, paths))


def read_if_there(path: PurePosixPath) -> Argv:
    """The content of a file; nothing where there is none."""
    return shell(_READ_IF_THERE, str(path))


def remove_empty(paths: Sequence[PurePosixPath]) -> Argv:
    """Removes those of the directories that are empty."""
    return shell(_REMOVE_EMPTY, *map(str, paths))


def remove_made(user: str, directory: PurePosixPath) -> Argv:
    """Removes the directory and those above it, as far as they are this account's and empty."""
    return shell(_REMOVE_MADE, user, str(directory))


def tail(path: PurePosixPath, lines: int) -> Argv:
    """The last lines of a file."""
    return ("tail", "-n", str(lines), str(path))


def tail_and_wait(path: PurePosixPath, lines: int) -> Argv:
    """The last lines of a file and those that come, also of a new file of this name; for `follow`."""
    return ("tail", "-n", str(lines), "-F", str(path))


def unit_journal(units: Sequence[str], lines: int, *more: str, output: str = "short-iso") -> Argv:
    """The last lines of some units in journald; the names may be patterns: journalctl(1)."""
    chosen = [word for unit in units for word in ("-u", unit)]
    return ("journalctl", *chosen, "-n", str(lines), "--no-pager", "-q", "-o", output, *more)


def follow(argv: Sequence[str]) -> Argv:
    """For a channel: a command's lines, each after a blank; it ends when standard input does."""
    return shell(_FOLLOW, *argv)


def run_line(line: str) -> Argv:
    """One line as a shell reads it."""
    return shell(_RUN_LINE, line)


def memory_kill(unit: str) -> Argv:
    """`killed=yes` if the kernel ended the unit's server for its memory since its last stop; the limit."""
    return shell(_MEMORY_KILL, unit)


def append_entry(journal: PurePosixPath, entry: str, limit_bytes: int) -> Argv:
    """Appends a line and syncs it; a file above the limit is first moved to `NAME.1`, over what was there."""
    return shell(_APPEND_ENTRY, str(journal), entry, str(limit_bytes))


def read_kept_reports(directory: PurePosixPath, runs: int) -> Argv:
    """Prints the time, `scheduled` or `never`, the last health report and the last `runs` of its history."""
    return shell(_READ_KEPT_REPORTS, str(directory), str(runs))


def read_entries(journal: PurePosixPath, lines: int) -> Argv:
    """The last lines of the journal and of the file that it was moved to; nothing where there is none."""
    return shell(_READ_ENTRIES, str(journal), str(lines))
