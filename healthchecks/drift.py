"""Are our files as they were written, and is the server's program the one that was unpacked."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import Any

from healthchecks.health_config import FileConfig
from healthchecks.health_report import State
from healthchecks.judgement import Judgement, Look

READ_AGAIN = timedelta(days=1)
"""A program of tens of MiB is not read in every run: in between, one that nobody has touched is the same."""


def check_drift(look: Look) -> Judgement:
    """The sha256 of each file that the deploy recorded, units, drop-in and programs, and of the binary."""
    config, program = look.config, _recorded_program(look)
    if not config.files and program is None:
        return Judgement(
            State.UNKNOWN, "no file was recorded at the deploy", f"./fleet schedule --limit {config.host}"
        )
    files = [*config.files, *([] if program is None else [program])]
    missing, changed, unread = [], [], []
    evidence: dict[str, Any] = {}
    for file in files:
        try:
            if file is program:
                evidence["program"] = _read_program(look, file.path)
                found = evidence["program"]["sha256"]
            else:
                found = look.host.sha256(file.path)
        except OSError:
            unread.append(file.path)
            continue
        if found is None:
            missing.append(file.path)
        elif found != file.sha256:
            changed.append(file.path)
    evidence.update(files=len(files), missing=missing, changed=changed, unread=unread)
    facts = {"drifted_files": [*missing, *changed]}
    if missing or changed:
        told = [f"`{path}` is gone" for path in missing] + [f"`{path}` was changed" for path in changed]
        hint = f"./fleet plan --limit {config.host} names the lines; deploy --overwrite writes them anew"
        return Judgement(State.FAIL, "; ".join(told), hint, evidence, facts)
    if unread:
        return Judgement(
            State.UNKNOWN, f"`{unread[0]}` may not be read", "run the checks as root", evidence, facts
        )
    count = len(files)
    reason = "1 file is as it was written" if count == 1 else f"{count} files are as they were written"
    return Judgement(State.PASS, reason, None, evidence, facts)


def _recorded_program(look: Look) -> FileConfig | None:
    """What the release's own record says of its program; a server of another hand has no record."""
    release = PurePosixPath(look.config.current).parent / "releases" / look.config.release
    try:
        record = json.loads(look.host.read_text(str(release / "release.json")) or "")
    except (OSError, ValueError):
        return None
    sha256 = record.get("program_sha256") if isinstance(record, dict) else None
    return FileConfig(str(release / "bin/ollama"), sha256) if isinstance(sha256, str) else None


def _read_program(look: Look, path: str) -> dict[str, Any]:
    """The program's sha256: what the run before has of it, while nobody has touched it since."""
    now, stamp = look.now, look.host.stamp(path)
    before = _program_before(look)
    if stamp is not None and before.get("path") == path and before.get("stamp") == stamp:
        try:
            age = now - datetime.fromisoformat(before["read_at"])
        except (KeyError, TypeError, ValueError):
            age = READ_AGAIN
        if timedelta(0) <= age < READ_AGAIN:
            return before
    return {"path": path, "stamp": stamp, "sha256": look.host.sha256(path), "read_at": now.isoformat()}


def _program_before(look: Look) -> dict[str, Any]:
    checks = () if look.previous is None else look.previous.checks
    found = next((one.evidence.get("program") for one in checks if one.check == "drift"), None)
    return found if isinstance(found, dict) else {}
