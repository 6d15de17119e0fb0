#!/bin/sh
# health ACTION HOST ROOT MODELS_DIR ADDRESS SERVICE GPU [MODEL...] - does this host serve as it was deployed?
#   run | run-quick         check, keep the results in ROOT/var/lib/ollama-fleet/health, tell the journal
#   report | report-quick   check, print the report as JSON, keep nothing
# ADDRESS is HOST:PORT of the server, SERVICE systemd|process, GPU nvidia|none, MODEL a name without its tag.
#
# The agent beside this script does it where there is a Python for it. Where there is none this script checks what
# a POSIX shell can, and says of everything else that it is unknown. "Quick" lets no model answer.
# Exit code 0 when nothing failed, 2 when a check did, 1 when it could not run, or the agent could not in a kept run.
# Needs the usual file tools or busybox; what is missing makes a check `unknown`, never a pass.
set -u
umask 077
export LC_ALL=C

if [ $# -lt 7 ]; then
    echo 'usage: health run|report HOST ROOT MODELS_DIR ADDRESS SERVICE GPU [MODEL...]' >&2
    exit 1
fi
action=${1%-quick} quick=${1#"${1%-quick}"} host=$2 root=$3 models_dir=$4 address=$5 service=$6 gpu=$7
shift 7
case $root in /) prefix= ;; *) prefix=$root ;; esac
directory=$prefix/var/lib/ollama-fleet/health
programs=$prefix/usr/local/lib/ollama-fleet
runs_kept=2000
ask_seconds=10

# --- with Python: the agent

why='there is no agent on this host' broken=
command -v python3 >/dev/null 2>&1 || why='no python3 on this host'
# Whoever puts another agent in place waits for us, and we for them: deploy/commands.py, `start_agent`.
if [ -w "$directory" ] && command -v flock >/dev/null 2>&1; then
    exec 8>>"$directory/agent.lock"
    flock -s 8
