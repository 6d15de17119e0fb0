"""The database tool runs what a model wrote, for real and without risk."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from healthchecks import database
from healthchecks.database import (
    DatabaseTool,
    UnusableDatabaseError,
    check_database,
    describe_schema,
    make_database,
    most_tracks_album,
    schema_sql,
)

CHINOOK = Path(__file__).parent.parent / "data" / "chinook" / "Chinook_Sqlite.sqlite"
MOST_TRACKS = (
    "SELECT Album.Title FROM Album JOIN Track ON Album.AlbumId = Track.AlbumId"
    " GROUP BY Album.Title ORDER BY COUNT(*) DESC LIMIT 1"
)
ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT COUNT(*) FROM n"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    path = tmp_path / "made.sqlite"
    make_database(path, seed=7)
    return path


def change(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(sql)


def rows_of(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def test_the_made_database_has_the_tables_and_columns_of_the_real_one(made: Path) -> None:
    check_database(made)
    assert describe_schema(made) == describe_schema(CHINOOK)


def test_the_same_seed_makes_the_same_rows(made: Path, tmp_path: Path) -> None:
    make_database(tmp_path / "again.sqlite", seed=7)
    make_database(tmp_path / "other.sqlite", seed=8)
    assert rows_of(tmp_path / "again.sqlite") == rows_of(made)
    assert most_tracks_album(tmp_path / "other.sqlite") != most_tracks_album(made)


def test_made_rows_refer_to_rows_that_are_there(made: Path) -> None:
    with closing(sqlite3.connect(made)) as connection:
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        tables = [
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        assert all(connection.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0] > 0 for name in tables)


@pytest.mark.parametrize("seed", range(20))
def test_exactly_one_made_album_has_the_most_tracks(tmp_path: Path, seed: int) -> None:
    make_database(tmp_path / "made.sqlite", seed)
    (title,) = most_tracks_album(tmp_path / "made.sqlite")
    assert DatabaseTool(tmp_path / "made.sqlite").run(MOST_TRACKS) == f"[('{title}',)]"


def test_the_real_chinook_is_accepted_and_says_greatest_hits() -> None:
    check_database(CHINOOK)
    assert most_tracks_album(CHINOOK) == ("Greatest Hits",)
    assert DatabaseTool(CHINOOK).run(MOST_TRACKS) == "[('Greatest Hits',)]"


def test_several_albums_with_equally_many_tracks_are_all_right(tmp_path: Path) -> None:
    path = tmp_path / "tie.sqlite"
    change(path, schema_sql())
    change(path, "INSERT INTO Album VALUES (1, 'One', 1), (2, 'Two', 1), (3, 'Three', 1)")
    tracks = ", ".join(f"({n}, 'T', {album}, 1, 1, NULL, 1, 1, 1)" for n, album in enumerate((1, 1, 2, 2, 3)))
    change(path, f"INSERT INTO Track VALUES {tracks}")
    assert sorted(most_tracks_album(path)) == ["One", "Two"]


def test_the_schema_is_described_as_in_the_article(made: Path) -> None:
    lines = describe_schema(made).split("\n")
    assert lines[:2] == ["Table: Album", "Columns: AlbumId, Title, ArtistId"]
    assert len(lines) == 2 * 11


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("SELECT * FROM Nope", "no such table: Nope"),
        ("DROP TABLE Album", "not authorized"),
        ("INSERT INTO Genre VALUES (99, 'x')", "not authorized"),
        ("CREATE TEMP TABLE x (y)", "not authorized"),
        ("ATTACH '/tmp/x' AS y", "not authorized"),
        ("PRAGMA writable_schema = 1", "not authorized"),
        ("SELECT load_extension('x')", "not authorized"),
        ("SELECT 1; DELETE FROM Album", "one statement at a time"),
        ("SELECT zeroblob(900000000)", "not authorized"),
        ("SELECT replace(printf('%30000s', 'x'), ' ', printf('%100s', 'y'))", "too big"),
        ("SELECT printf('%30000s', 'x')", "the result has more than 20000 characters"),
        ("SELECT '\ud800'", "surrogates not allowed"),
        ("SELECT 1\0", "null character"),
        (ENDLESS, "it took longer than 0.05 s"),
    ],
)
def test_what_goes_wrong_is_text_for_the_model_and_changes_nothing(made: Path, sql: str, reason: str) -> None:
    before = rows_of(made)
    # On a busy machine opening the file takes longer than the endless query may.
    seconds = 0.05 if sql == ENDLESS else 30.0
    text = DatabaseTool(made, query_seconds=seconds).run(sql)
    assert text.startswith("query failed with error: ")
    assert reason in text
    assert rows_of(made) == before


def test_the_file_is_opened_for_reading_only(made: Path) -> None:
    with (
        closing(database._connect(made)) as connection,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        connection.execute("DELETE FROM Genre")


def test_more_rows_than_the_limit_are_cut_and_the_text_says_so(made: Path) -> None:
    text = DatabaseTool(made, most_rows=2).run("SELECT GenreId FROM Genre ORDER BY GenreId")
    assert text == "[(1,), (2,)] and more: only the first 2 rows"


def test_a_database_without_some_columns_is_refused_with_their_names(made: Path, tmp_path: Path) -> None:
    shutil.copy(made, tmp_path / "less.sqlite")
    change(tmp_path / "less.sqlite", "DROP TABLE Genre; ALTER TABLE Track RENAME COLUMN AlbumId TO Record;")
    with pytest.raises(UnusableDatabaseError, match="lacks what Chinook has") as caught:
        check_database(tmp_path / "less.sqlite")
    assert caught.value.missing == ("Genre", "Track.AlbumId")
    assert caught.value.path == tmp_path / "less.sqlite"


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<html>login</html>" * 100)
    with pytest.raises(UnusableDatabaseError, match="cannot be read as SQLite: file is not a database"):
        check_database(tmp_path / "page.html")
    with pytest.raises(UnusableDatabaseError, match="is not a file"):
        check_database(tmp_path / "missing.sqlite")
    assert not (tmp_path / "missing.sqlite").exists()


def test_a_damaged_database_is_refused(made: Path) -> None:
    content = bytearray(made.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    made.write_bytes(content)
    with pytest.raises(
        UnusableDatabaseError, match="cannot be read as SQLite: database disk image is malformed"
    ):
        most_tracks_album(made)


def test_a_database_without_tracks_has_no_answer_to_expect(tmp_path: Path) -> None:
    change(tmp_path / "empty.sqlite", schema_sql())
    with pytest.raises(UnusableDatabaseError, match="has no album with a track"):
        most_tracks_album(tmp_path / "empty.sqlite")
