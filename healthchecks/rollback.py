"""Is there a release to go back to."""

from __future__ import annotations

import posixpath

from healthchecks.health_report import State
from healthchecks.judgement import Judgement, Look


def check_rollback(look: Look) -> Judgement:
    """Whether `previous` leads to a release that has its binary, and `current` to the deployed one."""
    host, config = look.host, look.config
    current, previous = host.link_target(config.current), host.link_target(config.previous)
    release = None if current is None else posixpath.basename(current)
    is_there = previous is not None and host.size(posixpath.join(config.previous, "bin/ollama")) is not None
    evidence = {"current": current, "previous": previous, "deployed": config.release}
    facts = {"rollback_available": is_there, "release": release}
    if release is not None and release != config.release:
        reason = f"`{config.current}` leads to release {release}, and {config.release} was deployed"
        return Judgement(State.FAIL, reason, f"./fleet deploy --limit {config.host}", evidence, facts)
    if previous is None:
        # The first release of a host has none before it.
        return Judgement(State.PASS, "there is no previous release yet", None, evidence, facts)
    if not is_there:
        reason = f"`{config.previous}` leads to `{previous}`, and no release is there"
        hint = f"the next ./fleet deploy --limit {config.host} with another version leaves one"
        return Judgement(State.WARN, reason, hint, evidence, facts)
    name = posixpath.basename(previous)
    return Judgement(State.PASS, f"release {name} is there to go back to", None, evidence, facts)
