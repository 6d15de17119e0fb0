"""Are our files as they were written."""

from __future__ import annotations

from healthchecks.health_report import State
from healthchecks.judgement import Judgement, Look


def check_drift(look: Look) -> Judgement:
    """The sha256 of each file that the deploy recorded: units, drop-in, programs, the binary."""
    config = look.config
    if not config.files:
        return Judgement(
            State.UNKNOWN, "no file was recorded at the deploy", f"./fleet schedule --limit {config.host}"
        )
    missing, changed, unread = [], [], []
    for file in config.files:
        try:
            found = look.host.sha256(file.path)
        except OSError:
            unread.append(file.path)
            continue
        if found is None:
            missing.append(file.path)
        elif found != file.sha256:
            changed.append(file.path)
    evidence = {"files": len(config.files), "missing": missing, "changed": changed, "unread": unread}
    facts = {"drifted_files": [*missing, *changed]}
    if missing or changed:
        told = [f"`{path}` is gone" for path in missing] + [f"`{path}` was changed" for path in changed]
        hint = f"./fleet plan --limit {config.host} names the lines; deploy --overwrite writes them anew"
        return Judgement(State.FAIL, "; ".join(told), hint, evidence, facts)
    if unread:
        return Judgement(
            State.UNKNOWN, f"`{unread[0]}` may not be read", "run the checks as root", evidence, facts
        )
    count = len(config.files)
    reason = "1 file is as it was written" if count == 1 else f"{count} files are as they were written"
    return Judgement(State.PASS, reason, None, evidence, facts)
