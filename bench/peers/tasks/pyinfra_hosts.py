"""The hosts of the bench for pyinfra; `$PEERS_VALUES` names the file with the values."""

import json
import os
from pathlib import Path

_values = json.loads(Path(os.environ["PEERS_VALUES"]).read_text())
_ssh = {"ssh_config_file": _values["ssh_config"], "ssh_known_hosts_file": _values["known_hosts"]}

hosts = [(name, _ssh | {"ssh_strict_host_key_checking": "yes"}) for name in _values["names"]]
