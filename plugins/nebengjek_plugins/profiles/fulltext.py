"""The one difference between the two databases: how words are found. FTS5 in SQLite, GIN in PostgreSQL.

What is indexed is put into words here, so that both find the same: lower case, without accents; a plate also in one
word; a number from its end, so that its suffix is a prefix.
"""

import unicodedata

from sqlalchemy import ColumnElement, Connection, func, literal_column, select, text
from sqlalchemy.exc import DBAPIError

from nebengjek_plugins.profiles.tables import found

SUFFIX = 6
"""Digits of a number that an index knows."""

_WHOLE_NUMBER = 9

TEXT_INDEX = "profile_search_text"
"""The table of SQLite without which nothing is found; PostgreSQL finds without its index too, slowly."""

_NO_TABLE = "42P01"

_SQLITE = (
    "DROP TABLE IF EXISTS profile_search_text",
    "CREATE VIRTUAL TABLE profile_search_text"
    " USING fts5(words, content='profile_search', content_rowid='id', prefix='2 3')",
    "CREATE TRIGGER IF NOT EXISTS profile_search_in AFTER INSERT ON profile_search BEGIN"
    " INSERT INTO profile_search_text(rowid, words) VALUES (new.id, new.words); END",
    "CREATE TRIGGER IF NOT EXISTS profile_search_out AFTER DELETE ON profile_search BEGIN"
    " INSERT INTO profile_search_text(profile_search_text, rowid, words) VALUES ('delete', old.id, old.words); END",
    "CREATE TRIGGER IF NOT EXISTS profile_search_over AFTER UPDATE OF words ON profile_search BEGIN"
    " INSERT INTO profile_search_text(profile_search_text, rowid, words) VALUES ('delete', old.id, old.words);"
    " INSERT INTO profile_search_text(rowid, words) VALUES (new.id, new.words); END",
    "INSERT INTO profile_search_text(profile_search_text) VALUES ('rebuild')",
)
_POSTGRESQL = (
    "DROP INDEX IF EXISTS ix_profile_search_text",
    "CREATE INDEX ix_profile_search_text ON profile_search USING gin (to_tsvector('simple', words))",
)


def make_index(connection: Connection) -> None:
    """Make the index over the words that are there, in the place of one that was; the table, too, where it is gone."""
    found.create(connection, checkfirst=True)
    for statement in _SQLITE if connection.dialect.name == "sqlite" else _POSTGRESQL:
        connection.execute(text(statement))


def words_of(*, name: str | None, suffix: str | None, plate: str | None) -> str:
    """What a person is found by, as it is kept in the index."""
    parts = _words(plate or "")
    digits = [_backwards(suffix)] if suffix else []
    return " ".join([*_words(name or ""), *parts, "".join(parts), *digits]).strip()


def matching(dialect: str, query: str) -> ColumnElement[bool] | None:
    """The condition that every word of ``query`` begins a word of a row, or ends its number; None: it has no word."""
    words = _words(query)
    if not words:
        return None
    if len("".join(words)) >= _WHOLE_NUMBER and "".join(words).isdecimal():
        words = ["".join(words)]  # A number as people write it, +62 812-3456-7890.
    if dialect == "sqlite":
        wanted = " AND ".join(_any_of([f'"{one}"*' for one in _either(word)], " OR ") for word in words)
        hits = select(text("rowid")).select_from(text("profile_search_text"))
        return found.c.id.in_(hits.where(text("profile_search_text MATCH :wanted").bindparams(wanted=wanted)))
    wanted = " & ".join(_any_of([f"{one}:*" for one in _either(word)], " | ") for word in words)
    vector = func.to_tsvector(literal_column("'simple'"), found.c.words)
    return vector.op("@@")(func.to_tsquery(literal_column("'simple'"), wanted))


def is_lost(error: DBAPIError) -> bool:
    """Whether it says that the table or its index has been deleted."""
    said = str(error.orig)
    no_table = "no such table" in said or getattr(error.orig, "sqlstate", None) == _NO_TABLE
    return TEXT_INDEX in said or (no_table and found.name in said)


def _any_of(terms: list[str], between: str) -> str:
    return f"({between.join(terms)})"


def _either(word: str) -> list[str]:
    return [word, _backwards(word)] if word.isdecimal() else [word]


def _backwards(digits: str) -> str:
    """With three letters before it: no plate begins like that, and no name."""
    return "num" + digits[::-1][:SUFFIX]


def _words(value: str) -> list[str]:
    plain = unicodedata.normalize("NFKD", value.casefold())
    kept = "".join(one if one.isalnum() else " " for one in plain if not unicodedata.combining(one))
    return kept.split()[:10]
