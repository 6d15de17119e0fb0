"""What becomes of a host when a step fails after what it serves was confirmed."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from deploy.apply import Site
from deploy.errors import ServiceError
from deploy.go_back import go_back
from deploy.local import LocalTransport
from deploy.outcomes import ModelVerdict, VerifyRequest
from deploy.plan import plan
from deploy.steps import EndLease
from tests.unit.test_plan import DESIRED, EMPTY


def never(*_: object) -> NoReturn:
    raise AssertionError("a confirmed host was looked at to be changed back")


def unused(_: VerifyRequest) -> ModelVerdict:
    never()


def test_a_release_and_its_models_stay_together_once_they_are_confirmed() -> None:
    site = Site(
        desired=DESIRED,
        transport=LocalTransport("box"),
        probe=never,
        verify=unused,
        events=lambda event, host, **fields: None,
        endpoint=None,
        cache=Path("/nonexistent"),
        verdicts={},
        verified=[],
    )
    failure = ServiceError(sentence="`myqwen2:latest` was not loaded")
    done = [*plan(DESIRED, EMPTY).steps, EndLease(reason="what runs now is verified")]
    told = go_back(site, EMPTY, plan(DESIRED, EMPTY), failure, done=done)
    assert told == "what was verified and confirmed serves on"
