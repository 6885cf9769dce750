"""What every table shares: one metadata, moments that keep their zone, an insert that may find the row there.

A statement that is made once, with a ``bindparam`` for each value, runs in a fifth of the time of one that is put
together anew at each call. So those on the way of a ride are constants of their modules, or cached by what varies.
"""

from collections.abc import Collection
from datetime import UTC, datetime
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, DateTime, Dialect, Insert, MetaData, Table, literal_column
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeDecorator


def tables() -> MetaData:
    """Where the tables of one history of migrations are put together; names of constraints are alike everywhere."""
    return MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


metadata = tables()
"""Every table of the application's modules; migrations/ must agree with it (a test compares them)."""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC moment, on SQLite too."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC) if value is not None else None

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


async def insert_ignore(tx: AsyncConnection, table: Table, values: dict[str, Any]) -> bool:
    """Insert one row unless a unique key has it already; True when it was inserted."""
    return (await tx.execute(_insert_ignore(tx.dialect.name, table), values)).rowcount == 1


@cache
def _insert_ignore(dialect: str, table: Table) -> Insert:
    insert = sqlite.insert if dialect == "sqlite" else postgresql.insert
    return insert(table).on_conflict_do_nothing()


def one_of(column: ColumnElement[str], words: Collection[str]) -> ColumnElement[bool]:
    """``column IN ('A', 'B')`` for words of ours, as plain literals.

    With bound parameters an index that has this condition would not be recognised, and the list would be expanded
    at each call.
    """
    assert all(word.isidentifier() for word in words)
    return column.in_([literal_column(f"'{word}'") for word in words])
