#!/bin/sh
# The rollback lease: what this host served before a switch of releases, and the way back to it.
#   lease take PATH...   save the state, start the timer        taken | kept (and what was not saved yet)
#   lease renew          start the timer anew                   renewed | none
#   lease end            the new state is good: forget the old  ended | none
#   lease revert CAUSE   go back; the caller holds the lock     reverted to NAME | none
#   lease expire         what the timer runs
#   lease boot           what runs before ollama.service when the host starts
# A lease is one directory, made whole under another name and renamed: it is there or it is not. Going back ends
# in the same state however often it is cut and begun again, and the lease is forgotten last.
# Needs a POSIX shell, the usual file tools or busybox, flock and systemctl.
set -eu
umask 022
LC_ALL=C
export LC_ALL
root=${FLEET_ROOT-}
state=$root/var/lib/ollama-fleet
lease=$state/lease
lock=$state/lock
journal=$state/journal.jsonl
links=$root/opt/ollama
boot_id=$root/proc/sys/kernel/random/boot_id
unit=ollama.service
timer=ollama-fleet-lease.timer
newline='
'

fail() {
    printf 'lease: %s\n' "$1" >&2
    exit 1
}

now() { date -u +%Y-%m-%dT%H:%M:%SZ; }

sync_paths() { # `sync FILE` is coreutils >= 8.24; a directory's makes the renames in it durable
    sync "$@" 2>/dev/null || sync
}

sync_file() { # a link has nothing but its name, which its directory holds
    [ -L "$1" ] || sync_paths "$1"
}

sync_directory() { # the directory, or the nearest one above it that is still there
    existing=$1
    while [ ! -d "$existing" ]; do
        existing=${existing%/*}
        existing=${existing:-/}
    done
    sync_paths "$existing"
}

arm() { systemctl restart "$timer"; }

# --- taking

save_link() { # NAME
    if [ -L "$links/$1" ]; then
        readlink "$links/$1" >"$lease.new/$1"
    elif [ -e "$links/$1" ]; then
        fail "$links/$1 is not a link"
    fi
}

save_file() { # NUMBER PATH
    case $2 in
        *"$newline"*) fail "a path holds a newline: $2" ;;
        /*) ;;
        *) fail "not an absolute path: $2" ;;
    esac
    printf '%s\n' "$2" >"$lease.new/$1.path"
    if [ -L "$root$2" ] || [ -f "$root$2" ]; then
        cp -pP "$root$2" "$lease.new/$1.content"
    elif [ -e "$root$2" ]; then
        fail "neither a file nor a link: $2"
    elif [ ! -d "$root${2%/*}" ]; then
        : >"$lease.new/$1.no_directory"
    fi
}

add_file() { # NUMBER PATH: to a lease that there is; the path last, without which the rest means nothing
    rm -rf "$lease.new" "$lease/$1".*
    mkdir -m 0700 "$lease.new"
    save_file "$1" "$2"
    for made in "$lease.new"/*; do sync_file "$made"; done
    for kind in content no_directory path; do
        made=$lease.new/$1.$kind
        if [ -L "$made" ] || [ -e "$made" ]; then mv -T "$made" "$lease/$1.$kind"; fi
        sync_paths "$lease"
    done
    rmdir "$lease.new"
}

is_saved() { # PATH
    for saved_path in "$lease"/*.path; do
        [ -e "$saved_path" ] || continue
        IFS= read -r path <"$saved_path"
        [ "$path" != "$1" ] || return 0
    done
    return 1
}

take() { # PATH...
    # On a full disk.
    trap 'rm -rf "$lease.new"' EXIT
    if [ -d "$lease" ]; then
        # A run was cut: what it saved is the last state known to be good. What it did not save it has not
        # changed either: that is as good, and is saved now.
        arm
        number=0
        for path in "$lease"/*.path; do number=$((number + 1)); done
        for wanted in "$@"; do
            is_saved "$wanted" && continue
            number=$((number + 1))
            add_file "$number" "$wanted"
        done
        echo kept
        return
    fi
    rm -rf "$lease.new" "$lease.old"
    mkdir -m 0700 "$lease.new"
    cat "$boot_id" >"$lease.new/boot_id"
    save_link current
    save_link previous
    # Both answer by word and exit code; a word that is missing is a systemd that cannot be asked, or, for the
    # second, a unit that is not there.
    active=$(systemctl is-active "$unit") || [ -n "$active" ] || fail "systemctl does not answer"
    printf '%s\n' "$active" >"$lease.new/active"
    enabled=$(systemctl is-enabled "$unit" 2>/dev/null) || :
    printf '%s\n' "${enabled:-absent}" >"$lease.new/enabled"
    number=0
    for path in "$@"; do
        number=$((number + 1))
        save_file "$number" "$path"
    done
    for made in "$lease.new"/*; do sync_file "$made"; done
    sync_paths "$lease.new"
    # Before there is a lease: a timer without one does nothing, a lease without a timer could stay for ever.
    arm
    mv -T "$lease.new" "$lease"
    sync_paths "$state"
    echo taken
}

# --- forgetting

forget() {
    # By one rename, and first: half a lease must not be found, nor a timer missing while there is one.
    rm -rf "$lease.old"
    mv -T "$lease" "$lease.old"
    sync_paths "$state"
    systemctl stop "$timer" || :
    rm -rf "$lease.old"
}

# --- going back

was() { # FILE WORD...: whether it was one of these when the lease was taken
    saved=$(cat "$lease/$1")
    shift
    for word in "$@"; do
        [ "$saved" != "$word" ] || return 0
    done
    return 1
}

is_enabled() { [ "$(systemctl is-enabled "$unit" 2>/dev/null)" = enabled ]; }

name_file() { # LEASE/N.path: sets path, content, temporary
    content=${1%.path}.content
    no_directory=${1%.path}.no_directory
    IFS= read -r path <"$1"
    path=$root$path
    # Neither systemd nor a shell's pattern takes it for a file of its own.
    temporary=${path%/*}/.${path##*/}.lease
}