fi
for file in "$programs"/agent/*.pex; do
    [ -f "$file" ] || continue
    agent=$file
    # Who cannot write the state still gets a report: the agent unpacks itself somewhere else then.
    unpacked=$directory/agent
    [ -w "$directory" ] || unpacked=$(mktemp -d) || break
    for python in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python3.9; do
        command -v "$python" >/dev/null 2>&1 || continue
        why='no Python from 3.9 to 3.14 on this host'
        "$python" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info < (3, 15))' 2>/dev/null || continue
        env PEX_ROOT="$unpacked" "$python" "$agent" "$action" "$directory" ${quick:+--quick}
        code=$?
        [ "$unpacked" = "$directory/agent" ] || rm -rf "$unpacked"
        case $code in
        0 | 2) exit "$code" ;;
        75) exit 0 ;;
        esac
        why="the agent ended with exit code $code" broken=yes
        break 2
    done
done

# --- without: what a POSIX shell can check

if [ "$action" = run ]; then
    mkdir -p "$directory" || exit 1
    if command -v flock >/dev/null 2>&1; then
        exec 9>>"$directory/lock"
        flock -n 9 || { echo 'another run is under way'; exit 0; }
    fi
fi
started=$(date -u +%Y-%m-%dT%H:%M:%SZ)
read -r uptime _ </proc/uptime
checks='' states='' lines='' worst=pass passed=0 count=0
nl='
'

escape() { # TEXT: as the inside of a JSON string
    printf '%s' "$1" | tr '\n\r\t' '   ' | tr -d '\000-\037' | sed -e 's/\\/\\\\/g' -e 's/"/\\"/g'
}

tell() { # CHECK STATE REASON [HINT]
    hint=null
    [ -z "${4:-}" ] || hint="\"$(escape "$4")\""
    checks="$checks${checks:+, }{\"check\": \"$1\", \"state\": \"$2\", \"reason\": \"$(escape "$3")\", \"hint\": $hint"
    checks="$checks, \"evidence\": {}, \"seconds\": 0}"
    states="$states${states:+, }\"$1\": \"$2\""
    count=$((count + 1))
    if [ "$2" = pass ]; then passed=$((passed + 1)); else lines="$lines$2 $1: $3${4:+; $4}$nl"; fi
    case $worst:$2 in
    *:fail | pass:* | unknown:warn) worst=$2 ;;
    esac
}

# An nvidia-smi that waits for a broken driver may not heed SIGTERM. An older timeout(1) of busybox has no -k.
kill_after=
if timeout -k 2 2 date >/dev/null 2>&1; then kill_after='-k 2'; fi

bounded() { # SECONDS COMMAND...: with a deadline where there is one to be had
    limit=$1
    shift
    # shellcheck disable=SC2086  # two words, or none
    if command -v timeout >/dev/null 2>&1; then timeout $kill_after "$limit" "$@"; else "$@"; fi
}

ask() { # PATH: what the server answers
    if command -v curl >/dev/null 2>&1; then
        curl -sf --noproxy '*' --max-time "$ask_seconds" "http://$address$1" 2>/dev/null
    else
        # A shell of busybox has it inside, where env(1) does not find it.
        (unset http_proxy HTTP_PROXY && wget -q -T "$ask_seconds" -O - "http://$address$1") 2>/dev/null
    fi
}

check_service() {
    if [ "$service" != systemd ]; then
        tell service unknown "with ollama_service=process nobody supervises the server"
        return
    fi
    state=$(bounded "$ask_seconds" systemctl is-active ollama.service 2>/dev/null) || :
    restarts=$(bounded "$ask_seconds" systemctl show ollama.service --property=NRestarts 2>/dev/null)
    restarts=${restarts#NRestarts=}
    case $state:$restarts in
    active:0) tell service pass 'ollama.service is active' ;;
    active:*) tell service warn "ollama.service is active; systemd has started it again $restarts times" './fleet logs' ;;
    *) tell service fail "ollama.service is ${state:-unknown to systemd}" './fleet logs; ./fleet deploy starts it' ;;
    esac
}

check_api() {
    version=
    if ! command -v curl >/dev/null 2>&1 && ! command -v wget >/dev/null 2>&1; then
        tell api unknown 'neither curl nor wget is on this host'
        return
    fi
    answer=$(ask /api/version 2>/dev/null)
    ended=$?
    # Not found, or ended by a signal: the one in Debian's static busybox does that (seen on 1.35).
    if [ "$ended" -gt 125 ]; then
        tell api unknown "curl is not on this host, and its wget ends with exit code $ended"
    elif [ "$ended" -eq 0 ]; then
        # As `healthchecks/api.py` has it: JSON with a plain version, or another service has the port.
        version=$(printf '%s\n' "$answer" | tr '\r\n' '  ' |
            sed -n 's/^ *{.*"version" *: *"\([0-9A-Za-z.+-]\{1,64\}\)".*/\1/p')
        if [ -n "$version" ]; then
            tell api pass "the server answers: $version"
        else
            tell api fail "http://$address/api/version states no version" "another service on port ${address##*:}?"
        fi
    else
        tell api fail "no answer from http://$address/api/version within $ask_seconds s" './fleet logs'
    fi
}

