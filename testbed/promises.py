"""What holds on a practice host after any fault: it serves the old release or the new one, and goes on.

`broken_promises` looks, deploys twice more and looks again; what it returns are sentences, none when all is
well. Who deploys is handed in, since nothing in here knows how: tests do it inside their process, benches by
`./fleet deploy`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from testbed.hosts_tree import PYTHON
from testbed.reached import ReachedHost

SERVES_SECONDS = 60.0
# The holder of a lock whose controller is gone gives up after 60 s without a heartbeat.
LOCK_SECONDS = 75.0
NOTHING = ""
"""The release of a host that serves none, as before its first deploy."""
ADOPTED = "adopted"
"""The release of a server that runs from where somebody else has installed it."""

# Names of one GGUF share a runner, and `/api/ps` tells the first of them only, be it deleted since (measured
# on 0.17.5 and 0.24.0): a model is in memory when its manifest, or its weights, are there under another name.
_LOADED = """
import json, re, urllib.request as u
def ask(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    with u.urlopen(u.Request("http://127.0.0.1:11434" + path, data), timeout=5) as reply:
        return json.load(reply)
def weights(name):
    return re.findall("^FROM .*", ask("/api/show", {"model": name})["modelfile"], re.MULTILINE)
running, stored = ask("/api/ps")["models"], ask("/api/tags")["models"]
names, digests = {model["name"] for model in running}, {model["digest"] for model in running}
known = {model["name"] for model in stored}
mapped = [weights(name) for name in names & known]
shared = {model["name"] for model in stored if model["digest"] in digests or weights(model["name"]) in mapped}
print(*sorted(names | shared))
"""

# Every line is a key and a value. The release is that of the unit's process, by its mark: `current` may lead
# elsewhere by then. The last lines are files that a cut run may leave and that the next one must remove.
_LOOK = f"""
cd /
pid=$(systemctl show --property=MainPID --value ollama.service 2>/dev/null)
release=
if [ "${{pid:-0}}" -gt 0 ]; then
    release={ADOPTED}
    mark=$(tr '\\0' '\\n' <"/proc/$pid/environ" 2>/dev/null | grep '^OLLAMA_FLEET_RELEASE=')
    case $mark in
        '' | OLLAMA_FLEET_RELEASE={ADOPTED} | OLLAMA_FLEET_RELEASE={ADOPTED}-*) ;;
        *)
            file=$(grep -lx "$mark" /opt/ollama/releases/*/release.env) || file=unknown/release
            release=$(basename "$(dirname "$file")")
            ;;
    esac
fi
echo "release $release"
echo "models $({PYTHON} -c '{_LOADED}' 2>/dev/null)"
lock=/var/lib/ollama-fleet/lock
if [ -e "$lock" ] && ! flock -n "$lock" true; then echo "lock $(cat "$lock")"; fi
if [ -L /opt/ollama/current ] && ! [ -x /opt/ollama/current/bin/ollama ]; then
    echo "link $(readlink /opt/ollama/current)"
fi
for path in /var/lib/ollama-fleet/lease*; do
    if [ -e "$path" ]; then echo "lease $path"; fi
done
if systemctl --quiet is-active ollama-fleet-lease.timer; then echo "lease ollama-fleet-lease.timer"; fi
for directory in /opt/ollama /etc/systemd/system /usr/local/lib/ollama-fleet /var/lib/ollama-fleet \\
    /usr/share/ollama; do
    if [ -d "$directory" ]; then
        find "$directory" -name '.*fleet-*' -o -name '.unpack-*' -o -name '.place-*' -o -name '.current-*' \\
            -o -name '.previous-*' -o -name '*.lease' -o -name '*.part' | sed 's/^/temporary /'
    fi
done
"""
# What a deploy to another host must leave alone: the server's process, and every file with its time. What the
# host's own health timer writes is nobody's change.
_FOOTPRINT = """
systemctl show --property=MainPID,ExecMainStartTimestampMonotonic ollama.service
for directory in /opt/ollama /etc/systemd/system /usr/local/lib/ollama-fleet /var/lib/ollama-fleet; do
    if [ -d "$directory" ]; then
        find "$directory" -path /var/lib/ollama-fleet/health -prune -o \\
            ! -type d -exec stat -c '%n %i %s %Y' {} + | sort
    fi
done
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How a deploy ended: its exit code, and how much it changed, in steps or in hosts."""

    exit_code: int
    changed: int


Deploy = Callable[[], Ran]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A host at one moment. `loaded` are the models in memory; `lock` is its holder's line, or empty."""

    release: str
    loaded: tuple[str, ...]
    lock: str
    link_to_nowhere: str
    leases: tuple[str, ...]
    temporary: tuple[str, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        """Begun copies, which the next deploy goes on with."""
        return tuple(path for path in self.temporary if path.endswith(".part"))


def look(host: ReachedHost) -> Seen:
    """See it from inside, without the network."""
    lines = [line.partition(" ")[::2] for line in host.shell(_LOOK).stdout.splitlines()]
    values = {key: tuple(value for other, value in lines if other == key) for key, _ in lines}

    def first(key: str) -> str:
        return values.get(key, ("",))[0]

    return Seen(
        release=first("release"),
        loaded=tuple(first("models").split()),
        lock=first("lock"),
        link_to_nowhere=first("link"),
        leases=values.get("lease", ()),
        temporary=values.get("temporary", ()),
    )


def footprint(host: ReachedHost) -> str:
    """Equal before and after where a deploy to other hosts has left this one alone."""
    return host.shell(_FOOTPRINT).stdout


def footprints(hosts: Sequence[ReachedHost]) -> dict[str, str]:
    """Those of several hosts, by their names: of the ones that a deploy leaves out, before it begins."""
    return {host.name: footprint(host) for host in hosts}


def broken_to_others(others: Sequence[ReachedHost], before: Mapping[str, str]) -> list[str]:
    """The hosts that were left out and are not as they were `before`."""
    return [
        f"{host.name} was touched, which was left out"
        for host in others
        if footprint(host) != before[host.name]
    ]


def broken_promises(
    host: ReachedHost,
    *,
    serves: Collection[str],
    new: str,
    deploy: Deploy,
    models: Sequence[str] = ("myqwen2:latest",),
    within_seconds: float = SERVES_SECONDS,
) -> list[str]:
    """What does not hold after a fault that may leave one of the releases in `serves`; `new` is desired.

    One of them serves with its models loaded `within_seconds`, the lock is free or frees itself, at most one
    copy is begun; then a second deploy converges, a third changes nothing, and nothing of what was cut is
    left.
    """
    return [
        *broken_after_fault(host, serves=serves, models=models, within_seconds=within_seconds),
        *broken_after_converge(host, new=new, deploy=deploy, models=models),
    ]


def broken_after_fault(
    host: ReachedHost,
    *,
    serves: Collection[str],
    models: Sequence[str] = ("myqwen2:latest",),
    within_seconds: float = SERVES_SECONDS,
) -> list[str]:
    """The half of `broken_promises` that holds before anybody deploys again."""
    seen = _until(host, lambda seen: _serves(seen, serves, models), within_seconds)
    broken = []
    if not _serves(seen, serves, models):
        wanted = " or ".join(release or "nothing" for release in sorted(serves))
        broken.append(f"{host.name} serves {_told(seen)}, not {wanted}")
    if seen.link_to_nowhere:
        broken.append(f"`current` of {host.name} leads to {seen.link_to_nowhere}, which cannot be run")
    if len(seen.parts) > 1:
        broken.append(f"{host.name} has more than one begun copy: {', '.join(seen.parts)}")
    return broken


def broken_after_converge(
    host: ReachedHost, *, new: str, deploy: Deploy, models: Sequence[str] = ("myqwen2:latest",)
) -> list[str]:
    """The other half: deploys twice, then looks for what is left."""
    free = _until(host, lambda seen: not seen.lock, LOCK_SECONDS)
    broken = [f"the lock of {host.name} is still held: {free.lock}"] if free.lock else []
    second, third = deploy(), deploy()
    if second.exit_code != 0:
        broken.append(f"the next deploy to {host.name} ended with {second.exit_code}")
    if third != Ran(exit_code=0, changed=0):
        broken.append(
            f"the deploy after it ended with {third.exit_code} and changed {third.changed} on {host.name}"
        )
    seen = look(host)
    if not _serves(seen, [new], models):
        broken.append(f"{host.name} serves {_told(seen)} in the end, not {new}")
    if seen.lock:
        broken.append(f"the lock of {host.name} is held in the end: {seen.lock}")
    if seen.link_to_nowhere:
        broken.append(f"`current` of {host.name} leads to {seen.link_to_nowhere} in the end")
    broken += [f"a lease is left on {host.name}: {lease}" for lease in seen.leases]
    broken += [f"a temporary file is left on {host.name}: {path}" for path in seen.temporary]
    return broken


def _serves(seen: Seen, releases: Collection[str], models: Sequence[str]) -> bool:
    if seen.release == NOTHING:
        return NOTHING in releases
    return seen.release in releases and set(models) <= set(seen.loaded)


def _told(seen: Seen) -> str:
    if seen.release == NOTHING:
        return "nothing"
    return f"{seen.release} with {', '.join(seen.loaded) or 'no model'} loaded"


def _until(host: ReachedHost, holds: Callable[[Seen], bool], seconds: float) -> Seen:
    """What was seen when it held, or at the deadline."""
    deadline = time.monotonic() + seconds
    while not holds(seen := look(host)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return seen
