"""Which release is chosen, what counts as a change of a pin, and how `pins.toml` is edited."""

from __future__ import annotations

import hashlib
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.desired import Artefact
from deploy.errors import MirrorError, ModelError, PinError, UsageError
from deploy.models import ModelSpec
from deploy.pin import _choose_tag, find_weights
from deploy.pins import PinnedServer, Pins, parse_pins
from deploy.pins_file import HEADER, PinChange, Wanted, compare_pins, read_pins_file, render_pins, write_pins

SHA = "0123456789abcdef" * 4
OTHER = "fedcba9876543210" * 4
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEXT = f"""\
# a header of somebody's own

# why this one: the driver on gpu07 is old
[[server]]
version = "0.17.5"   # the article's
revision = "v0.17.5"
file = "ollama-linux-amd64.tgz"
architecture = "amd64"
size_bytes = 10
sha256 = "{SHA}"

[[weights]] # two models share them
repo = "qwen/some-GGUF"
sha256 = "{SHA}"
revision = "master"
file = "some.gguf"
size_bytes = 20
# the end
"""


def server(version: str = "0.17.5", sha256: str = SHA, architecture: str = "amd64") -> PinnedServer:
    archive = Artefact(
        repo="modelscope/ollama-linux",
        revision=f"v{version}",
        file=f"ollama-linux-{architecture}.tgz",
        size_bytes=10,
        sha256=sha256,
    )
    return PinnedServer(version=version, architecture=architecture, archive=archive)


