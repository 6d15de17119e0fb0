"""`page` on a host that is this machine: it reads what is kept there, and changes nothing but its file."""

from __future__ import annotations

import socket
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from console.page import write_page
from deploy.errors import ExitCode, UsageError
from healthchecks.results import append_history, write_last
from tests.local.conftest import Site
from tests.unit.health_host import report


def test_a_host_that_was_never_checked_is_on_the_page_with_what_to_do(site: Site, tmp_path: Path) -> None:
    output = tmp_path / "fleet.html"
    assert write_page(site.run, output) is ExitCode.DONE
    assert "ollama_health_every=off: ./fleet health --limit box" in output.read_text()
    (told,) = site.events("seen")
    assert (told["host"], told["state"]) == ("box", "never checked")
    assert site.events("page") == [{"event": "page", "file": str(output), "bytes": len(output.read_bytes())}]
    assert site.events("summary")[-1]["hosts"] == 1


def test_the_last_report_is_shown_and_a_page_takes_the_place_of_another(site: Site, tmp_path: Path) -> None:
    directory = site.root / "var/lib/ollama-fleet/health"
    directory.mkdir(parents=True)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    fresh = replace(report(), started=now)
    write_last(directory / "last.json", fresh)
    append_history(directory / "history.jsonl", fresh)
    before = site.files()
    output = tmp_path / "fleet.html"
    output.write_text("an older page")
    assert write_page(site.run, output) is ExitCode.DONE
    (told,) = site.events("seen")
    # It has no timer that would make another report.
    assert (told["state"], told["started"], told["runs"]) == ("stale", now, 1)
    assert "nothing checks this host any more" in output.read_text()
    assert "Ollama answers" in output.read_text()
    assert site.files() == before
    assert [path.name for path in output.parent.glob("*fleet.html*")] == ["fleet.html"]


def test_a_host_that_cannot_be_reached_is_on_the_page_and_is_the_exit_code(
    site: Site, tmp_path: Path
) -> None:
    run = site.run
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    gone = f"gone ansible_host=127.0.0.1 ansible_port={port}\n"
    text = site.inventory.read_text().replace("[all]\n", f"[all]\n{gone}")
    inventory = tmp_path / "two.ini"
    inventory.write_text(text)
    output = tmp_path / "fleet.html"
    run = replace(run, sources=replace(run.sources, inventory=inventory))
    assert write_page(run, output) is ExitCode.UNREACHABLE
    states = {event["host"]: event["state"] for event in site.events("seen")}
    assert states == {"gone": "unreachable", "box": "never checked"}
    assert output.read_text().index("unreachable</span>") < output.read_text().index("never checked</span>")


def test_a_page_that_could_not_be_written_is_refused_before_anybody_is_asked(
    site: Site, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        write_page(site.run, tmp_path / "nowhere/fleet.html")
    assert site.events("seen") == []
