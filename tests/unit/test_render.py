"""Modelfiles: rendered as their golden files, read as Ollama reads them, refused with their line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.desired import Artefact, DesiredModel
from deploy.errors import InputErrors, ModelError
from deploy.modelfile import PARAMETER_TYPES, parse_commands
from deploy.render import create_request, parse_modelfile, render_modelfile, render_with_sources

ROOT = Path(__file__).parents[2]
MODELFILES = ROOT / "modelfiles"
GOLDEN = Path(__file__).parent / "data" / "render"


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("myqwen2", "qwen2-7b-instruct-q5_k_m.gguf"),
        ("canary", "canary.gguf"),
        ("myqwen2.as-published", "x.gguf"),
    ],
)
def test_a_shipped_modelfile_renders_as_its_golden_file(name: str, weights: str) -> None:
    text = render_modelfile(MODELFILES / f"{name}.Modelfile.j2", {"name": name, "weights": weights})
    assert text == (GOLDEN / f"{name}.Modelfile").read_text(encoding="utf-8")


def test_myqwen2_has_the_parameters_of_the_article_and_ours() -> None:
    text = (GOLDEN / "myqwen2.Modelfile").read_text(encoding="utf-8")
    assert parse_modelfile(text, "m").parameters == {
        "temperature": 0.7,
        "top_p": 0.8,
        "repeat_penalty": 1.05,
        "num_ctx": 8192,
        "stop": ["<|im_start|>", "<|im_end|>"],
    }


def test_both_shipped_models_have_one_template_that_ends_without_a_line_break() -> None:
    first, second = (
        parse_modelfile((GOLDEN / f"{name}.Modelfile").read_text(encoding="utf-8"), name).template
        for name in ("myqwen2", "canary")
    )
    assert first == second
    assert first.endswith("<|im_start|>assistant\n{{ end }}")


def test_every_rendered_line_is_found_again_in_its_source() -> None:
    rendered = render_with_sources(MODELFILES / "myqwen2.Modelfile.j2", {"name": "n", "weights": "w"})
    checked = 0
    for number, line in enumerate(rendered.text.splitlines(), start=1):
        path, at = rendered.locate(number)
        source = Path(path).read_text(encoding="utf-8").splitlines()[at - 1]
        if "[[" not in source and '"""' not in line:
            assert source == line
            checked += 1
    assert checked > 50


def test_a_tag_over_several_lines_keeps_the_origin_of_the_lines_after_it(tmp_path: Path) -> None:
    path = tmp_path / "m.Modelfile.j2"
    path.write_text("[# a\nb #]\nFROM [[\n weights ]]\n[% if true\n %]\n# c\n[% endif %]\n", encoding="utf-8")
    rendered = render_with_sources(path, {"weights": "w"})
    assert rendered.text == "FROM w\n# c\n"
    assert rendered.locate(1) == (str(path), 3)
    assert rendered.locate(2) == (str(path), 7)


def test_a_missing_modelfile_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no Modelfile `.*gone\.Modelfile\.j2`"):
        render_modelfile(tmp_path / "gone.Modelfile.j2", {})


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("# a\nFROM [[ wieghts ]]\n", 2, "variable that does not exist"),
        ("FROM x\n[% if %]\n", 2, "no jinja2 template"),
        ("FROM x\n[% if true %]\n", 2, "no jinja2 template"),
        ('FROM x\n[% include "gone" %]\n', None, "includes `gone`"),
        ('FROM x\n[% include "m.Modelfile.j2" %]\n', None, "includes itself"),
        ('FROM x\n[% include "../secret" %]\n', None, "includes `../secret`"),
    ],
)
def test_a_broken_jinja2_tag_is_refused_with_its_line(
    tmp_path: Path, text: str, line: int | None, said: str
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    path = tmp_path / "sub" / "m.Modelfile.j2"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ModelError) as caught:
        render_modelfile(path, {"weights": "w"})
    assert said in caught.value.sentence
    assert caught.value.line == line
    assert caught.value.path == str(path)


def test_a_modelfile_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.Modelfile.j2"
    path.write_bytes(b"FROM \xff\n")
    with pytest.raises(ModelError, match="not UTF-8"):
        render_modelfile(path, {})


def test_values_end_where_their_quotes_do() -> None:
    text = (
        'FROM ./a b.gguf\n\tSYSTEM """two\n# no comment\n"lines" """\n'
        'PARAMETER stop "a b"\r\nparameter stop c"d\n'
        'TEMPLATE "one\ntwo"'
    )
    read = [(command.name, command.key, command.value, command.line) for command in parse_commands(text, "m")]
    assert read == [
        ("from", "", "./a b.gguf", 1),
        ("system", "", 'two\n# no comment\n"lines" ', 2),
        ("parameter", "stop", "a b", 5),
        ("parameter", "stop", 'c"d', 6),
        ("template", "", "one\ntwo", 7),
    ]


