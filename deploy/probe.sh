#!/bin/sh
# Brings back every fact of a host in one reply.
#   sh -s -- ROOT MODELS_DIR PORT none|nvidia process|systemd   (this text on standard input)
# Reply: lines that begin with `@NAME` and hold tab-separated fields. Lines without `@` belong to the name above
# them. A line `@file NAME BYTES` is followed by exactly BYTES bytes of content and a newline, `@files COUNT` by
# COUNT paths, a line each, then by the contents of these files, as long as their `@stat` says, and a newline.
# Nothing is changed and a missing tool or file is simply not in the reply.
# Needs a POSIX shell and the usual file tools; works with busybox. Each process that is started here is time that
# every host of a fleet takes: files are asked for all at once, and what the shell can do it does itself.
set -u
LC_ALL=C
export LC_ALL
root=$1 models=$2 port=$3 gpu=${4:-none} service=${5:-process}
tab=$(printf '\t')
newline='
'
case $root in /) prefix= ;; *) prefix=$root ;; esac
state=$prefix/var/lib/ollama-fleet
releases=$prefix/opt/ollama/releases
library=$models/manifests/registry.ollama.ai/library
units=$prefix/etc/systemd/system

say() {
    line=$1
    shift
    for word in "$@"; do line=$line$tab$word; done
    printf '%s\n' "$line"
}

say @fleet-probe 2
say @paths "$state" "$releases" "$models" "$units"
say @machine "$(uname -rm)"
if [ -r /proc/sys/kernel/random/boot_id ]; then
    read -r boot_id </proc/sys/kernel/random/boot_id
    say @boot_id "$boot_id"
fi
for tool in tar zstd flock python3 curl systemctl sha256sum setsid crontab nvidia-smi; do
    printf '@tool\t%s\t' "$tool"
    command -v "$tool" || echo
done

