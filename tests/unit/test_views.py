"""What `status` says of a host's own checks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from console.views import _health_fields, _health_word
from deploy.facts import LastHealth


def test_a_host_that_has_not_checked_itself_has_no_word() -> None:
    assert _health_fields(None) is None
    assert _health_word(None) == "-"


def test_the_last_run_is_told_with_its_age() -> None:
    fields = _health_fields(
        LastHealth(state="warn", started=datetime.now(UTC) - timedelta(minutes=4, seconds=5))
    )
    assert fields is not None
    assert fields["state"] == "warn"
    assert _health_word(fields) == "warn, 4 min ago"


def test_a_host_whose_clock_is_ahead_has_just_checked_itself() -> None:
    fields = _health_fields(LastHealth(state="pass", started=datetime.now(UTC) + timedelta(hours=1)))
    assert fields is not None
    assert fields["age_seconds"] == 0