check_models() { # MODEL...
    missing=
    for model; do
        manifest=$models_dir/manifests/registry.ollama.ai/library/$model/latest
        weights=
        [ ! -r "$manifest" ] || weights=$(tr ',' '\n' <"$manifest" | tr -d '{}[]" \n' |
            sed -n 's/.*mediaType:application\/vnd.ollama.image.modeldigest:sha256:\([0-9a-f]*\).*/\1/p')
        if [ ! -e "$manifest" ]; then
            missing="$missing${missing:+, }$model"
        elif [ -n "$weights" ] && [ ! -s "$models_dir/blobs/sha256-$weights" ]; then
            missing="$missing${missing:+, }the weights of $model"
        fi
    done
    if [ $# -eq 0 ]; then
        tell models unknown 'no model was deployed'
    elif [ -n "$missing" ]; then
        tell models fail "absent: $missing" './fleet deploy makes it anew'
    else
        tell models pass "$# in the store by name; their bytes were not compared"
    fi
}

check_gpu() {
    [ "$gpu" = nvidia ] || return 0
    if ! command -v nvidia-smi >/dev/null 2>&1; then
        tell gpu fail 'nvidia-smi is not on this host' 'install the driver; or ollama_gpu=none in the inventory'
        return
    fi
    found=$(bounded "$ask_seconds" nvidia-smi --query-gpu=uuid --format=csv,noheader 2>&1)
    case $? in
    0) judge_gpus "$(printf '%s\n' "$found" | grep -c '^GPU-')"; return ;;
    124 | 137 | 143) tell gpu fail "nvidia-smi does not answer within $ask_seconds s" 'dmesg | grep -i xid'; return ;;
    # It ends with the numbers of nvmlReturn_t.
    4) next='ls -l /dev/nvidia*' ;;
    12) next='install the driver; or ollama_gpu=none in the inventory' ;;
    18) next='reboot: the driver was upgraded' ;;
    *) next='modprobe nvidia; dmesg | grep -i nvrm' ;;
    esac
    tell gpu fail "nvidia-smi: $(printf '%s' "$found" | head -n 1)" "$next"
}

judge_gpus() { # COUNT: nvidia-smi ends with 0 where it found none, too, and may warn beside what it lists
    expected=$(sed -n 's/^ *"gpu_expected_count": \([0-9][0-9]*\),*$/\1/p' "$directory/config.json" 2>/dev/null) || expected=
    if [ "$1" -lt "${expected:-0}" ]; then
        tell gpu fail "$1 GPUs of $expected are there" 'dmesg | grep -e Xid -e "fallen off"; lspci | grep -i nvidia'
    elif [ "$1" -eq 0 ]; then
        tell gpu fail '0 GPUs answer' 'lspci | grep -i nvidia'
    else
        few="$1 GPUs answer"
        [ "$1" -ne 1 ] || few='1 GPU answers'
        tell gpu pass "$few; who uses the memory was not compared"
    fi
}

check_disk() {
    free=$(df -Pk "$models_dir" 2>/dev/null | awk 'NR == 2 { print $4 }')
    # A file system that has no number of them, as btrfs, tells a total of 0.
    inodes=$(df -Pi "$models_dir" 2>/dev/null | awk 'NR == 2 && $2 > 0 { print $4 }')
    case $inodes in *[!0-9]*) inodes= ;; esac
    case $free in
    '' | *[!0-9]*)
        tell disk unknown "df says nothing of $models_dir"
        return
        ;;
    esac
    said="$((free / 1048576)) GiB free for the models"
    if [ "$free" -lt 524288 ]; then
        tell disk fail "$((free / 1024)) MiB free for the models" './fleet prune'
    elif [ "${inodes:-10000}" -lt 64 ]; then
        tell disk fail "$said, but only $inodes inodes" "df -i $models_dir"
    elif [ "${inodes:-10000}" -lt 10000 ]; then
        tell disk warn "$said, but only $inodes inodes" "df -i $models_dir"
    else
        tell disk pass "$said"
    fi
}

check_memory() {
    # kB: proc(5).
    told=$(awk '{ v[$1] = $2 } END { if (v["MemTotal:"]) print int(100 * v["MemAvailable:"] / v["MemTotal:"]) }' /proc/meminfo)
    if [ -z "$told" ]; then
        tell memory unknown '/proc/meminfo does not say'
    elif [ "$told" -lt 5 ]; then
        tell memory warn "$told % of the memory is available" 'a model in main memory is usual: ./fleet gpu'
    else
        tell memory pass "$told % of the memory is available"
    fi
}