existing_part() { # DIRECTORY: sets `existing` to it, or to its nearest parent that is there
    existing=$1
    while [ ! -d "$existing" ]; do
        existing=${existing%/*}
        existing=${existing:-/}
    done
}
existing_part "$state"
set -- "$existing"
existing_part "$releases"
set -- "$@" "$existing"
existing_part "$models"
set -- "$@" "$existing"
existing_part "$units"
set -- "$@" "$existing"
say @df
df -Pk "$@" 2>/dev/null
# All inodes and those that are free: a file system that makes them as it needs them says 0.
say @inodes
stat -f -c '%c %d' "$@" 2>/dev/null
# How the mounts above these directories are mounted; of two on one place the later one counts.
while read -r _ mount _ options _; do
    for path in "$@"; do
        case $path/ in "${mount%/}"/*)
            say @mount "$mount" "${options%%,*}"
            break
            ;;
        esac
    done
done </proc/self/mounts

# ---- what systemd says, and which files the server depends on
main_pid=0 foreign='' user='' environment_files=''
if [ "$service" = systemd ] && [ -d /run/systemd/system ]; then
    id='' pid=0 fragment='' drop_ins='' runs_as='' files='' disabled='' server_fragment='' server_drop_ins='' server_files=''
    # The values of one unit stand together in any order, an empty line between two units.
    end_unit() {
        if [ "$id" = ollama.service ]; then
            main_pid=$pid server_fragment=$fragment server_drop_ins=$drop_ins user=$runs_as
            server_files=$files
        fi
        # What systemd has once said of a unit that runs it says again until it reads its units anew: a unit that
        # deploy.commands has enabled since is still `disabled`. This looks at the files.
        [ -z "$disabled" ] || printf 'UnitFileState=%s\n' "$(systemctl is-enabled "$id" 2>/dev/null </dev/null)"
        echo
        id='' pid=0 fragment='' drop_ins='' runs_as='' files='' disabled=''
    }
    say @units
    while IFS= read -r line; do
        case $line in
            '')
                end_unit
                continue
                ;;
            UnitFileState=disabled)
                disabled=yes
                continue
                ;;
            Id=*) id=${line#*=} ;;
            MainPID=*) pid=${line#*=} ;;
            FragmentPath=*) fragment=${line#*=} ;;
            DropInPaths=*) drop_ins=${line#*=} ;;
            User=*) runs_as=${line#*=} ;;
            # Before systemd 244 it was called EnvironmentFile.
            EnvironmentFile=* | EnvironmentFiles=*)
                file=${line#*=}
                files=$files${file% (ignore_errors=*}$newline
                ;;
        esac
        printf '%s\n' "$line"
    done <<EOF
$(systemctl show ollama.service ollama-fleet-boot.service ollama-fleet-health.timer \
        --property=Id,LoadState,ActiveState,UnitFileState,Result,MainPID,NRestarts,FragmentPath,DropInPaths,User,Environment,EnvironmentFiles)
EOF
    end_unit
    # A unit of another hand executes its own binary, which alone knows its version. One with our signature is ours,
    # whatever somebody has made of the rest of it: deploy.units.
    program=
    if [ -f "$server_fragment" ]; then
        while IFS= read -r line; do
            case $line in
                '# Written by ollama-fleet;'*)
                    program=
                    break
                    ;;
                ExecStart=?*) [ -z "$program" ] || continue ;;
                *) continue ;;
            esac
            program=${line#ExecStart=}
            program=${program#"${program%%[!-@:+!]*}"}
            program=${program%% *}
        done <"$server_fragment"
    fi
    case $program in
        '' | "$prefix"/opt/ollama/*) ;;
        *) foreign=yes
            say @foreign "$program" "$(env -i HOME=/nonexistent PATH="$PATH" OLLAMA_HOST="127.0.0.1:$port" \
            timeout 10 "$program" --version 2>&1 </dev/null | sed -n 's/.*version is v*\([^ ]*\).*/\1/p' | tail -n 1)" \
                "$(stat -L -c '%i %s %z' "$program" 2>/dev/null)" ;;
    esac
    # It has taken the place of ours: Ollama's install.sh was run over it.
    if [ -n "$foreign" ] && [ -f "$units/ollama.service.d/50-fleet.conf" ]; then
        while IFS= read -r line; do
            case $line in '# Beside a unit of our own:'*)
                foreign=
                say @replaced
                break
                ;;
            esac
        done <"$units/ollama.service.d/50-fleet.conf"
    fi
    # Of our own unit only what it should say counts.
    [ -n "$foreign" ] || user=
    user=${user:-ollama}
    say @account "$user" "$(id -Gn "$user" 2>/dev/null)"
    # Where the store really lies: links are followed as far as it is there.
    existing_part "$models"
    say @store "$(cd -P "$existing" 2>/dev/null && pwd -P)${models#"$existing"}"
    # A pattern may be among them: systemd.exec(5).
    IFS=$newline
    for path in $server_files; do
        case $path in "$prefix/opt/ollama/current/release.env") continue ;; esac
        if [ -f "$path" ] && [ -r "$path" ]; then
            say @environment_file "$path"
            environment_files=$environment_files$path$newline
        fi
    done
    unset IFS
    if [ -d "$state/lease" ]; then say @lease; fi
    if [ -f "$state/account" ]; then say @our_account; fi
fi

# ---- cron, where systemd does not run the host: whether it could start our checks, and what of it is ours
cron=
if [ "$service" = process ] && command -v crontab >/dev/null 2>&1; then
    cron=yes refused=
    daemon=
    # A daemon inside a container of this host has a second number in NSpid, and is not ours: proc_pid_status(5).
    while read -r name pid; do
        case $name in
            cron | crond) daemon=$name ;;
            busybox) case $(tr '\000' ' ' 2>/dev/null <"/proc/$pid/cmdline") in *'busybox crond '*) daemon=crond ;; esac ;;
        esac
    done <<EOF
$(grep -hsE '^(Name|NSpid):' /proc/[0-9]*/status | awk '
        $1 == "Name:" { name = $2 }
        $1 == "NSpid:" && NF == 2 && name ~ /^(crond?|busybox)$/ { print name, $2 }')
EOF
    # A user who has none yet is told so; everything else that it says is a no.
    said=$(crontab -l 2>&1 </dev/null) || case $said in
        *'no crontab for'* | *'No such file'*) ;;
        *) refused=yes ;;
    esac
    say @cron "$daemon" "$refused"
    # Only lines of ours: the others may hold what is nobody's to see.
    while IFS= read -r line; do
        case $line in *" # ollama-fleet: $root") say @cron_line "$line" ;; esac
    done <<EOF
$said
EOF
fi

# ---- files: one stat(1) for all of a kind, one cat(1) for all contents
stat_all() { # PATH...
    stat -L -c "@stat$tab%n$tab%s$tab%a$tab%u$tab%U" "$@" 2>/dev/null
}