is_same() { # FILE OTHER: both are text; a full disk needs no room for what was not changed
    [ ! -L "$1" ] && [ ! -L "$2" ] && [ -f "$1" ] && [ -f "$2" ] || return 1
    [ "$(stat -c '%a %u %g %s' "$1")" = "$(stat -c '%a %u %g %s' "$2")" ] || return 1
    [ "$(cat "$1" && echo .)" = "$(cat "$2" && echo .)" ]
}

prepare_files() { # all of the writing: on a full disk nothing has been changed yet, and nothing is left there
    for saved_path in "$lease"/*.path; do
        [ -e "$saved_path" ] || continue
        name_file "$saved_path"
        prepare_file || {
            remove_prepared
            fail "$path cannot be written"
        }
    done
}

prepare_file() { # every command by `&&`: `set -e` does not count in here
    rm -f "$temporary" || return 1
    [ -L "$content" ] || [ -e "$content" ] || return 0
    ! is_same "$content" "$path" || return 0
    mkdir -p "${path%/*}" && cp -pP "$content" "$temporary" && sync_file "$temporary"
}

remove_prepared() {
    for saved_path in "$lease"/*.path; do
        name_file "$saved_path"
        rm -f "$temporary" || :
    done
}

put_files() {
    for saved_path in "$lease"/*.path; do
        [ -e "$saved_path" ] || continue
        name_file "$saved_path"
        if [ -L "$temporary" ] || [ -e "$temporary" ]; then
            mv -T "$temporary" "$path"
        elif ! [ -L "$content" ] && ! [ -e "$content" ]; then
            rm -f "$path"
        fi
        sync_directory "${path%/*}"
        if [ -e "$no_directory" ] && rmdir "${path%/*}" 2>/dev/null; then
            sync_directory "${path%/*}"
        fi
    done
}

prepare_link() { # NAME
    [ -e "$lease/$1" ] || return 0
    mkdir -p "$links"
    rm -f "$links/.$1-lease"
    ln -s "$(cat "$lease/$1")" "$links/.$1-lease"
}

put_link() { # NAME
    if [ -e "$lease/$1" ]; then
        # `-T` is rename(2): without it a link to a directory would be moved into.
        mv -T "$links/.$1-lease" "$links/$1"
    else
        rm -f "$links/$1"
    fi
}

sync_enablement() {
    for wants in "$root"/etc/systemd/system/*.wants; do
        [ -d "$wants" ] && sync_paths "$wants"
    done
    sync_directory "$root/etc/systemd/system"
}

put_back() { # start | boot: sets problem where systemd refuses
    problem=
    prepare_files
    prepare_link current
    prepare_link previous
    # While its unit is there. At boot this cancels the start that waits for us; waiting for it would be for ever.
    if ! was active active activating reloading; then
        case $1 in
            start)
                systemctl stop "$unit" 2>/dev/null || # a unit that is not there
                    { systemctl is-active --quiet "$unit" && problem="$unit does not stop"; } || :
                ;;
            boot) systemctl --no-block stop "$unit" 2>/dev/null || : ;;
        esac
        systemctl reset-failed "$unit" 2>/dev/null || :
    fi
    if ! was enabled enabled && is_enabled; then
        systemctl disable "$unit" || problem="$unit cannot be disabled"
    fi
    put_files
    put_link current
    put_link previous
    sync_directory "$links"
    systemctl daemon-reload
    if was enabled enabled && ! is_enabled; then
        systemctl enable "$unit" || problem="$unit cannot be enabled"
    fi
    sync_enablement
    # At boot the start is queued already and waits for us.
    if [ "$1" = start ] && was active active activating reloading; then
        systemctl reset-failed "$unit" 2>/dev/null || :
        systemctl restart "$unit" || problem="$unit does not start"
    fi
}

json_text() { printf '%s' "$1" | tr '\000-\037\177' ' ' | sed 's/[\\"]/\\&/g'; }

write_journal() { # RESULT CAUSE
    # A line that a crash cut short must not spoil this one. On a full disk the line is lost, not the way back.
    if [ -f "$journal" ] && [ -n "$(tail -c 1 "$journal")" ]; then echo >>"$journal" || :; fi
    printf '{"at": "%s", "who": "lease", "what": "revert", "result": "%s", "cause": "%s"}\n' \
        "$(now)" "$(json_text "$1")" "$(json_text "$2")" >>"$journal" || :
    sync_paths "$journal"
}

go_back() { # start | boot, CAUSE
    release=none
    [ ! -e "$lease/current" ] || release=$(cat "$lease/current")
    release=${release##*/}
    put_back "$1"
    case $release in
        none) result="what was here before the first release is back" ;;
        *) result="release $release is current again" ;;
    esac
    if [ -n "$problem" ]; then
        # Kept, so that a later deploy and the next boot still know what was good; without its timer, so that
        # nothing is restarted over and over.
        systemctl stop "$timer" || :
        write_journal "$result, but $problem" "$2"
        fail "$result, but $problem; the lease is kept: $lease"
    fi
    # Before the lease goes: told twice after a cut is better than never.
    write_journal "$result" "$2"
    forget
    echo "reverted to $release"
}

