"""A probe whose files changed while they were read is asked again; one that never makes sense is an error."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.converge import PROBES_AT_MOST, probe_host
from deploy.errors import ProbeFailed
from deploy.transport import Completed
from tests.unit.test_plan import DESIRED

GOOD = b"@fleet-probe\t2\n@paths\t/s\t/r\t/m\t/u\n@stat\t/proc/self\t0\t555\t7\troot\n@end\n"
GARBLED = GOOD.replace(b"@end", b"@stat\t/a\t9\t644\t0\troot\n@files\t1\n/a\nabc\n@end")


# The server ended between the look at the processes and the look at the port.
NOBODYS = GOOD.replace(b"@end", b"@listener\t-\t\n@end")


class Told:
    """A transport that answers with these replies, one after the other."""

    host = "box"

    def __init__(self, *replies: bytes) -> None:
        self.replies = list(replies)

    def run(self, *_: Any, **__: Any) -> Completed:
        return Completed(exit_code=0, stdout=self.replies.pop(0), stderr=b"cat: gone")


def test_files_that_changed_while_they_were_read_are_read_again() -> None:
    transport: Any = Told(GARBLED, GOOD)
    assert probe_host(DESIRED, transport).user_id == 7
    assert transport.replies == []


def test_a_good_reply_is_asked_for_once() -> None:
    transport: Any = Told(GOOD, GOOD)
    probe_host(DESIRED, transport)
    assert transport.replies == [GOOD]


def test_a_probe_that_never_makes_sense_is_an_error_with_what_it_said() -> None:
    transport: Any = Told(*[GARBLED] * PROBES_AT_MOST)
    with pytest.raises(ProbeFailed, match="cat: gone"):
        probe_host(DESIRED, transport)
    assert transport.replies == []


def test_a_port_whose_listener_is_no_server_is_looked_at_again() -> None:
    transport: Any = Told(NOBODYS, GOOD)
    assert probe_host(DESIRED, transport).listener is None
    assert transport.replies == []


def test_a_stranger_on_the_port_is_believed_in_the_end() -> None:
    transport: Any = Told(*[NOBODYS] * PROBES_AT_MOST)
    assert probe_host(DESIRED, transport).listener is not None
    assert transport.replies == []