set -- /proc/self "$models"
# Who is notified: what stands in it is nobody's to see, so it is compared by its sha256.
if [ "$service$cron" != process ] && [ -f "$state/health/notify.urls" ]; then
    set -- "$@" "$state/health/notify.urls"
    say @addresses "$(sha256sum 2>/dev/null <"$state/health/notify.urls" | cut -c 1-64)"
fi
for path in "$state/artefacts"/sha256-*/*; do
    # A download on its way, and nothing else, has a directory that ends in .part.
    case $path in */sha256-*.part/*) continue ;; esac
    [ -f "$path" ] && set -- "$@" "$path"
done
for path in "$prefix"/usr/local/lib/ollama-fleet/agent/*.pex; do
    [ -f "$path" ] && set -- "$@" "$path"
done
stat_all "$@"

set --
for path in "$models/blobs"/sha256-*; do
    if [ -f "$path" ] && [ -r "$path" ]; then set -- "$@" "$path"; fi
done
if [ "$#" -gt 0 ]; then
    stat_all "$@"
    # The first four bytes of each, in the same order; what no GGUF begins with becomes a dot.
    printf '@blob_heads\t'
    head -q -c 4 "$@" 2>/dev/null | tr -c GUF .
    echo
fi

set --
for path in "$releases"/*/release.json "$releases"/*/release.env; do
    [ -f "$path" ] && [ -r "$path" ] && set -- "$@" "$path"
done
if [ "$service" = systemd ]; then
    for path in ${server_drop_ins:-} "${server_fragment:-}" "$units/ollama.service" \
        "$units/ollama.service.d/50-fleet.conf" "$units"/ollama-fleet-* \
        "$prefix"/usr/local/lib/ollama-fleet/* "$prefix"/etc/modules-load.d/ollama-fleet.conf \
        "$state/health/config.json"; do
        [ -f "$path" ] && [ -r "$path" ] && set -- "$@" "$path"
    done
    IFS=$newline
    set -f
    # shellcheck disable=SC2086 # a path a line
    set -- "$@" $environment_files
    set +f
    unset IFS
fi
if [ -n "$cron" ]; then
    for path in "$prefix"/usr/local/lib/ollama-fleet/health "$prefix"/usr/local/lib/ollama-fleet/health-cron \
        "$state/health/config.json"; do
        [ -f "$path" ] && [ -r "$path" ] && set -- "$@" "$path"
    done
fi
# Manifests, and the layers that are text: below 256 KiB.
while IFS= read -r path; do
    [ -r "$path" ] && set -- "$@" "$path"
done <<EOF
$(find -L "$library" "$models/blobs" -type f -size -512 ! -name '.*' 2>/dev/null)
EOF
if [ "$#" -gt 0 ]; then
    stat_all "$@"
    say @files "$#"
    printf '%s\n' "$@"
    cat "$@"
    echo
fi

# ---- releases
set --
for path in "$releases"/*/release.json; do
    path=${path%/release.json}
    [ -f "$path/release.json" ] && set -- "$@" "${path##*/}"
done
if [ "$#" -gt 0 ] && cd "$releases"; then
    # As many bytes as were unpacked, or somebody has been at it. Our own record tells when that was.
    say @release_files
    find "$@" -type f ! -name release.env ! -name release.stamp -exec stat -c '%s %Y %n' {} + 2>/dev/null
    # A program that is no longer the file that it was when its release came is read: deploy.commands.stamp_release.
    for name in "$@"; do
        shift
        set -- "$@" "$name/bin/ollama"
    done
    while read -r path mode owner now; do
        [ -n "$path" ] || continue
        name=${path%/bin/ollama} stamp=
        # systemd starts it: whoever may write to it could become the server's account.
        case $service:$owner:$mode in
            systemd:root:*[!2367] | process:*) ;;
            *)
                say @program "$name" ''
                continue
                ;;
        esac
        [ -r "$name/release.stamp" ] && read -r stamp <"$name/release.stamp"
        [ "$stamp" = "$now" ] || say @program "$name" "$(sha256sum "$path" 2>/dev/null | cut -c 1-64)"
    done <<EOF
$(stat -c '%n %a %U %i %z' "$@" 2>/dev/null)
EOF
    cd /
fi
for path in "$prefix/opt/ollama/current" "$prefix/opt/ollama/previous"; do
    [ -L "$path" ] && say "@${path##*/}" "$(readlink "$path")"