go_back_alone() { # start | boot, CAUSE: nobody waits for us, so we hold the host's lock ourselves
    # Whatever ends this process, the timer comes back to it.
    arm || :
    exec 9>>"$lock"
    if ! flock -n 9; then
        echo "a deploy holds the lock: it is alive and will end the lease"
        return
    fi
    # As a deploy does it: who, then which process has it open as 9. Empty again however this ends.
    printf '{"owner": "lease", "pid": %s, "since": "%s", "what": "revert"}\n%s\n' "$$" "$(now)" "$$" >"$lock" || :
    trap ': >"$lock"' EXIT
    go_back "$1" "$2"
}

boot() {
    if [ "$(cat "$boot_id")" = "$(cat "$lease/boot_id")" ]; then
        # Called by hand, or a restart that keeps the kernel and loses the timers (soft-reboot, a container).
        arm
    else
        go_back_alone boot "the host was started again before the lease had ended"
    fi
}

command=${1-}
case $command in
    take | renew | end | revert | expire | boot) shift ;;
    *) fail "usage: lease take PATH... | renew | end | revert CAUSE | expire | boot" ;;
esac
mkdir -p "$state"
# One at a time: a revert whose caller died goes on, and the next deploy must not take its lease meanwhile.
exec 8<"$state"
flock 8
case $command in
    take) take "$@" ;;
    *) [ -d "$lease" ] || { echo none; exit 0; } ;;
esac
case $command in
    renew) arm; echo renewed ;;
    end) forget; echo ended ;;
    revert) go_back start "${1:?the cause}" ;;
    expire) go_back_alone start "the lease ran out" ;;
    boot) boot ;;
esac
