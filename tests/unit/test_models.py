"""models.toml and pins.toml: what is read, and every problem with its line."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from deploy.errors import ExitCode, FleetError, InputErrors, ModelError, PinError, TemplateRefused
from deploy.models import (
    ModelSpec,
    desired_model,
    find_model,
    parse_models,
    parse_pins,
    render_as_published,
    rendered_modelfile,
)
from deploy.pins import SERVER_REPO, check_deployable, check_version, parse_version, version_warning
from deploy.render import render_modelfile

MODELFILES = Path(__file__).parents[2] / "modelfiles"
GOLDEN = Path(__file__).parent / "data" / "render"
SHA = "0123456789abcdef" * 4


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A copy of the shipped directory to break."""
    return Path(shutil.copytree(MODELFILES, tmp_path / "modelfiles"))


def problems_of(error: FleetError) -> tuple[FleetError, ...]:
    return error.problems if isinstance(error, InputErrors) else (error,)


def refused_models(directory: Path, text: str) -> tuple[FleetError, ...]:
    (directory / "models.toml").write_text(text, encoding="utf-8")
    with pytest.raises((ModelError, InputErrors)) as caught:
        parse_models(directory)
    assert caught.value.exit_code == ExitCode.USAGE
    return problems_of(caught.value)


def refused_pins(tmp_path: Path, text: str) -> tuple[FleetError, ...]:
    (tmp_path / "pins.toml").write_text(text, encoding="utf-8")
    with pytest.raises((PinError, InputErrors)) as caught:
        parse_pins(tmp_path / "pins.toml")
    assert caught.value.exit_code == ExitCode.USAGE
    return problems_of(caught.value)


def model_table(name: str = "canary", **changes: str) -> str:
    values = {
        "weights": '{ repo = ".", file = "canary/canary.gguf" }',
        "modelfile": '"canary.Modelfile.j2"',
        "tools": "true",
        **changes,
    }
    return "\n".join([f"[{name}]", *(f"{key} = {value}" for key, value in values.items())]) + "\n"


def weights_pin(**changes: str) -> str:
    values = {
        "repo": '"qwen/Qwen2-7B-Instruct-GGUF"',
        "revision": '"abc"',
        "file": '"qwen2-7b-instruct-q5_k_m.gguf"',
        "size_bytes": "5",
        "sha256": f'"{SHA}"',
        **changes,
    }
    return "\n".join(["[[weights]]", *(f"{key} = {value}" for key, value in values.items() if value)]) + "\n"


def server_pin(version: str, architecture: str = "amd64", **changes: str) -> str:
    values = {
        "version": f'"{version}"',
        "revision": '"abc"',
        "file": f'"ollama-linux-{architecture}.tgz"',
        "architecture": f'"{architecture}"',
        "size_bytes": "5",
        "sha256": f'"{SHA}"',
        **changes,
    }
    return "\n".join(["[[server]]", *(f"{key} = {value}" for key, value in values.items())]) + "\n"


# What is shipped.


def test_the_project_ships_two_models_with_tools() -> None:
    models = parse_models(MODELFILES)
    assert list(models) == ["myqwen2", "canary"]
    assert all(spec.uses_tools for spec in models.values())
    assert {name: spec.cases for name, spec in models.items()} == {"myqwen2": "extended", "canary": "core"}
    assert models["myqwen2"].repo == "qwen/Qwen2-7B-Instruct-GGUF"
    assert models["myqwen2"].file == "qwen2-7b-instruct-q5_k_m.gguf"


def test_the_shipped_pins_hold_only_the_canary_and_its_bytes_are_these() -> None:
    pins = parse_pins(MODELFILES / "pins.toml")
    (canary,) = pins.artefacts
    assert pins.servers == ()
    assert canary.local_path is not None
    data = Path(canary.local_path).read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (canary.size_bytes, canary.sha256)


def test_the_card_of_the_canary_tells_the_size_and_sha256_of_the_file() -> None:
    card = (MODELFILES / "canary" / "README.md").read_text(encoding="utf-8")
    data = (MODELFILES / "canary" / "canary.gguf").read_bytes()
    assert f"{len(data):,} bytes" in card
    assert hashlib.sha256(data).hexdigest() in card


