"""The names of the variables that mean something to us, and how a mistyped one is recognised.

Ours begin with `ollama_`: the fleet's own keys, and every setting `OLLAMA_X` of the server as `ollama_x`.
Kept apart from `settings`, which needs pydantic: reading an inventory needs the names alone.
"""

from __future__ import annotations

import difflib
from enum import StrEnum

PREFIX = "ollama_"

FLEET_KEYS = frozenset(
    PREFIX + name
    for name in (
        "version models models_dir gpu service root batch max_failures health_every textfile_dir notify_file"
    ).split()
)
"""What the fleet reads itself. `ollama_models` names models; their directory is `ollama_models_dir`."""


class EnvironmentKind(StrEnum):
    """How Ollama reads a setting, so that what it would silently replace by a default is refused here."""

    ADDRESS = "address"
    BOOLEAN = "boolean"
    LEVEL = "level"
    COUNT = "count"
    DURATION = "duration"
    CACHE_TYPE = "cache type"
    TEXT = "text"


_KINDS = {
    EnvironmentKind.ADDRESS: "host",
    EnvironmentKind.BOOLEAN: """auth debug_log_requests flash_attention go_template igpu_enable
        multiuser_cache new_engine no_cloud nohistory noprune sched_spread vulkan""",
    EnvironmentKind.LEVEL: "debug",
    EnvironmentKind.COUNT: """context_length gpu_overhead max_loaded_models max_queue max_transfer_streams
        num_parallel""",
    EnvironmentKind.DURATION: "keep_alive load_timeout",
    EnvironmentKind.CACHE_TYPE: "kv_cache_type",
    EnvironmentKind.TEXT: "editor llm_library origins remotes",
}

ENVIRONMENT_KINDS: dict[str, EnvironmentKind] = {
    PREFIX + name: kind for kind, names in _KINDS.items() for name in names.split()
}
"""Every server setting of Ollama 0.17.5 to 0.33 (its `envconfig/config.go`), by inventory key."""

OUR_KEYS = FLEET_KEYS | ENVIRONMENT_KINDS.keys()

CONNECTION_KEYS = frozenset(
    "ansible_" + name
    for name in """connection host port user password pass timeout pipelining private_key
        private_key_file private_key_passphrase host_key_checking python_interpreter shell_type
        shell_executable remote_tmp group_priority become become_exe become_flags become_method
        become_pass become_password become_user ssh_args ssh_common_args ssh_executable ssh_extra_args
        ssh_host ssh_host_key_checking ssh_pass ssh_password ssh_pipelining ssh_port ssh_private_key
        ssh_private_key_file ssh_private_key_passphrase ssh_retries ssh_timeout ssh_transfer_method
        ssh_use_tty ssh_user ssh_verbosity su_pass su_user scp_executable scp_extra_args sftp_batch_mode
        sftp_executable sftp_extra_args control_path control_path_dir""".split()
)
"""The variables by which Ansible reaches a host (documentation of its ssh connection and of become)."""

NEVER_SHOWN = frozenset(
    """ansible_async_path ansible_collection_name ansible_config_file ansible_dependent_role_names
        ansible_diff_mode ansible_facts ansible_forks ansible_inventory_sources ansible_limit
        ansible_play_batch ansible_play_hosts ansible_play_hosts_all ansible_play_role_names
        ansible_playbook_python ansible_role_name ansible_role_names ansible_run_tags ansible_skip_tags
        ansible_verbosity ansible_version inventory_dir inventory_file inventory_hostname
        inventory_hostname_short groups group_names hostvars playbook_dir play_hosts role_name
        role_names role_path role_uuid""".split()
)
"""Names that Ansible keeps for itself and drops from its listing, whoever set them."""

# One letter lost, added or swapped in `ansible_host` is above it; `ansible_hostname`, a fact, stays below.
_NEAR_MISS = 0.9


def mistyped_key(key: str) -> tuple[bool, str | None]:
    """Whether `key` must be a slip, and the key that was probably meant.

    Any unknown `ollama_` key is one. Of the others only near misses of the connection keys are:
    every other variable is somebody else's and is kept, as Ansible keeps it.
    """
    if key in OUR_KEYS or key in CONNECTION_KEYS:
        return False, None
    plain = key.lower().replace("-", "_")
    if plain.startswith(PREFIX):
        meant = closest(plain.removeprefix(PREFIX), {ours.removeprefix(PREFIX) for ours in OUR_KEYS})
        return True, None if meant is None else PREFIX + meant
    if not plain.isidentifier():
        return False, None
    matches = difflib.get_close_matches(plain, sorted(CONNECTION_KEYS), n=1, cutoff=_NEAR_MISS)
    return bool(matches), matches[0] if matches else None


def closest(word: str, known: frozenset[str] | set[str]) -> str | None:
    """The known word most like this one, None when nothing is."""
    matches = difflib.get_close_matches(word, sorted(known), n=1)
    return matches[0] if matches else None