check_exposure() {
    # The kernel's own table: local address and port in hex, state 0A listens. Loopback is 127/8 and ::1.
    hex=$(printf '%04X' "${address##*:}")
    open=$(awk -v p="$hex" '{ n = split($2, a, ":") } a[n] == p && $4 == "0A" { print a[1] }' \
        /proc/net/tcp /proc/net/tcp6 2>/dev/null)
    wide=
    for local in $open; do
        case $local in
        ??????7F | 00000000000000000000000001000000 | 0000000000000000FFFF0000??????7F) ;;
        *) wide=$local ;;
        esac
    done
    case ${address%:*} in
    127.* | localhost | '[::1]')
        if [ -n "$wide" ]; then
            tell exposure fail "port ${address##*:} listens beyond loopback" './fleet deploy; the API has no authentication'
        elif [ -z "$open" ]; then
            tell exposure unknown "nothing listens on port ${address##*:}"
        else
            tell exposure pass "port ${address##*:} listens on loopback only"
        fi
        ;;
    *) tell exposure warn "the inventory has the server listen on $address" 'the API has no authentication' ;;
    esac
}

check_rollback() {
    target=$(readlink "$prefix/opt/ollama/previous") || target=
    if [ -z "$target" ]; then
        tell rollback pass 'there is no previous release yet'
    elif [ -d "$prefix/opt/ollama/$target" ]; then
        tell rollback pass "${target#releases/} is there to go back to"
    else
        tell rollback warn "${target#releases/} is gone" './fleet prune --keep says how many stay'
    fi
}

metric() { # NAME TYPE HELP: the lines above its samples
    text="$text# HELP ollama_fleet_$1 $3$nl# TYPE ollama_fleet_$1 $2$nl"
}

metrics() { # into `text`: what the agent writes more of, for node_exporter; docs/metrics.md
    text=
    earlier=$(cat "$directory/ollama_fleet.prom" 2>/dev/null) || earlier=
    pairs=$(printf '%s' "$states" | tr -d '" ' | tr ',' ' ')
    metric check_success gauge '1 if the last run of this check passed or warned, 0 if it failed.'
    for pair in $pairs; do
        case $pair in
        *:fail) text="${text}ollama_fleet_check_success{check=\"${pair%:*}\"} 0$nl" ;;
        *:pass | *:warn) text="${text}ollama_fleet_check_success{check=\"${pair%:*}\"} 1$nl" ;;
        esac
    done
    metric check_state gauge '1 for the state of the last run of this check.'
    for pair in $pairs; do
        for state in pass warn fail unknown; do
            is=0
            [ "${pair#*:}" != "$state" ] || is=1
            text="${text}ollama_fleet_check_state{check=\"${pair%:*}\",state=\"$state\"} $is$nl"
        done
    done
    metric check_consecutive_failures gauge 'Runs in which this check failed since it was last known not to.'
    for pair in $pairs; do
        sample="ollama_fleet_check_consecutive_failures{check=\"${pair%:*}\"} "
        row=${earlier#*"$sample"}
        if [ "$row" = "$earlier" ]; then row=; else row=${row%%"$nl"*} row=${row%%.*}; fi
        case $pair in
        *:fail) row=$((${row:-0} + 1)) ;;
        *:pass | *:warn) row=0 ;;
        esac
        [ -z "$row" ] || text="$text$sample$row$nl"
    done
    metric check_last_run_timestamp_seconds gauge 'When the last run ended, Unix time.'
    text="${text}ollama_fleet_check_last_run_timestamp_seconds $(date +%s)$nl"
    every=$(sed -n 's/^ *"every_seconds": \([0-9.]*\),*$/\1/p' "$directory/config.json" 2>/dev/null) || every=
    if [ -n "$every" ]; then
        metric check_interval_seconds gauge 'How often the host checks itself.'
        text="${text}ollama_fleet_check_interval_seconds $every$nl"
    fi
}