def test_the_canary_is_a_desired_model() -> None:
    model = desired_model(
        "canary", parse_models(MODELFILES), parse_pins(MODELFILES / "pins.toml"), MODELFILES
    )
    assert model.weights.file == "canary/canary.gguf"
    assert model.uses_tools
    assert model.cases == "core"
    assert model.modelfile.parameters["num_thread"] == 1
    assert model.modelfile.parameters["num_ctx"] == 4096
    assert "repeat_penalty" in model.modelfile.parameters


def test_myqwen2_without_a_pin_stops_and_names_the_command() -> None:
    with pytest.raises(PinError) as caught:
        desired_model("myqwen2", parse_models(MODELFILES), parse_pins(MODELFILES / "pins.toml"), MODELFILES)
    assert caught.value.sentence == "no pin for `qwen/Qwen2-7B-Instruct-GGUF/qwen2-7b-instruct-q5_k_m.gguf`"
    assert caught.value.hint == "./fleet pin"
    assert caught.value.exit_code == ExitCode.USAGE


def test_myqwen2_with_a_pin_has_the_weights_and_no_local_path(directory: Path) -> None:
    (directory / "pins.toml").write_text(weights_pin(), encoding="utf-8")
    model = desired_model("myqwen2", parse_models(directory), parse_pins(directory / "pins.toml"), directory)
    assert (model.weights.revision, model.weights.size_bytes, model.weights.sha256) == ("abc", 5, SHA)
    assert model.weights.local_path is None
    assert model.modelfile.text == (GOLDEN / "myqwen2.Modelfile").read_text(encoding="utf-8")


def test_as_published_is_the_published_text() -> None:
    models = parse_models(MODELFILES)
    published = (GOLDEN / "myqwen2.as-published.Modelfile").read_text(encoding="utf-8")
    assert render_as_published(models["myqwen2"], MODELFILES) == published
    with pytest.raises(ModelError, match="`canary` has no published Modelfile"):
        render_as_published(models["canary"], MODELFILES)


# models.toml.


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[a]\nb = \n", 2),
        ("[a\n", 1),
        ("[a]\n[a]\n", 2),
        ('a = """\n\n', 2),
        ("[my/qwen]\n", 1),
        ("[a]\nx=1\nx=2\n", 3),
    ],
)
def test_broken_toml_is_refused_with_its_line(directory: Path, text: str, line: int) -> None:
    (problem,) = refused_models(directory, text)
    assert problem.sentence == "`models.toml` is not TOML"
    assert (problem.path, problem.line) == (str(directory / "models.toml"), line)


@pytest.mark.parametrize("version", ["0.30.0-rc1", "0.30.0", "0.32.15", "1.0.0"])
def test_a_release_that_rewrites_the_weights_is_refused_for_a_deploy(version: str) -> None:
    with pytest.raises(PinError, match=f"ollama `{version}` cannot be deployed yet"):
        check_deployable(version)


def test_a_release_that_keeps_the_weights_may_be_deployed() -> None:
    check_deployable("0.24.0")


def test_a_missing_models_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"`models\.toml` is not there"):
        parse_models(tmp_path)


@pytest.mark.parametrize(
    ("text", "line", "said", "hint"),
    [
        (model_table(modlefile="1"), 5, "unknown key `canary.modlefile`", "did you mean `modelfile`?"),
        (
            model_table(weights='{ repo = ".", flie = "canary/canary.gguf" }'),
            2,
            "unknown key `canary.weights.flie`",
            None,
        ),
        ("[canary]\ntools = true\n", 1, "the key `canary.weights` is missing", None),
        (model_table(tools='"yes"'), 4, "`canary.tools` has a wrong value", None),
        (model_table(cases='"all"'), 5, "`canary.cases` has a wrong value", None),
        (model_table(tools="1"), 4, "`canary.tools` has a wrong value", None),
        (
            model_table(weights='{ repo = "x", file = "a" }'),
            2,
            "`canary.weights.repo` has a wrong value",
            None,
        ),
        (
            model_table(weights='{ repo = ".", file = "../a" }'),
            2,
            "`canary.weights.file` has a wrong value",
            None,
        ),
        (model_table(modelfile='"/etc/passwd"'), 3, "`canary.modelfile` has a wrong value", None),
        (model_table(modelfile='""'), 3, "`canary.modelfile` has a wrong value", None),
        ("canary = 1\n", 1, "`canary` has a wrong value", None),
        (model_table(modelfile='"gone.j2"'), 3, "the model `canary` has no Modelfile", None),
        (model_table(weights='{ repo = ".", file = "gone.gguf" }'), 2, "has no weights file", None),
        (model_table(as_published='"gone.j2"'), 5, "the model `canary` has no Modelfile", None),
    ],
)
def test_a_wrong_key_or_value_is_refused_with_its_line(
    directory: Path, text: str, line: int, said: str, hint: str | None
) -> None:
    problems = refused_models(directory, text)
    assert any(said in problem.sentence and problem.line == line for problem in problems), problems
    assert hint is None or problems[0].hint == hint