def weights(sha256: str = SHA, size_bytes: int = 20, revision: str = "master") -> Artefact:
    return Artefact(
        repo="qwen/some-GGUF", revision=revision, file="some.gguf", size_bytes=size_bytes, sha256=sha256
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "pins.toml"
    file.write_text(TEXT)
    return file


def changes_for(
    path: Path, *servers: PinnedServer, files: tuple[Artefact, ...] = ()
) -> tuple[PinChange, ...]:
    _, old = read_pins_file(path, path.parent)
    return compare_pins(old, Wanted(servers=servers, weights=files))


def apply(path: Path, *changes: PinChange) -> Pins:
    write_pins(path, path.read_text() if path.exists() else HEADER, changes, path.parent)
    return parse_pins(path)


@pytest.mark.parametrize(
    ("version", "tags", "chosen"),
    [
        (None, ["v0.17.8", "v0.32.15", "v0.9.6"], "v0.32.15"),
        (None, ["v0.33.0-rc2", "v0.32.15"], "v0.32.15"),
        (None, ["nightly", "v0.32.15", "latest"], "v0.32.15"),
        (None, ["v0.100.0", "v0.99.9"], "v0.100.0"),
        ("0.17.5", ["v0.32.15", "v0.17.5"], "v0.17.5"),
        ("v0.17.5", ["v0.32.15", "0.17.5"], "0.17.5"),
        ("0.33.0-rc2", ["v0.33.0-rc2", "v0.32.15"], "v0.33.0-rc2"),
    ],
)
def test_the_highest_release_is_chosen_and_a_candidate_only_by_name(
    version: str | None, tags: list[str], chosen: str
) -> None:
    assert _choose_tag(version, tags) == chosen


def test_an_unknown_version_is_told_with_the_tags_and_the_nearest_one() -> None:
    with pytest.raises(MirrorError) as caught:
        _choose_tag("0.17.6", ["v0.32.15", "v0.17.5"])
    assert "has no release `0.17.6`" in caught.value.sentence
    assert "v0.32.15, v0.17.5" in str(caught.value.cause)
    assert caught.value.hint == "./fleet pin --version 0.17.5"


@pytest.mark.parametrize("tags", [[], ["nightly"], ["v0.33.0-rc2"]])
def test_a_repository_without_a_release_is_an_error(tags: list[str]) -> None:
    with pytest.raises(MirrorError, match="has no release"):
        _choose_tag(None, tags)


def test_the_same_pins_are_no_change(path: Path) -> None:
    assert changes_for(path, server(), files=(weights(),)) == ()


def test_another_name_for_the_same_bytes_is_no_change(path: Path) -> None:
    assert changes_for(path, files=(weights(revision="v1.0.0"),)) == ()


def test_a_commit_takes_the_place_of_a_name_that_can_be_moved_and_stays(path: Path) -> None:
    (change,) = changes_for(path, files=(weights(revision=COMMIT),))
    assert change.differences == (("revision", "master", COMMIT),)
    apply(path, change)
    assert changes_for(path, files=(weights(),)) == ()


def test_other_bytes_are_shown_as_old_and_new(path: Path) -> None:
    (change,) = changes_for(path, files=(weights(OTHER, 21),))
    assert change.differences == (("size_bytes", 20, 21), ("sha256", SHA, OTHER))


def test_another_release_or_architecture_comes_beside_the_pinned_one(path: Path) -> None:
    changes = changes_for(path, server("0.32.15"), server(architecture="arm64"))
    assert [(change.index, change.old) for change in changes] == [(None, None), (None, None)]
    pins = apply(path, *changes)
    assert {(known.version, known.architecture) for known in pins.servers} == {
        ("0.17.5", "amd64"),
        ("0.32.15", "amd64"),
        ("0.17.5", "arm64"),
    }


def test_only_the_lines_that_change_are_touched(path: Path) -> None:
    apply(path, *changes_for(path, files=(weights(OTHER, 21),)))
    before, after = TEXT.splitlines(), path.read_text().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert changed == [
        (f'sha256 = "{SHA}"', f'sha256 = "{OTHER}"'),
        ("size_bytes = 20", "size_bytes = 21"),
    ]
    assert parse_pins(path).servers == (server(),)


def test_a_new_pin_comes_at_the_end_and_everything_before_it_stays(path: Path) -> None:
    apply(path, *changes_for(path, server("0.32.15", OTHER)))
    assert path.read_text().startswith(TEXT)
    assert parse_pins(path).servers == (server(), server("0.32.15", OTHER))


def test_a_file_that_is_not_there_yet_is_made_with_its_header(tmp_path: Path) -> None:
    path = tmp_path / "pins.toml"
    pins = apply(path, *changes_for(path, server(), files=(weights(),)))
    assert path.read_text().startswith(HEADER)
    assert (pins.servers, pins.artefacts) == ((server(),), (weights(),))
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_the_mode_of_the_file_stays_and_no_temporary_file_is_left(path: Path) -> None:
    path.chmod(0o640)
    apply(path, *changes_for(path, server("0.32.15")))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(path.parent.iterdir()) == [path]


def test_a_link_stays_a_link(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "pins.toml"
    link.parent.mkdir()
    link.symlink_to(path)
    apply(link, *changes_for(link, server("0.32.15")))
    assert link.is_symlink()
    assert len(parse_pins(path).servers) == 2


def test_a_file_that_somebody_changed_meanwhile_is_not_overwritten(path: Path) -> None:
    changes = changes_for(path, server("0.32.15"))
    path.write_text(TEXT + "# mine\n")
    with pytest.raises(PinError, match="meanwhile"):
        write_pins(path, TEXT, changes, path.parent)
    assert path.read_text() == TEXT + "# mine\n"


INLINE = (
    '{ repo = "qwen/some-GGUF", revision = "master", file = "some.gguf", size_bytes = 20, '
    f'sha256 = "{SHA}" }}'
)


@pytest.mark.parametrize("wanted", [weights(OTHER), replace(weights(), file="new.gguf")])
def test_a_form_that_cannot_be_edited_is_refused_and_stays(tmp_path: Path, wanted: Artefact) -> None:
    path = tmp_path / "pins.toml"
    text = f"weights = [{INLINE}]\n"
    path.write_text(text)
    with pytest.raises(PinError, match="not edited"):
        apply(path, *changes_for(path, files=(wanted,)))
    assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_refuses_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    changes = changes_for(path, server("0.32.15"))
    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(PinError, match="No space left"):
        write_pins(path, TEXT, changes, path.parent)
    assert path.read_text() == TEXT
    assert list(path.parent.iterdir()) == [path]


def test_a_directory_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no directory"):
        read_pins_file(tmp_path / "nowhere" / "pins.toml", tmp_path)


def test_a_value_with_quotes_is_read_back_as_it_was(tmp_path: Path) -> None:
    odd = replace(weights(), file='a "quoted" name ü.gguf')
    path = tmp_path / "pins.toml"
    assert apply(path, *changes_for(path, files=(odd,))).artefacts == (odd,)


@pytest.mark.parametrize("newline", [b"\r\n", b"\n"])
def test_the_ends_of_lines_stay_as_they_are(path: Path, newline: bytes) -> None:
    text = TEXT.removesuffix("\n").encode().replace(b"\n", newline)
    path.write_bytes(text)
    changes = changes_for(path, server("0.32.15"), files=(weights(OTHER),))
    write_pins(path, text.decode(), changes, path.parent)
    written = path.read_bytes()
    assert written.count(b"\n") == written.count(newline) == len(written.splitlines())
    assert len(parse_pins(path).servers) == 2


def test_rendering_without_a_change_gives_the_text_back() -> None:
    assert render_pins(TEXT, ()) == TEXT


def contained(tmp_path: Path) -> ModelSpec:
    return ModelSpec(name="tiny", repo=".", file="tiny.gguf", modelfile="tiny.Modelfile.j2", uses_tools=True)


def test_contained_weights_are_read_from_their_file(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF" * 5)
    found = find_weights(contained(tmp_path), tmp_path)
    assert (found.size_bytes, found.revision) == (20, "contained")
    assert found.sha256 == hashlib.sha256(b"GGUF" * 5).hexdigest()
    assert found.local_path == str(tmp_path / "tiny.gguf")


def test_contained_weights_that_are_not_there_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        find_weights(contained(tmp_path), tmp_path)
