#!/bin/sh
# Brings back every fact of a host in one reply.
#   sh -s -- ROOT MODELS_DIR PORT none|nvidia process|systemd   (this text on standard input)
# Reply: lines of tab-separated fields. A line `@file KEY BYTES` is followed by exactly BYTES bytes of content
# and a newline. Nothing is changed and a missing tool or file is simply not in the reply.
# Needs a POSIX shell and the usual file tools; works with busybox.
set -u
LC_ALL=C
export LC_ALL
root=$1 models=$2 port=$3 gpu=${4:-none} service=${5:-process}
tab=$(printf '\t')
case $root in /) prefix= ;; *) prefix=$root ;; esac
state=$prefix/var/lib/ollama-fleet
releases=$prefix/opt/ollama/releases

say() {
    line=$1
    shift
    for word in "$@"; do line=$line$tab$word; done
    printf '%s\n' "$line"
}

send_file() { # KEY PATH: the file's bytes, at most 1 MiB
    [ -f "$2" ] && [ -r "$2" ] || return 0
    bytes=$(($(wc -c <"$2")))
    [ "$bytes" -le 1048576 ] || return 0
    say @file "$1" "$bytes"
    cat "$2"
    printf '\n'
}

send_proc() { # KEY PATH: like send_file for /proc, whose files have no size; NUL becomes newline
    content=$(tr '\000' '\n' <"$2" 2>/dev/null; printf .) || return 0
    content=${content%.}
    say @file "$1" "$(($(printf '%s' "$content" | wc -c)))"
    printf '%s\n' "$content"
}

say @fleet-probe 1
say @architecture "$(uname -m)"
say @kernel "$(uname -r)"
say @user_id "$(id -u)"
say @boot_id "$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)"
for tool in tar zstd flock python3 curl systemctl sha256sum setsid nvidia-smi; do
    found=$(command -v "$tool" 2>/dev/null) && say @tool "$tool" "$found"
done

for directory in "$state" "$releases" "$models"; do
    existing=$directory
    while [ ! -d "$existing" ]; do existing=$(dirname "$existing"); done
    # A device or a mount point may hold spaces: the column with `%` tells where the numbers end.
    disk=$(df -Pk "$existing" 2>/dev/null | sed -n "2s/^.* \([0-9][0-9]*\)  *[0-9-]*%  *\(.*\)\$/\1$tab\2/p")
    [ -n "$disk" ] && say @disk "$directory" "$disk"
done

for directory in "$releases"/*/; do
    [ -f "${directory}release.json" ] || continue
    send_file "release/$(basename "$directory")" "${directory}release.json"
    # As many bytes as were unpacked, or somebody has been at it.
    bytes=$(find "$directory" -type f ! -name release.json ! -name release.env -exec ls -ln {} + 2>/dev/null |
        awk '{ sum += $5 } END { printf "%.0f", sum }')
    say @release_bytes "$(basename "$directory")" "$bytes"
done
for name in current previous; do
    link=$prefix/opt/ollama/$name
    [ -L "$link" ] || continue
    target=$(readlink "$link")
    case $target in
        releases/*/*) ;;
        releases/*) target=${target#releases/} ;;
    esac
    say "@$name" "$target"
done
for path in "$releases"/.unpack-* "$prefix/opt/ollama"/.current-* "$prefix/opt/ollama"/.previous-* \
    "$models/blobs"/.place-*; do
    if [ -e "$path" ] || [ -L "$path" ]; then say @leftover "$path"; fi
done
for path in "$state/artefacts"/sha256-*/*; do
    # A download on its way, and nothing else, has a directory that ends in .part.
    case $path in */sha256-*.part/*) continue ;; esac
    [ -f "$path" ] && say @artefact "${path#"$state/artefacts/sha256-"}" "$(($(wc -c <"$path")))"
done

[ -d "$models" ] && say @store_owner "$(stat -c %U "$models" 2>/dev/null)"
for path in "$models/blobs"/sha256-*; do
    [ -f "$path" ] || continue
    say @blob "$(basename "$path")" "$(($(wc -c <"$path")))" "$(head -c 4 "$path" 2>/dev/null | tr -cd '[:upper:]')"
done
find "$models/manifests/registry.ollama.ai/library" -type f 2>/dev/null | while IFS= read -r path; do
    name=${path#"$models/manifests/registry.ollama.ai/library/"}
    send_file "manifest/$name" "$path"
    tr ',' '\n' <"$path" | sed -n 's/.*"digest" *: *"sha256:\([0-9a-f]*\)".*/\1/p' | while IFS= read -r digest; do
        blob=$models/blobs/sha256-$digest
        [ -f "$blob" ] && [ "$(($(wc -c <"$blob")))" -le 262144 ] && send_file "layer/$digest" "$blob"
    done
