"""Is the host's clock right."""

from __future__ import annotations

from datetime import datetime, timezone

from healthchecks.health_report import State
from healthchecks.judgement import Judgement, Look

SYNCHRONIZED_SECONDS = 16.0
"""The kernel's estimate grows while nobody sets its clock, up to this; systemd asks for the same
(`ntp_synced` in src/basic/time-util.c)."""


def check_clock(look: Look) -> Judgement:
    """The kernel's own estimate (adjtimex(2)), and whether time has gone back."""
    now, error = look.now, look.host.clock_error_seconds()
    before = _parse_time(look.previous.started if look.previous is not None else None)
    deployed = _parse_time(look.config.deployed_at)
    evidence = {
        "now": now.astimezone(timezone.utc).isoformat(timespec="seconds"),
        "error_seconds": error,
        "last_run": None if before is None else before.isoformat(),
        "deployed_at": look.config.deployed_at,
    }
    hint = "timedatectl; systemctl enable --now systemd-timesyncd (or chrony)"
    if deployed is not None and now < deployed:
        reason = "the clock stands before the time of the deploy: certificates and logs are wrong"
        return Judgement(State.FAIL, reason, hint, evidence)
    if before is not None and now < before:
        return Judgement(State.WARN, "the clock went back since the last run", hint, evidence)
    if error is None:
        return Judgement(
            State.UNKNOWN, "the kernel does not say whether its clock is set by anybody", None, evidence
        )
    if error >= SYNCHRONIZED_SECONDS:
        return Judgement(State.WARN, "nobody sets the clock (no time synchronisation)", hint, evidence)
    return Judgement(State.PASS, f"the clock is right to {error:.3f} s", None, evidence)


def _parse_time(text: str | None) -> datetime | None:
    if text is None:
        return None
    # Python 3.9 and 3.10 do not read the Z.
    found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return found if found.tzinfo is not None else found.replace(tzinfo=timezone.utc)