write_metrics() { # DIRECTORY: by rename, readable for the user of node_exporter; what killed runs left goes
    rm -f "$1"/ollama_fleet.prom.*
    (umask 022 && printf '%s' "$text" >"$1/ollama_fleet.prom.$$") 2>/dev/null &&
        mv -f "$1/ollama_fleet.prom.$$" "$1/ollama_fleet.prom" && return
    rm -f "$1/ollama_fleet.prom.$$"
    echo "the metrics could not be written to $1"
}

check_service
check_api
check_models "$@"
check_gpu
check_disk
check_memory
check_exposure
check_rollback
others='version loaded owners clock drift'
[ -n "$quick" ] || others="$others generate toolcall"
[ "$gpu" != nvidia ] || others="$others gpu_truth gpu_errors gpu_heat gpu_persistence gpu_xid"
before=$lines
for name in $others; do
    tell "$name" unknown "was not checked: $why" 'with Python 3.9 or newer on the host ./fleet schedule brings the agent'
done
lines="${before}unknown, since not checked ($why): $others$nl"

read -r now _ </proc/uptime
seconds=$((${now%.*} - ${uptime%.*}))
facts='"toolkit_version": null, "release": null, "boot_id": null, "unit": null, "api_seconds": null, "models": [], "gpus": []'
facts="$facts, \"gpu_expected_count\": null, \"driver\": null, \"filesystem\": null, \"listeners\": null, \"drifted_files\": null"
facts="$facts, \"rollback_available\": null, \"deploy_last_success_at\": null"
if [ -n "$version" ]; then version="\"$(escape "$version")\""; else version=null; fi
report="{\"format\": 1, \"host\": \"$(escape "$host")\", \"started\": \"$started\", \"seconds\": $seconds, \"state\": \"$worst\""
report="$report, \"checks\": [$checks], \"facts\": {\"ollama_version\": $version, $facts}}"

if [ "$action" = report ]; then
    printf '%s\n' "$report"
else
    # First, since on a full disk nothing can be kept.
    printf '%s%s: %s of %s checks passed in %s s\n' "$lines" "$worst" "$passed" "$count" "$seconds"
    rm -f "$directory"/.*.subset-*
    printf '%s\n' "$report" >"$directory/.last.subset-$$" && mv -f "$directory/.last.subset-$$" "$directory/last.json" || exit 1
    if [ -f "$directory/history.jsonl" ] && [ -n "$(tail -c 1 "$directory/history.jsonl")" ]; then
        # A line that was cut short is no line.
        sed -i '$d' "$directory/history.jsonl"
    fi
    entry="{\"started\": \"$started\", \"seconds\": $seconds, \"state\": \"$worst\", \"checks\": {$states}, \"facts\": {}}"
    printf '%s\n' "$entry" >>"$directory/history.jsonl"
    if [ "$(wc -l <"$directory/history.jsonl")" -gt $((runs_kept + 200)) ]; then
        tail -n "$runs_kept" "$directory/history.jsonl" >"$directory/.history.subset-$$" &&
            mv -f "$directory/.history.subset-$$" "$directory/history.jsonl"
    fi
    metrics
    write_metrics "$directory"
    textfiles=$(sed -n 's/^ *"textfile_dir": "\(.*\)",*$/\1/p' "$directory/config.json" 2>/dev/null) || textfiles=
    if [ -n "$textfiles" ]; then
        write_metrics "$textfiles"
    elif [ -d "$prefix/var/lib/prometheus/node-exporter" ]; then
        write_metrics "$prefix/var/lib/prometheus/node-exporter"
    fi
fi
[ "$worst" != fail ] || exit 2
# Or its unit would look well for as long as nothing fails of the little that was checked.
[ -z "$broken" ] || [ "$action" = report ] || exit 1
