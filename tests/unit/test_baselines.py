"""What the models did when they were promoted, as a file on the host."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from deploy.baselines import (
    KEPT_PER_MODEL,
    find_baseline,
    fingerprint_of,
    make_baseline,
    parse_baselines,
    read_baselines,
    render_baselines,
    with_baseline,
    write_baselines,
)
from deploy.desired import Artefact, DesiredModel, Modelfile
from deploy.errors import CommandFailed
from deploy.facts import StoredModel
from deploy.local import LocalTransport
from deploy.outcomes import Baseline, ModelVerdict

SHA256 = "ab" * 32
PARAMETERS: dict[str, Any] = {"temperature": 1.0, "num_ctx": 4096, "stop": ["<|im_end|>"], "flag": True}


def stored(**changed: Any) -> StoredModel:
    made = StoredModel(model_sha256=SHA256, template="{{ .Prompt }}", parameters=PARAMETERS)
    return replace(made, **changed)


def desired() -> DesiredModel:
    weights = Artefact(repo="a/b", revision="master", file="w.gguf", size_bytes=1, sha256=SHA256)
    modelfile = Modelfile(text="", template="{{ .Prompt }}", parameters={**PARAMETERS, "temperature": 1})
    return DesiredModel(name="MyQwen2", weights=weights, modelfile=modelfile, uses_tools=True)


VERDICT = ModelVerdict(passed=True, rates={21: (9, 10), 55: (3, 4)}, suite="0123456789abcdef")
NOW = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
BASELINE = make_baseline(desired(), "0.17.5", VERDICT, NOW)


def test_a_model_is_known_again_in_the_store_that_it_was_made_into() -> None:
    assert fingerprint_of(stored()) == fingerprint_of(desired()) == BASELINE.fingerprint


@pytest.mark.parametrize(
    "changed",
    [
        {"model_sha256": "cd" * 32},
        {"template": "{{ .Tools }}"},
        {"parameters": {**PARAMETERS, "num_ctx": 2048}},
        {"parameters": {**PARAMETERS, "flag": False}},
        {"system": "be brief"},
    ],
)
def test_what_answers_another_way_is_another_model(changed: dict[str, Any]) -> None:
    assert fingerprint_of(stored(**changed)) != fingerprint_of(stored())


def test_what_is_written_is_read_again() -> None:
    assert BASELINE.date == "2026-02-03T04:05:06+00:00"
    assert BASELINE.weights == f"sha256:{SHA256}"
    kept = with_baseline({}, "MyQwen2", BASELINE)
    assert parse_baselines(render_baselines(kept)) == kept
    assert parse_baselines("") == {}


def test_the_newest_come_first_and_a_model_has_one_only() -> None:
    kept: dict[str, tuple[Baseline, ...]] = {}
    for number in range(KEPT_PER_MODEL + 2):
        kept = dict(with_baseline(kept, "m", replace(BASELINE, fingerprint=str(number))))
    again = with_baseline(kept, "M", replace(BASELINE, fingerprint="4", release="0.24.0"))
    assert [(one.fingerprint, one.release) for one in again["m"]] == [
        ("4", "0.24.0"),
        *((number, "0.17.5") for number in ("6", "5", "3", "2")),
    ]


def test_a_host_keeps_it_and_the_store_is_asked_only_where_there_is_one(tmp_path: Path) -> None:
    transport, path = LocalTransport("box"), PurePosixPath(tmp_path / "state/baselines.json")

    def never() -> StoredModel:
        raise AssertionError("the store was asked")

    assert find_baseline(transport, path, "myqwen2", never) is None
    write_baselines(transport, path, with_baseline({}, "MyQwen2", BASELINE))
    assert find_baseline(transport, path, "other", never) is None
    assert find_baseline(transport, path, "MyQwen2", stored) == BASELINE
    assert find_baseline(transport, path, "MyQwen2", lambda: stored(system="another")) is None
    assert find_baseline(transport, path, "MyQwen2", lambda: None) is None
    assert [entry.name for entry in Path(path).parent.iterdir()] == ["baselines.json"]


@pytest.mark.parametrize("text", ["{", "[]", '{"m": [{}]}', '{"m": 1}', '{"m": [{"rates": {"x": {}}}]}', "1"])
def test_a_file_of_another_hand_is_an_error_with_its_path(tmp_path: Path, text: str) -> None:
    (tmp_path / "baselines.json").write_text(text)
    with pytest.raises(CommandFailed, match=r"baselines\.json` cannot be read"):
        read_baselines(LocalTransport("box"), PurePosixPath(tmp_path / "baselines.json"))
