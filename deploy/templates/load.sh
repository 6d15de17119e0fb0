#!/bin/sh
# load BINARY MODEL... - loads models into a server that was just started, with the server's own binary.
#
# Runs after each start of ollama.service, as its user, with its OLLAMA_HOST: the first user then need not wait
# for gigabytes to be read. Tells one line a model: `loaded NAME in N s` or `error: NAME: why`. Exit code 1 if any
# model could not be loaded, 3 if all that is wrong is that the server does not list one: before the first is
# promoted there is none. 2 if called wrongly. LOAD_WAIT_SECONDS (120): how long to wait for the server.
#
# What the real client does (RunHandler and generate in cmd/cmd.go; measured on 0.17.5 and 0.24.0, CPU):
# - `run NAME </dev/null` sends an empty prompt, which loads and nothing more, and no keep_alive, so the
#   server's OLLAMA_KEEP_ALIVE holds: with -1 `ps` says "Forever". Already loaded: 30 ms, nothing changes.
# - `run` PULLS a name that /api/show answers with 404, from registry.ollama.ai, and waits for it. 0.17.5
#   answers 404 also for a model of ours whose blob is gone. So `show` is asked first: it asks the server one
#   thing, and neither of the two asks the network (strace).
# - Exit code 1 and `Error: ...` on stderr for an absent or damaged model and without a server; there is no
#   deadline: with a server that hangs it hangs. SIGTERM ends it.
# - It needs HOME set, or it panics (exit code 2), but HOME need be neither writable nor there. Any user will do.
# - It honours HTTP_PROXY for every address but loopback ones. 0.0.0.0, which servers are told to listen on, is
#   no loopback address: with a proxy set, it would ask the proxy.
# - The spinner of `run` writes escape codes to stderr, terminal or not, without a line end before `Error: `.
# - Models for embeddings or images cannot be loaded in this way: it demands a prompt.

set -u
export LC_ALL=C HOME="${HOME:-/}"
unset http_proxy HTTP_PROXY https_proxy HTTPS_PROXY

wait_seconds=${LOAD_WAIT_SECONDS:-120}
# Answered in 50 ms; on a busy emulated machine that had just booted a client took 10 s to start.
question_seconds=30
load_seconds=600
pauses='1 5 15'

# Seconds since boot: the clock of a host may leap just after a boot.
read_clock() {
    read -r now _ </proc/uptime
    now=${now%%.*}
}

# bounded SECONDS COMMAND...: stdout and stderr together, into `said`. Hosts without timeout(1) rely on systemd's.
bounded() {
    limit=$1
    shift
    if command -v timeout >/dev/null 2>&1; then
        said=$(timeout "$limit" "$@" 2>&1 </dev/null)
    else
        said=$("$@" 2>&1 </dev/null)
    fi
}

# Why the last command failed, from its exit code and what it said.
tell_cause() {
    # No escape code has an E in it.
    words=$(printf '%s\n' "$said" | sed -n -e 's/^[^E]*Error: //p' -e 's/^panic: /panic: /p' | tail -n 1)
    if [ -n "$words" ]; then
        printf '%s\n' "$words"
    elif [ "$1" -eq 124 ] || [ "$1" -eq 143 ]; then # coreutils and busybox
        printf 'no answer in %s s\n' "$limit"
    else
        words=$(printf '%s\n' "$said" | tail -n 1 | tr -cd '[:print:]')
        printf 'exit code %s\n' "$1${words:+: $words}"
    fi
}

# The port is open before the server answers: GPUs are looked for in between. So it is asked something.
wait_for_server() {
    read_clock
    until=$((now + wait_seconds))
    until bounded "$question_seconds" "$binary" ps; do
        code=$?
        read_clock
        if [ "$now" -ge "$until" ]; then
            printf 'error: no answer from the server in %s s: %s\n' "$wait_seconds" "$(tell_cause "$code")"
            return 1
        fi
        sleep 1
    done
}

# Whether the server has the model, with its weights or without them; before 0.32 not one whose settings are gone
# (the config blob). No two names of Ollama's differ by their case alone.
is_listed() {
    bounded "$question_seconds" "$binary" list || return 0
    printf '%s\n' "$said" | cut -d ' ' -f 1 | grep -qixF -e "$1" -e "$1:latest"
}

# One attempt. Returns 0, 1 (worth another attempt), 2 (not worth it) or 3 (not listed); the reason is in `cause`.
load_once() {
    bounded "$question_seconds" "$binary" show -- "$1" || {
        cause=$(tell_cause $?)
        case $cause in
        *'not found'*)
            cause="$cause on this server; nothing was pulled"
            is_listed "$1" && return 2
            return 3
            ;;
        esac
        return 1
    }
    read_clock
    started=$now
    bounded "$load_seconds" "$binary" run -- "$1" || {
        cause=$(tell_cause $?)
        read_clock
        [ $((now - started)) -lt "$load_seconds" ] || return 2
        return 1
    }
    read_clock
    printf 'loaded %s in %s s\n' "$1" $((now - started))
}

load_model() {
    for pause in $pauses ''; do
        load_once "$1" && return
        code=$?
        [ "$code" -eq 1 ] && [ -n "$pause" ] || break
        sleep "$pause"
    done
    printf 'error: %s: %s\n' "$1" "$cause"
    [ "$code" -eq 3 ] && return 3
    return 1
}

if [ $# -lt 1 ]; then
    echo 'usage: load BINARY MODEL...' >&2
    exit 2
fi
binary=$1
shift
[ $# -gt 0 ] || exit 0
wait_for_server || exit 1
worst=0
for model; do
    load_model "$model" || {
        code=$?
        [ "$worst" -eq 1 ] || worst=$code
    }
done
exit "$worst"
