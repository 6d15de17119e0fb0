"""JSON on a stream that cannot spell everything is JSON all the same."""

from __future__ import annotations

import io
import json

import pytest

from deploy.report import Report

NAME = "büro-模型-🦙-\udc80"


@pytest.mark.fault(38)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_an_event_is_read_as_it_was_told_whatever_the_stream_can_spell(encoding: str) -> None:
    written = io.BytesIO()
    stdout = io.TextIOWrapper(written, encoding=encoding)
    report = Report(as_json=True, stdout=stdout, stderr=io.StringIO())
    report("note", NAME, text=NAME)
    assert json.loads(written.getvalue()) == {"event": "note", "host": NAME, "text": NAME}