def test_all_problems_are_shown_at_once(directory: Path) -> None:
    text = model_table("Canary", tools="1") + model_table("canary", weights="2") + model_table('"a b"')
    problems = refused_models(directory, text)
    assert [problem.line for problem in problems] == sorted(problem.line or 0 for problem in problems)
    assert len(problems) == 4


@pytest.mark.parametrize(
    "name",
    ["a b", "-a", ".a", "..", "../a", "a/b", "registry.ollama.ai/library/a", "a:b",
     "canary:candidate", "latest", "Previous", "candidate", "", "ä", "a\\n", "a" * 81, "a@sha256",
     "$(id)", "a;b", "a\\u0000b",
     "\\u202ea"],
)  # fmt: skip
def test_a_hostile_name_is_refused_with_its_line(directory: Path, name: str) -> None:
    (problem,) = refused_models(directory, "# here\n" + model_table(f'"{name}"'))
    assert "cannot be the name of a model" in problem.sentence
    assert problem.sentence.isascii()
    assert problem.sentence.isprintable()
    assert problem.line == 2


@pytest.mark.parametrize("name", ["a", "_", "qwen2.5-coder_7B", "0", "A" * 80, "a.b", "a--"])
def test_every_name_that_ollama_takes_is_taken(directory: Path, name: str) -> None:
    (directory / "models.toml").write_text(model_table(f'"{name}"'), encoding="utf-8")
    assert list(parse_models(directory)) == [name]


def test_two_names_that_differ_in_case_only_are_refused(directory: Path) -> None:
    (problem,) = refused_models(directory, model_table("myQwen2") + model_table("MyQwen2"))
    assert problem.sentence == "`MyQwen2` and `myQwen2` are one name on the server"
    assert problem.line == 5


def test_an_unknown_model_is_refused_with_the_nearest_name() -> None:
    models = parse_models(MODELFILES)
    with pytest.raises(ModelError) as caught:
        find_model("myqwen", models)
    assert caught.value.hint == "did you mean `myqwen2`?"
    with pytest.raises(ModelError) as caught:
        find_model("zzz", models)
    assert caught.value.hint == "it has myqwen2, canary"
    assert find_model("MYQWEN2", models).name == "myqwen2"


def test_a_modelfile_is_rendered_and_linted_without_any_pin(directory: Path) -> None:
    spec = parse_models(directory)["myqwen2"]
    assert rendered_modelfile(spec, directory).text == (GOLDEN / "myqwen2.Modelfile").read_text(
        encoding="utf-8"
    )
    edited(directory, "qwen2-tools.template", "{{ json .Function }}", "{{ .Function }}")
    with pytest.raises(TemplateRefused):
        rendered_modelfile(spec, directory)


# Modelfiles.


def edited(directory: Path, file: str, old: str, new: str) -> int:
    """Replace `old` once; its line."""
    path = directory / file
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")
    return text[: text.index(old)].count("\n") + 1


def refused_canary(directory: Path) -> FleetError:
    with pytest.raises(FleetError) as caught:
        desired_model("canary", parse_models(directory), parse_pins(directory / "pins.toml"), directory)
    assert caught.value.exit_code == ExitCode.USAGE
    return caught.value


