"""Is there room where the models lie."""

from __future__ import annotations

from healthchecks.health_report import State
from healthchecks.judgement import Judgement, Look

_INODES_FAIL = 64
"""Below it a deploy, and soon every other program, cannot make its files."""


def check_disk(look: Look) -> Judgement:
    """Bytes against the largest model, and inodes, of the models' file system."""
    path, limits = look.config.models_dir, look.config.thresholds
    space = look.host.space(path)
    largest = max((model.size_bytes for model in look.config.models), default=0)
    evidence = {
        "path": path,
        "avail_bytes": space.avail_bytes,
        "total_bytes": space.total_bytes,
        "avail_inodes": space.avail_inodes,
        "largest_model_bytes": largest,
    }
    filesystem = {"path": path, "avail_bytes": space.avail_bytes, "avail_inodes": space.avail_inodes}
    facts = {"filesystem": filesystem}
    free = f"{space.avail_bytes / 1024**3:.2f} GiB"
    hint = f"./fleet prune --limit {look.config.host} takes old releases and models away"
    if space.avail_bytes < limits.disk_fail_bytes:
        return Judgement(State.FAIL, f"only {free} are free below `{path}`", hint, evidence, facts)
    if space.avail_inodes is not None and space.avail_inodes < max(limits.inodes_warn, _INODES_FAIL):
        reason = f"only {space.avail_inodes} more files fit below `{path}`"
        state = State.FAIL if space.avail_inodes < _INODES_FAIL else State.WARN
        return Judgement(state, reason, "look for many small files: df -i", evidence, facts)
    if space.avail_bytes < largest:
        reason = f"{free} are free below `{path}`: the largest model would not fit once more"
        return Judgement(State.WARN, reason, hint, evidence, facts)
    return Judgement(State.PASS, f"{free} are free below `{path}`", None, evidence, facts)
