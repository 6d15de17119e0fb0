"""Generated rows for Chinook's tables: few, plain, and the same for the same random numbers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Union

Row = Sequence[Union[str, int, float, None]]

# A title is two of these words; the 2 MB canary model was seen to repeat each such pair rightly.
_FIRST_WORDS = ("Silver", "Quiet", "Autumn", "Broken", "Golden", "Distant", "Hollow", "Crimson", "Green")
_SECOND_WORDS = ("Harbour", "Lantern", "Garden", "Engine", "Mirror", "Station", "Meadow", "Signal", "River")
_FIRST_NAMES = ("Ada", "Bruno", "Carla", "David", "Elena", "Felix", "Greta", "Hugo")
_LAST_NAMES = ("Meyer", "Santos", "Novak", "Walker", "Rossi", "Tanaka", "Larsen", "Dubois")
_CITIES = (("Oslo", "Norway"), ("Lisbon", "Portugal"), ("Vienna", "Austria"), ("Osaka", "Japan"))
_GENRES = ("Rock", "Jazz", "Latin", "Classical", "Blues")
_MEDIA_TYPES = ("MPEG audio file", "AAC audio file")
_PLAYLISTS = ("Morning", "Evening", "Travel")
_ARTISTS, _ALBUMS, _CUSTOMERS, _EMPLOYEES, _INVOICES = 8, 20, 8, 3, 12
_MOST_TRACKS, _FEWEST_TRACKS, _WINNER_TRACKS = 7, 3, 12
_PRICE = 0.99


def sample_rows(numbers: random.Random) -> Mapping[str, Sequence[Row]]:
    """Rows by table; references point backwards only, and one album has clearly the most tracks."""
    titles = [f"{first} {second}" for first in _FIRST_WORDS for second in _SECOND_WORDS]
    numbers.shuffle(titles)
    albums = [(number, titles[number], numbers.randint(1, _ARTISTS)) for number in range(1, _ALBUMS + 1)]
    tracks = _tracks(numbers)
    lines = [
        (
            number,
            numbers.randint(1, _INVOICES),
            numbers.randint(1, len(tracks)),
            _PRICE,
            numbers.randint(1, 3),
        )
        for number in range(1, 3 * _INVOICES + 1)
    ]
    return {
        "Artist": [(number, f"The {titles[-number]}s") for number in range(1, _ARTISTS + 1)],
        "Album": albums,
        "Employee": _employees(),
        "Customer": _customers(numbers),
        "Genre": list(enumerate(_GENRES, 1)),
        "MediaType": list(enumerate(_MEDIA_TYPES, 1)),
        "Track": tracks,
        "Invoice": _invoices(numbers, lines),
        "InvoiceLine": lines,
        "Playlist": list(enumerate(_PLAYLISTS, 1)),
        "PlaylistTrack": [
            (playlist, int(str(track[0])))
            for playlist in range(1, len(_PLAYLISTS) + 1)
            for track in tracks[playlist::4]
        ],
    }


def _tracks(numbers: random.Random) -> list[Row]:
    winner = numbers.randint(1, _ALBUMS)
    tracks: list[Row] = []
    for album in range(1, _ALBUMS + 1):
        many = _WINNER_TRACKS if album == winner else numbers.randint(_FEWEST_TRACKS, _MOST_TRACKS)
        for place in range(1, many + 1):
            name = f"{numbers.choice(_SECOND_WORDS)} Song {place}"
            milliseconds = numbers.randint(120_000, 420_000)
            size_bytes = 16 * milliseconds
            media, genre = numbers.randint(1, len(_MEDIA_TYPES)), numbers.randint(1, len(_GENRES))
            tracks.append(
                (len(tracks) + 1, name, album, media, genre, None, milliseconds, size_bytes, _PRICE)
            )
    return tracks


def _employees() -> list[Row]:
    """Employee 1 leads the others."""
    city, country = _CITIES[0]
    return [
        (
            number,
            _LAST_NAMES[-number],
            _FIRST_NAMES[-number],
            "General Manager" if number == 1 else "Sales Support Agent",
            None if number == 1 else 1,
            f"{1970 + number}-05-01 00:00:00",
            f"{2010 + number}-03-01 00:00:00",
            f"{number} Main Street",
            city,
            None,
            country,
            f"10{number}",
            None,
            None,
            f"{_FIRST_NAMES[-number].lower()}@example.com",
        )
        for number in range(1, _EMPLOYEES + 1)
    ]


def _customers(numbers: random.Random) -> list[Row]:
    rows: list[Row] = []
    for number in range(1, _CUSTOMERS + 1):
        first, last = _FIRST_NAMES[number - 1], numbers.choice(_LAST_NAMES)
        city, country = numbers.choice(_CITIES)
        where = (f"{number} Station Road", city, None, country, f"20{number}")
        agent = numbers.randint(2, _EMPLOYEES)
        rows.append((number, first, last, None, *where, None, None, f"{first.lower()}@example.org", agent))
    return rows


def _invoices(numbers: random.Random, lines: Sequence[Row]) -> list[Row]:
    rows: list[Row] = []
    for number in range(1, _INVOICES + 1):
        city, country = numbers.choice(_CITIES)
        pieces = sum(int(str(line[4])) for line in lines if line[1] == number)
        day = f"2024-{number:02d}-15 00:00:00"
        customer = numbers.randint(1, _CUSTOMERS)
        total = round(pieces * _PRICE, 2)
        rows.append(
            (number, customer, day, f"{number} Station Road", city, None, country, f"20{number}", total)
        )
    return rows