done

main_pid=0
if [ "$service" = systemd ] && [ -d /run/systemd/system ]; then
    units=$(systemctl show ollama.service ollama-fleet-load.service ollama-fleet-boot.service \
        --property=Id,LoadState,ActiveState,UnitFileState,Result,MainPID,NRestarts,FragmentPath,DropInPaths,User)
    say @file systemd/units "$(($(printf '%s' "$units" | wc -c)))"
    printf '%s\n' "$units"
    # The values of one unit stand together, an empty line between two units.
    unit_value() { printf '%s\n' "$units" | awk -v unit=ollama.service -v name="$1" '
        /^$/ { if (id == unit) exit; id = ""; value = ""; next }
        { i = index($0, "="); key = substr($0, 1, i - 1); rest = substr($0, i + 1) }
        key == "Id" { id = rest } key == name { value = rest }
        END { if (id == unit) print value }'; }
    main_pid=$(unit_value MainPID)
    fragment=$(unit_value FragmentPath)
    for path in $(unit_value DropInPaths) "$fragment" "$prefix"/etc/systemd/system/ollama.service \
        "$prefix"/etc/systemd/system/ollama.service.d/50-fleet.conf \
        "$prefix"/etc/systemd/system/ollama-fleet-* "$prefix"/usr/local/lib/ollama-fleet/* \
        "$prefix"/etc/modules-load.d/ollama-fleet.conf; do
        [ -f "$path" ] || continue
        say @mode "$path" "$(stat -c %a "$path")"
        send_file "host$path" "$path"
    done
    for group in render video; do
        grep -q "^$group:" /etc/group && say @gpu_group "$group"
    done
    # A unit of another hand executes its own binary, which alone knows its version.
    program=
    [ -f "$fragment" ] && program=$(sed -n 's/^ExecStart=[-@:+!]*\([^ ]*\).*/\1/p' "$fragment" | head -n 1)
    foreign=
    case $program in
        '' | "$prefix"/opt/ollama/*) ;;
        *) foreign=yes
            say @foreign "$program" "$(env -i HOME=/nonexistent PATH="$PATH" OLLAMA_HOST="127.0.0.1:$port" \
            timeout 10 "$program" --version 2>&1 </dev/null | sed -n 's/.*version is v*\([^ ]*\).*/\1/p' | tail -n 1)" ;;
    esac
    # Of our own unit only what it should say counts.
    user=
    [ -z "$foreign" ] || user=$(unit_value User)
    account=$(grep "^${user:-ollama}:" /etc/passwd)
    if [ -n "$account" ]; then
        say @account "${user:-ollama}" "$(printf '%s' "$account" | cut -d : -f 6)" \
            "$(id -Gn "${user:-ollama}")"
    fi
    if [ -d "$state/lease" ]; then say @lease; fi
    if [ -f "$state/account" ]; then say @our_account; fi
fi

say @clock "$(sed -n 's/^btime //p' /proc/stat)" "$(getconf CLK_TCK 2>/dev/null || echo 100)"
# Our servers are known by a mark in their environment: a record on disk could be older than the process.
{
    [ "${main_pid:-0}" = 0 ] || echo "/proc/$main_pid/environ"
    grep -lzxF "OLLAMA_FLEET_ROOT=$root" /proc/[0-9]*/environ 2>/dev/null
} | sort -u | while IFS= read -r path; do
    process=${path%/environ}
    send_proc "process/${process#/proc/}/cmdline" "$process/cmdline"
    send_proc "process/${process#/proc/}/environ" "$process/environ"
    send_proc "process/${process#/proc/}/stat" "$process/stat"
done

# Who listens on the port: the socket's inode, then the process that holds it.
hexport=$(printf '%04X' "$port")
inode=$(cat /proc/net/tcp /proc/net/tcp6 2>/dev/null |
    awk -v p="$hexport" '{ n = split($2, a, ":") } a[n] == p && $4 == "0A" { print $10; exit }')
if [ -n "$inode" ]; then
    # shellcheck disable=SC2012 # the names are those of /proc: digits only
    pid=$(ls -l /proc/[0-9]*/fd 2>/dev/null | awk -v s="socket:[$inode]" '
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
