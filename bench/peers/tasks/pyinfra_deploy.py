"""The eight tasks for pyinfra; `$PEERS_VALUES` names the file with the values."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

from pyinfra import config, host
from pyinfra.facts.files import File
from pyinfra.operations import files, server, systemd

config.SUDO = True
values = SimpleNamespace(**json.loads(Path(os.environ["PEERS_VALUES"]).read_text()))

server.user(
    name="Account",
    user=values.account,
    home=values.home,
    shell="/usr/sbin/nologin",
    system=True,
    create_home=True,
)

files.directory(name="Directory of the release", path=values.release)
files.directory(name="Directory of the models", path=values.models_dir, user=values.account)

unit = files.put(name="Unit", src=values.unit_file, dest=values.unit, mode="644")
drop_in = files.put(name="Drop-in", src=values.drop_in_file, dest=values.drop_in, mode="644")

if not host.get_fact(File, path=f"{values.release}/bin/ollama"):
    sent = "/var/tmp/ollama.tar.zst"
    files.put(name="Archive", src=values.archive, dest=sent)
    server.shell(name="Release", commands=f"tar -x --zstd -C {values.release} -f {sent} && rm {sent}")

files.link(name="Current", path=values.current, target=values.release)

systemd.daemon_reload(name="Units are read anew", _if=lambda: unit.did_change() or drop_in.did_change())
systemd.service(name="Enabled", service="ollama.service", enabled=True, running=None)
systemd.service(name="Started", service="ollama.service", running=True)