done
[ -e "$state/unproven" ] && say @unproven
for path in "$releases"/.unpack-* "$prefix/opt/ollama"/.current-* "$prefix/opt/ollama"/.previous-* \
    "$models/blobs"/.place-* "$state/lease.new" "$state/lease.old"; do
    if [ -e "$path" ] || [ -L "$path" ]; then say @leftover "$path"; fi
done
# The run ended right when the file had come to its place: nothing is left to be done in there.
for path in "$state/artefacts"/sha256-*.part; do
    for file in "${path%.part}"/*; do
        if [ -d "$path" ] && [ -f "$file" ]; then say @leftover "$path"; fi
        break
    done
done
# Fetches and copies that were cut: they go on from there.
for path in "$state/artefacts"/sha256-*.part "$state/artefacts"/sha256-*/.*.part; do
    [ -e "$path" ] && say @part "${path#"$state/artefacts/sha256-"}" "$(du -sk "$path" 2>/dev/null | cut -f 1)"
done

# ---- how the host's own checks ended: a line of JSON whose beginning says it
if [ -f "$state/health/last.json" ] && [ -r "$state/health/last.json" ]; then
    line=$(head -c 512 "$state/health/last.json" 2>/dev/null)
    say @health "${line%%"$newline"*}"
fi

# ---- processes
say @accounts
grep -hE "^(btime |render:|video:|${user:-ollama}:)" /proc/stat /etc/group /etc/passwd 2>/dev/null
# Our servers are known by a mark in their environment: a record on disk could be older than the process.
set --
[ "$main_pid" = 0 ] || set -- "/proc/$main_pid/cmdline" "/proc/$main_pid/environ" "/proc/$main_pid/stat"
# shellcheck disable=SC2013 # the names are those of /proc
for path in $(grep -lzxF "OLLAMA_FLEET_ROOT=$root" /proc/[0-9]*/environ 2>/dev/null); do
    path=${path%/environ}
    [ "$path" = "/proc/$main_pid" ] || set -- "$@" "$path/cmdline" "$path/environ" "$path/stat"
done
if [ "$#" -gt 0 ]; then
    # NUL ends a value in these files: a line is a file's name, a colon and one value with ^A for its newlines.
    say @processes
    grep -Hsz '' "$@" 2>/dev/null | tr '\n\000' '\001\n'
fi

# Who listens on the port: the socket's inode, then the process that holds it; the unit's own is looked at first.
inode=$(awk -v p="$(printf '%04X' "$port")" '{ n = split($2, a, ":") } a[n] == p && $4 == "0A" { print $10; exit }' \
    /proc/net/tcp /proc/net/tcp6 2>/dev/null)
if [ -n "$inode" ]; then
    pid=
    if [ "$main_pid" != 0 ]; then
        # shellcheck disable=SC2012 # the names are those of /proc: digits only
        case $(ls -l "/proc/$main_pid/fd" 2>/dev/null) in *"socket:[$inode]"*) pid=$main_pid ;; esac
    fi
    # shellcheck disable=SC2012
    [ -n "$pid" ] || pid=$(ls -l /proc/[0-9]*/fd 2>/dev/null | awk -v s="socket:[$inode]" '
        /^\/proc\// { split($1, a, "/"); pid = a[3] }
        index($0, s) { print pid; exit }')
    command=
    [ -n "$pid" ] && command=$(tr '\000\t\n' '   ' <"/proc/$pid/cmdline" 2>/dev/null)
    say @listener "${pid:--}" "$command"
fi
ask_gpu() { # KEY ARGUMENT: what nvidia-smi answers and how it ended, with a deadline where there is one to be had
    limit=
    command -v timeout >/dev/null 2>&1 && limit='timeout 20'
    answer=$($limit nvidia-smi "$2" --format=csv,noheader,nounits 2>/dev/null)
    say @gpu_exit "$1" $?
    say @file "gpu/$1" "$(($(printf '%s' "$answer" | wc -c)))"
    printf '%s\n' "$answer"
}
if [ "$gpu" = nvidia ]; then
    if command -v nvidia-smi >/dev/null 2>&1; then
        ask_gpu gpus --query-gpu=index,uuid,driver_version,memory.total,memory.used,memory.free,mig.mode.current,name
        ask_gpu processes --query-compute-apps=gpu_uuid,pid,used_gpu_memory,process_name
    else
        say @gpu_exit gpus 12
    fi
fi
say @end
