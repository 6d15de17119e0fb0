"""The database behind the `ask_database` tool: made, checked, described, and asked without risk.

Any SQLite file with Chinook's tables and columns will do; `make_database` makes a small one. What the model
writes is run for real, but read-only and with limits on time, rows and size.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import random
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from healthchecks.sample_rows import sample_rows

QUERY_SECONDS = 5.0
MOST_ROWS = 50
LARGEST_VALUE_BYTES = 1_000_000
LARGEST_RESULT_CHARACTERS = 20_000
_STEPS_BETWEEN_LOOKS_AT_THE_CLOCK = 10_000
_DENIED_FUNCTIONS = ("load_extension", "randomblob", "zeroblob")
_ALLOWED_ACTIONS = (
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
)


class UnusableDatabaseError(ValueError):
    """A file given as the suite's database is not one with Chinook's tables and columns.

    `missing` names what it lacks, as `Album` or `Track.AlbumId`; it is empty where the file cannot be read
    at all.
    """

    def __init__(self, path: Path, reason: str, missing: Sequence[str] = ()) -> None:
        super().__init__(f"`{path}` {reason}")
        self.path = path
        self.reason = reason
        self.missing = tuple(missing)


def make_database(path: Path, seed: int) -> None:
    """Write a small database with Chinook's tables and columns to `path`, replacing what is there.

    The same seed gives the same rows. Exactly one album has the most tracks, another one for another seed,
    so that no model knows it by heart.
    """
    unfinished = path.with_name(path.name + ".part")
    unfinished.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(unfinished)) as connection:
        connection.execute("PRAGMA synchronous = OFF")  # whoever is interrupted makes it again
        connection.executescript(schema_sql())
        numbers = random.Random(seed)  # noqa: S311 - rows for a demonstration, not keys
        for table, rows in sample_rows(numbers).items():
            marks = ", ".join("?" * len(rows[0]))
            connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)  # noqa: S608 - our own names
        connection.commit()
    unfinished.replace(path)


def check_database(path: Path) -> None:
    """Whether `path` has Chinook's tables and columns; more than these is fine.

    Raises:
        UnusableDatabaseError: it is no SQLite file, cannot be read, or lacks some of them.
    """
    with contextlib.closing(sqlite3.connect(":memory:")) as empty:
        empty.executescript(schema_sql())
        wanted = _columns(empty)
    with _reading(path) as connection:
        present = _columns(connection)
    missing = [
        table if table not in present else f"{table}.{column}"
        for table, columns in wanted.items()
        for column in columns
        if column not in present.get(table, ())
    ]
    if missing:
        names = tuple(dict.fromkeys(missing))
        raise UnusableDatabaseError(path, f"lacks what Chinook has: {', '.join(names)}", names)


def describe_schema(path: Path) -> str:
    """The tables and columns as the article tells them to the model: lines `Table: ...` and `Columns: ...`.

    Raises:
        UnusableDatabaseError: the file cannot be read.
    """
    with _reading(path) as connection:
        tables = _columns(connection)
    return "\n".join(f"Table: {table}\nColumns: {', '.join(columns)}" for table, columns in tables.items())


def most_tracks_album(path: Path) -> tuple[str, ...]:
    """The title of the album with the most tracks; of all of them where several have equally many.

    Raises:
        UnusableDatabaseError: the file cannot be read, or has no album with a track.
    """
    query = (
        "WITH sizes AS (SELECT Album.Title AS title, COUNT(*) AS tracks FROM Album"
        " JOIN Track ON Track.AlbumId = Album.AlbumId GROUP BY Album.AlbumId)"
        " SELECT DISTINCT title FROM sizes WHERE tracks = (SELECT MAX(tracks) FROM sizes)"
    )
    with _reading(path) as connection:
        titles = tuple(str(title) for (title,) in connection.execute(query))
    if not titles:
        raise UnusableDatabaseError(path, "has no album with a track")
    return titles


@dataclass(frozen=True)
class DatabaseTool:
    """Runs the SQL that a model writes and answers with the text that goes back to it."""

    path: Path
    query_seconds: float = QUERY_SECONDS
    most_rows: int = MOST_ROWS

    def run(self, sql: str) -> str:
        """Run one SELECT and return its rows as the article does, `[('Greatest Hits',)]`.

        Whatever goes wrong is text as well, `query failed with error: ...`, so that the model can correct
        itself.
        """
        stop_at = time.monotonic() + self.query_seconds
        try:
            with contextlib.closing(_connect(self.path)) as connection:
                _restrict(connection, stop_at)
                rows = connection.execute(sql).fetchmany(self.most_rows + 1)
        # sqlite3.Warning is what Python 3.9 and 3.10 raise for a second statement; ValueError: a NUL or a
        # lone surrogate.
        except (sqlite3.Error, sqlite3.Warning, ValueError) as problem:
            late = time.monotonic() >= stop_at
            reason = f"it took longer than {self.query_seconds:g} s" if late else problem
            return f"query failed with error: {reason}"
        text = str(rows[: self.most_rows])
        if len(text) > LARGEST_RESULT_CHARACTERS:
            return f"query failed with error: the result has more than {LARGEST_RESULT_CHARACTERS} characters"
        if len(rows) > self.most_rows:
            return f"{text} and more: only the first {self.most_rows} rows"
        return text


FACTS = {"most_tracks_album": most_tracks_album}
"""What a case may expect a text to name (`database_says`), by name: each returns the texts that are right."""


def schema_sql() -> str:
    """The CREATE TABLE statements of Chinook."""
    return importlib.resources.files("healthchecks").joinpath("chinook.sql").read_text(encoding="utf-8")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """For questions of our own: whatever SQLite finds wrong is the file's fault."""
    try:
        with contextlib.closing(_connect(path)) as connection:
            yield connection
    except sqlite3.Error as problem:
        reason = f"cannot be read as SQLite: {problem}" if path.is_file() else "is not a file"
        raise UnusableDatabaseError(path, reason) from problem


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)


def _restrict(connection: sqlite3.Connection, stop_at: float) -> None:
    """Nothing but SELECT, no value above `LARGEST_VALUE_BYTES`, an end at `stop_at` (`time.monotonic`)."""

    def allow(action: int, _: object, function: object, *__: object) -> int:
        denied = action == sqlite3.SQLITE_FUNCTION and function in _DENIED_FUNCTIONS
        return sqlite3.SQLITE_OK if action in _ALLOWED_ACTIONS and not denied else sqlite3.SQLITE_DENY

    connection.set_authorizer(allow)
    connection.set_progress_handler(
        lambda: int(time.monotonic() >= stop_at), _STEPS_BETWEEN_LOOKS_AT_THE_CLOCK
    )
    if sys.version_info >= (3, 11):
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_VALUE_BYTES)


def _columns(connection: sqlite3.Connection) -> Mapping[str, Sequence[str]]:
    """The columns of every table, tables and columns in the order in which they were made."""
    rows = connection.execute(
        "SELECT sqlite_master.name, info.name"
        " FROM sqlite_master JOIN pragma_table_info(sqlite_master.name) AS info"
        " WHERE sqlite_master.type = 'table' AND sqlite_master.name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
        " ORDER BY sqlite_master.rowid, info.cid"
    )
    columns: dict[str, list[str]] = {}
    for table, column in rows:
        columns.setdefault(table, []).append(column)
    return columns