def test_an_edited_parameter_changes_the_desired_model_and_nothing_else(directory: Path) -> None:
    before = desired_model("canary", parse_models(directory), parse_pins(directory / "pins.toml"), directory)
    edited(directory, "canary.Modelfile.j2", "num_ctx 4096", "num_ctx 2048")
    after = desired_model("canary", parse_models(directory), parse_pins(directory / "pins.toml"), directory)
    assert dict(after.modelfile.parameters) == {**before.modelfile.parameters, "num_ctx": 2048}
    assert after.modelfile.template == before.modelfile.template


def test_a_parameter_is_refused_at_the_line_of_the_source_file(directory: Path) -> None:
    line = edited(directory, "canary.Modelfile.j2", "num_ctx 4096", "num_ctx lots")
    error = refused_canary(directory)
    assert isinstance(error, ModelError)
    assert (error.path, error.line) == (str(directory / "canary.Modelfile.j2"), line)


def test_a_template_is_refused_at_the_line_of_the_included_file(directory: Path) -> None:
    line = edited(directory, "qwen2-tools.template", "{{ json .Function }}", "{{ .Function }}")
    error = refused_canary(directory)
    assert isinstance(error, TemplateRefused)
    assert (error.path, error.line) == (str(directory / "qwen2-tools.template"), line)


def test_a_model_without_tools_may_have_a_template_without_them(directory: Path) -> None:
    edited(directory, "canary.Modelfile.j2", '[% include "qwen2-tools.template" %]', "{{ .Prompt }}")
    assert isinstance(refused_canary(directory), InputErrors)
    (directory / "models.toml").write_text(model_table(tools="false"), encoding="utf-8")
    model = desired_model("canary", parse_models(directory), parse_pins(directory / "pins.toml"), directory)
    assert not model.uses_tools


def test_a_modelfile_for_other_weights_is_refused(directory: Path) -> None:
    line = edited(directory, "canary.Modelfile.j2", "[[ weights ]]", "other.gguf")
    error = refused_canary(directory)
    assert error.sentence == "`FROM ./other.gguf` does not name the weights of `canary`"
    assert error.line == line


def test_a_modelfile_that_is_gone_is_refused_with_its_path(directory: Path) -> None:
    (directory / "canary.Modelfile.j2").unlink()
    with pytest.raises(ModelError) as caught:
        parse_models(directory)
    assert str(directory / "canary.Modelfile.j2") in caught.value.sentence


def test_the_file_included_by_both_that_is_gone_is_named(directory: Path) -> None:
    (directory / "qwen2-tools.template").unlink()
    assert "includes `qwen2-tools.template`" in refused_canary(directory).sentence


def test_a_missing_pin_and_a_refused_template_are_shown_together(directory: Path) -> None:
    edited(directory, "qwen2-tools.template", "{{ json .Function }}", "{{ .Function }}")
    (directory / "pins.toml").write_text("", encoding="utf-8")
    error = refused_canary(directory)
    assert {type(problem) for problem in problems_of(error)} == {PinError, TemplateRefused}


def test_the_spec_renders_with_the_name_and_the_weights(tmp_path: Path) -> None:
    (tmp_path / "m.j2").write_text(
        "# [[ name ]]\nFROM ./[[ weights ]]\nTEMPLATE {{ .Prompt }}\n", encoding="utf-8"
    )
    (tmp_path / "pins.toml").write_text(weights_pin(repo='"a/b"', file='"sub/w.gguf"'), encoding="utf-8")
    spec = ModelSpec(name="m", repo="a/b", file="sub/w.gguf", modelfile="m.j2", uses_tools=False)
    model = desired_model("m", {"m": spec}, parse_pins(tmp_path / "pins.toml"), tmp_path)
    assert model.modelfile.text == "# m\nFROM ./w.gguf\nTEMPLATE {{ .Prompt }}\n"
    assert render_modelfile(tmp_path / "m.j2", {"name": "m", "weights": "w.gguf"}) == model.modelfile.text


# pins.toml.


def test_the_newest_release_is_taken_where_none_is_named(tmp_path: Path) -> None:
    versions = ["0.17.5", "0.32.15", "0.32.9", "0.33.0-rc1", "0.24.0"]
    path = tmp_path / "pins.toml"
    path.write_text("".join(server_pin(version) for version in versions), encoding="utf-8")
    pins = parse_pins(path)
    assert pins.server(None, "amd64").version == "0.33.0-rc1"
    assert pins.server("0.17.5", "amd64").archive.repo == SERVER_REPO
    assert pins.server("v0.24.0", "amd64").version == "0.24.0"
    assert sorted(versions, key=parse_version) == ["0.17.5", "0.24.0", "0.32.9", "0.32.15", "0.33.0-rc1"]
    assert parse_version("0.33.0-rc1") < parse_version("0.33.0")