@pytest.mark.parametrize(
    ("text", "line", "said", "hint"),
    [
        ("FROM x\nNOSUCH y\n", 2, "`nosuch` is not an instruction", None),
        ("FROM x\nPARAMETR top_k 1\n", 2, "`parametr` is not an instruction", "did you mean `PARAMETER`?"),
        ("FROM x\n\n- y\n", 3, "`-` is not an instruction", None),
        ("FROM x\n\u200bFROM y\n", 2, "`U+200B` is not an instruction", None),
        ("FROM\n", 1, "`FROM` has no value", None),
        ("FROM x\nPARAMETER  top_k 1\n", 2, "one blank", None),
        ("FROM x\nPARAMETER top_k\n", 2, "`top_k` has no value", None),
        ('FROM x\n\nTEMPLATE """a\nb\n', 3, "quotes of `TEMPLATE` are never closed", None),
        ("FROM x\nSYSTEM a\u200bb\n", 2, "U+200B", None),
        ("# only a comment\n", None, "no `FROM`", None),
        ("FROM x\nFROM y\n", 2, "`FROM` is given twice, first in line 1", None),
        ('FROM x\nTEMPLATE a\nTEMPLATE """b"""\n', 3, "`TEMPLATE` is given twice", None),
        ("FROM x\nADAPTER y\n", 2, "`ADAPTER` is not supported", None),
        ("FROM x\nMESSAGE user hi\n", 2, "`MESSAGE` is not supported", None),
        ("FROM x\nLICENSE free\n", 2, "`LICENSE` is not supported", None),
        (
            "FROM x\nPARAMETER temprature 1\n",
            2,
            "unknown parameter `temprature`",
            "did you mean `temperature`?",
        ),
        ("FROM x\nPARAMETER zzz 1\n", 2, "unknown parameter `zzz`", None),
        (
            "FROM x\nPARAMETER Temperature 1\n",
            2,
            "unknown parameter `Temperature`",
            "did you mean `temperature`?",
        ),
        ("FROM x\nPARAMETER mirostat 1\n", 2, "deprecated", None),
        ("FROM x\nPARAMETER num_ctx many\n", 2, "`num_ctx` has a wrong value", None),
        ("FROM x\nPARAMETER num_ctx 8192.0\n", 2, "`num_ctx` has a wrong value", None),
        ("FROM x\nPARAMETER num_ctx 9223372036854775808\n", 2, "`num_ctx` has a wrong value", None),
        ("FROM x\nPARAMETER top_p 0,8\n", 2, "`top_p` has a wrong value", None),
        ("FROM x\nPARAMETER top_p nan\n", 2, "`top_p` has a wrong value", None),
        ("FROM x\nPARAMETER top_p 1e39\n", 2, "`top_p` has a wrong value", None),
        (
            "FROM x\nPARAMETER top_p 0.8 # c\n",
            2,
            "`top_p` has a wrong value",
            "a comment cannot follow a value on its line",
        ),
        ("FROM x\nPARAMETER use_mmap yes\n", 2, "`use_mmap` has a wrong value", None),
        ('FROM x\nPARAMETER stop ""\n', 2, "empty `stop`", None),
        ("FROM x\nPARAMETER top_k 1\nPARAMETER top_k 1\n", 3, "`top_k` is given twice", None),
    ],
)
def test_a_modelfile_that_cannot_be_used_is_refused_with_its_line(
    text: str, line: int | None, said: str, hint: str | None
) -> None:
    with pytest.raises(ModelError) as caught:
        parse_modelfile(text, "m.j2")
    assert said in caught.value.sentence
    assert (caught.value.path, caught.value.line) == ("m.j2", line)
    assert hint is None or caught.value.hint == hint


def test_all_problems_of_a_modelfile_are_shown_at_once() -> None:
    with pytest.raises(InputErrors) as caught:
        parse_modelfile("PARAMETER zzz 1\nADAPTER y\nFROM x\nPARAMETER num_ctx many\n", "m")
    assert [problem.line for problem in caught.value.problems] == [1, 2, 4]


VALUES = {
    "integer": st.integers(-(2**63), 2**63 - 1),
    "number": st.floats(allow_nan=False, allow_infinity=False, width=32),
    "boolean": st.booleans(),
    "text": st.lists(
        st.text(st.characters(codec="ascii", categories=["L", "N", "S"]), min_size=1), min_size=1
    ),
}


@given(
    parameters=st.fixed_dictionaries(
        {}, optional={name: VALUES[kind] for name, kind in PARAMETER_TYPES.items()}
    ),
    system=st.text(
        st.characters(codec="ascii", exclude_categories=["C"], exclude_characters='"'), min_size=1
    ),
)
def test_parameters_come_back_from_the_text_as_they_were(parameters: dict[str, object], system: str) -> None:
    lines = ["FROM x", f'SYSTEM """{system}"""']
    for name, value in parameters.items():
        values = [f'"{stop}"' for stop in value] if isinstance(value, list) else [str(value).lower()]
        lines += [f"PARAMETER {name} {text}" for text in values]
    read = parse_modelfile("\n".join(lines), "m")
    assert read.parameters == parameters
    assert read.system == system


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_with_a_designed_error(text: str) -> None:
    said = "error: m"
    try:
        parse_modelfile(f"FROM x\n{text}", "m")
    except (ModelError, InputErrors) as error:
        said = str(error)
    assert said.startswith("error: m")


def test_the_create_request_holds_what_the_api_takes() -> None:
    weights = Artefact(repo="a/b", revision="r", file="sub/w.gguf", size_bytes=1, sha256="0" * 64)
    modelfile = parse_modelfile(
        "FROM x\nTEMPLATE t\nPARAMETER top_k 1\nPARAMETER stop s\nSYSTEM be kind\n", "m"
    )
    model = DesiredModel(name="m", weights=weights, modelfile=modelfile, uses_tools=False)
    assert create_request(model, "m:candidate") == {
        "model": "m:candidate",
        "files": {"w.gguf": f"sha256:{'0' * 64}"},
        "template": "t",
        "parameters": {"top_k": 1, "stop": ["s"]},
        "system": "be kind",
        "stream": False,
    }


def test_a_model_without_a_system_text_sends_none() -> None:
    weights = Artefact(repo="a/b", revision="r", file="w.gguf", size_bytes=1, sha256="0" * 64)
    model = DesiredModel(
        name="m", weights=weights, modelfile=parse_modelfile("FROM x\nTEMPLATE t\n", "m"), uses_tools=False
    )
    assert "system" not in create_request(model, "m")
