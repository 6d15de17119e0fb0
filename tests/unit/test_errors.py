"""Every error class renders, has fields for --json and is listed for operators."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from deploy import errors
from deploy.errors import FleetError, InputErrors, InventoryError, UsageError, error_fields, render_error

LISTED = Path(__file__).resolve().parents[2] / "docs/errors.md"
CLASSES = sorted(
    (
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, FleetError) and kind is not FleetError
    ),
    key=lambda kind: kind.__name__,
)


def test_an_error_says_the_subject_the_cause_what_is_unchanged_and_the_next_command() -> None:
    error = UsageError(
        sentence="checksum mismatch for `a.tgz`",
        host="gpu02",
        expected="sha256:1",
        actual="sha256:2",
        cause="first\nsecond",
        unchanged="release 0.17.4 is still current",
        hint="retry",
    )
    assert render_error(error) == (
        "error: gpu02: checksum mismatch for `a.tgz`\n"
        "  expected sha256:1, got sha256:2\n"
        "  caused by: first\n"
        "    second\n"
        "  left unchanged: release 0.17.4 is still current\n"
        "\n"
        "hint: retry"
    )
    assert str(error) == render_error(error)


def test_an_input_error_begins_with_its_file_and_line() -> None:
    assert str(InventoryError(sentence="`x` is no key", path="inventory.ini", line=7)).startswith(
        "error: inventory.ini:7: `x` is no key"
    )


def test_all_input_errors_are_shown_at_once() -> None:
    both = InputErrors(
        sentence="two", problems=(UsageError(sentence="one `a`"), UsageError(sentence="two `b`"))
    )
    assert str(both) == "error: one `a`\n\nerror: two `b`"
    assert [problem["sentence"] for problem in error_fields(both)["problems"]] == ["one `a`", "two `b`"]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_renders_and_has_fields_and_a_docstring(kind: type[FleetError]) -> None:
    error = kind(sentence="the `subject` failed", hint="./fleet status")
    if kind is not InputErrors:
        assert render_error(error) == "error: the `subject` failed\n\nhint: ./fleet status"
    assert error_fields(error)["kind"] == kind.__name__
    assert kind.__doc__
    assert int(kind.exit_code) in (1, 2, 3, 4, 5, 130)


def test_the_page_for_operators_lists_every_class_with_its_exit_code() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", LISTED.read_text(), re.MULTILINE))
    assert rows == {kind.__name__: str(int(kind.exit_code)) for kind in CLASSES}


@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x"), errors.DiskTooSmall, "`/x`"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), errors.DiskTooSmall, "quota"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), errors.CommandFailed, "`/x`"),
        (OSError(errno.EMFILE, "Too many open files"), errors.CommandFailed, "ulimit -n"),
        (KeyError("tag"), errors.CommandFailed, "`KeyError`"),
    ],
)
def test_any_exception_becomes_a_designed_error(
    raised: Exception, kind: type[FleetError], words: str
) -> None:
    error = errors.designed_error(raised)
    assert type(error) is kind
    assert words in str(error)


def test_a_designed_error_stays_the_one_it_is() -> None:
    error = UsageError(sentence="`x`")
    assert errors.designed_error(error) is error


def test_what_goes_wrong_with_a_host_names_it_and_a_mistake_keeps_its_type() -> None:
    with pytest.raises(errors.CommandFailed) as failed, errors.errors_of("gpu01"):
        raise KeyError("tag")
    assert (failed.value.host, failed.value.sentence) == ("gpu01", "`KeyError` was not expected here")
    assert isinstance(failed.value.__cause__, KeyError)


def test_a_connection_that_breaks_is_told_apart_from_a_file() -> None:
    for failure in (BrokenPipeError(errno.EPIPE, "Broken pipe"), TimeoutError("silent"), ConnectionError()):
        with pytest.raises(errors.HostUnreachable) as lost, errors.errors_of("gpu01"):
            raise failure
        assert lost.value.cause


def test_a_designed_error_of_a_host_passes_and_keeps_the_host_that_it_names() -> None:
    error = errors.HostUnreachable(sentence="`jump`", host="jump")
    with pytest.raises(errors.HostUnreachable) as lost, errors.errors_of("gpu01"):
        raise error
    assert lost.value is error
    assert error.host == "jump"