def test_an_architecture_without_a_pin_is_told_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "pins.toml").write_text(server_pin("0.32.15"), encoding="utf-8")
    pins = parse_pins(tmp_path / "pins.toml")
    with pytest.raises(PinError) as caught:
        pins.server("0.32.15", "arm64")
    assert caught.value.sentence == "no pin for `ollama 0.32.15 (arm64)`"
    assert "amd64" in (caught.value.cause or "")
    with pytest.raises(PinError, match=r"no pin for `ollama 0\.24\.0 \(amd64\)`") as caught:
        pins.server("0.24.0", "amd64")
    assert caught.value.cause == "pinned are 0.32.15"
    assert caught.value.hint == "./fleet pin"


@pytest.mark.parametrize("version", ["0.17.0", "v0.16.9", "0.0.1", "0.17.1-rc1"])
def test_a_release_that_leaks_its_memory_is_refused(tmp_path: Path, version: str) -> None:
    with pytest.raises(PinError, match="CVE-2026-7482"):
        check_version(version)
    (problem,) = refused_pins(tmp_path, weights_pin() + server_pin(version))
    assert problem.line == 8
    (tmp_path / "pins.toml").write_text("", encoding="utf-8")
    with pytest.raises(PinError, match="is refused"):
        parse_pins(tmp_path / "pins.toml").server(version, "amd64")


def test_an_old_release_is_allowed_with_a_warning() -> None:
    assert "0.32.15" in (version_warning("0.17.5") or "")
    assert version_warning("0.32.15") is None
    assert version_warning("0.33.0") is None
    check_version("0.17.1")


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (weights_pin(sha256='"abc"'), 6, "`weights.sha256`"),
        (weights_pin(sha256=f'"{SHA.upper()}"'), 6, "`weights.sha256`"),
        (weights_pin(sha256=f'"sha256:{SHA}"'), 6, "`weights.sha256`"),
        (weights_pin(sha256=f'"{SHA}\\n"'), 6, "`weights.sha256`"),
        (weights_pin(size_bytes="0"), 5, "`weights.size_bytes`"),
        (weights_pin(size_bytes='"5"'), 5, "`weights.size_bytes`"),
        (weights_pin(size_bytes="5.0"), 5, "`weights.size_bytes`"),
        (weights_pin(file='"../a"'), 4, "`weights.file`"),
        (weights_pin(repo='"a"'), 2, "`weights.repo`"),
        (weights_pin(revision='""'), 3, "`weights.revision`"),
        (weights_pin(revision=""), 1, "`weights.revision`"),
        (weights_pin(sha265='"a"'), 7, "unknown key `weights.sha265`"),
        (weights_pin() + "\n" + weights_pin(), 8, "is pinned twice"),
        (weights_pin() + weights_pin(file='"b"', size_bytes="-1"), 11, "`weights.size_bytes`"),
        (server_pin("0.32.15", "amd64") + server_pin("v0.32.15", "amd64"), 8, "is pinned twice"),
        (server_pin("0.32.15", "x86_64"), 5, "`server.architecture`"),
        (server_pin("newest"), 2, "`server.version`"),
        ("[[sever]]\n", 1, "unknown key `sever`"),
        ("[weights]\n", 1, "`weights` is not a list of tables"),
        ("[[weights]\n", 1, "`pins.toml` is not TOML"),
    ],
)
def test_a_wrong_pin_is_refused_with_its_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    (problem,) = refused_pins(tmp_path, text)
    assert said in problem.sentence
    assert (problem.path, problem.line) == (str(tmp_path / "pins.toml"), line)


def test_all_wrong_pins_are_shown_at_once(tmp_path: Path) -> None:
    problems = refused_pins(
        tmp_path, weights_pin(size_bytes="0", sha256='"x"') + server_pin("0.1.0") + "[[a]]\n"
    )
    assert [problem.line for problem in problems] == [5, 6, 8, 14]
