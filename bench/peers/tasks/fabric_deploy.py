"""The eight tasks for bare Fabric, as a person would write them: a command for each, all hosts at once.

`$PEERS_VALUES` names the file with the values. A host's commands go over one connection, one after the other.
"""

import json
import os
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import fabric
import paramiko

values = SimpleNamespace(**json.loads(Path(os.environ["PEERS_VALUES"]).read_text()))


def deploy(name: str) -> None:
    config = fabric.Config(ssh_config=paramiko.SSHConfig.from_path(values.ssh_config))
    # Fabric looks into the user's own file only.
    with fabric.Connection(name, config=config) as connection:
        connection.client.load_host_keys(values.known_hosts)
        connection.client.set_missing_host_key_policy(paramiko.RejectPolicy())

        def run(line: str) -> bool:
            done = connection.run(f"sudo sh -c {shlex.quote(line)}", hide=True, warn=True, in_stream=False)
            return bool(done.ok)

        def must(line: str) -> None:
            if not run(line):
                raise SystemExit(f"{name}: {line}")

        def put(source: str, target: str) -> bool:
            text = shlex.quote(Path(source).read_text().rstrip("\n"))
            if run(f'[ "$(cat {target} 2>/dev/null)" = {text} ]'):
                return False
            must(
                f"mkdir -p {Path(target).parent}; printf '%s\\n' {text} >{target}.new; "
                f"mv {target}.new {target}"
            )
            return True

        must(
            f"id {values.account} >/dev/null 2>&1 || useradd --system --create-home "
            f"--home-dir {values.home} --shell /usr/sbin/nologin {values.account}"
        )
        must(f"mkdir -p {values.release}; install -d -o {values.account} {values.models_dir}")
        changed = put(values.unit_file, values.unit)
        changed = put(values.drop_in_file, values.drop_in) or changed
        if not run(f"[ -x {values.release}/bin/ollama ]"):
            sent = "/var/tmp/ollama.tar.zst"
            connection.put(values.archive, sent)
            must(f"tar -x --zstd -C {values.release} -f {sent} && rm {sent}")
        link, release = values.current, values.release
        must(f'[ "$(readlink {link})" = {release} ] || ln -sfn {release} {link}')
        if changed:
            must("systemctl daemon-reload")
        must("systemctl --quiet is-enabled ollama || systemctl --quiet enable ollama")
        must("systemctl --quiet is-active ollama || systemctl start ollama")


with ThreadPoolExecutor(len(values.names)) as pool:
    list(pool.map(deploy, values.names))
