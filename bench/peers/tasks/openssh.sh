#!/bin/sh
# The eight tasks for plain OpenSSH: one script a host, run as root by `ssh HOST sudo sh -c SCRIPT`.
# Only what is absent or differs is changed. Standard input is the archive, read when it is needed.
set -eu
account=$1 home=$2 release=$3 current=$4 models_dir=$5 unit=$6 drop_in=$7 unit_text=$8 drop_in_text=$9

put() { # PATH TEXT
    [ "$(cat "$1" 2>/dev/null)" = "$2" ] && return
    mkdir -p "$(dirname "$1")"
    printf '%s\n' "$2" >"$1.new"
    mv "$1.new" "$1"
    reload=yes
}

reload=
# 1 account
id "$account" >/dev/null 2>&1 ||
    useradd --system --create-home --home-dir "$home" --shell /usr/sbin/nologin "$account"
# 2 directories
[ -d "$release" ] || mkdir -p "$release"
[ -d "$models_dir" ] || install -d -o "$account" "$models_dir"
# 3 unit, 4 drop-in
put "$unit" "$unit_text"
put "$drop_in" "$drop_in_text"
# 5 release
[ -x "$release/bin/ollama" ] || tar -x --zstd -C "$release"
# 6 current
[ "$(readlink "$current")" = "$release" ] || ln -sfn "$release" "$current"
# 7 enabled
[ -z "$reload" ] || systemctl daemon-reload
systemctl --quiet is-enabled ollama.service || systemctl --quiet enable ollama.service
# 8 started
systemctl --quiet is-active ollama.service || systemctl start ollama.service
