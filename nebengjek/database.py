"""Durable facts: one SQLAlchemy engine, SQLite by default, PostgreSQL by URL; Core tables, no session.

SQLite: write-ahead log, one writer at a time inside this process (a lock, then ``BEGIN IMMEDIATE``), so that a
transaction never fails for having begun as a reader. PostgreSQL: read committed; rows that decide are changed by
conditional updates, and where two rows must be looked at together they are selected ``for update``.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from nebengjek.errors import Unavailable
from nebengjek.sql import UtcDateTime, insert_ignore, metadata
from nebengjek.sqlite import connect as inline_sqlite

__all__ = ["Database", "UtcDateTime", "insert_ignore", "metadata"]


class Database:
    """The engine and the two ways to use it: ``begin`` to write, ``read`` to look."""

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        parsed = make_url(url)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        if self.is_sqlite:
            parsed = parsed.set(drivername="sqlite+aiosqlite")
        else:
            parsed = parsed.set(drivername="postgresql+asyncpg")
        self.url = parsed
        # Parameters hold phone numbers: they have no place in an error message.
        options: dict[str, Any] = {"pool_size": pool_size, "max_overflow": pool_size, "hide_parameters": True}
        if self.is_sqlite:
            options["connect_args"] = {"async_creator_fn": inline_sqlite}
        self.engine: AsyncEngine = create_async_engine(parsed, **options)
        self._write = asyncio.Lock()
        self._committed: list[Callable[[AsyncConnection], None]] = []
        if self.is_sqlite:
            event.listen(self.engine.sync_engine, "connect", _prepare_sqlite)
            event.listen(self.engine.sync_engine, "handle_error", _survive_cancellation)

    @property
    def where(self) -> str:
        """For people: the file or the server, without credentials."""
        return str(self.url.database) if self.is_sqlite else self.url.render_as_string(hide_password=True)

    def on_commit(self, callback: Callable[[AsyncConnection], None]) -> None:
        """Call ``callback`` after each ``begin`` block that committed."""
        self._committed.append(callback)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that commits at the end of the block and rolls back when it raises.

        Raises Unavailable("database") when the server cannot be reached.
        """
        if self.is_sqlite:
            async with self._write, self._connection() as connection:
                try:
                    await connection.exec_driver_sql("BEGIN IMMEDIATE")
                    yield connection
                except BaseException:
                    await connection.rollback()
                    raise
                await connection.commit()
                self._notify(connection)
            return
        async with self._connection() as connection:
            async with connection.begin():
                yield connection
            self._notify(connection)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection to look with; nothing done on it is kept."""
        async with self._connection() as connection:
            yield connection

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self.engine.connect() as connection:
                yield connection
        except OSError as error:
            raise Unavailable("database") from error
        except DBAPIError as error:
            if error.connection_invalidated:
                raise Unavailable("database") from error
            raise

    def _notify(self, connection: AsyncConnection) -> None:
        for callback in self._committed:
            callback(connection)

    async def ping(self) -> None:
        """Raises Unavailable("database")."""
        async with self.read() as connection:
            await connection.execute(text("SELECT 1"))

    async def close(self) -> None:
        await self.engine.dispose()


def _survive_cancellation(context: ExceptionContext) -> None:
    # SQLAlchemy would close the connection of a task that was cancelled. SQLite keeps a closed one, and its write
    # lock, for as long as a cursor is left; this driver finishes the statement, and the rollback comes after it.
    if isinstance(context.original_exception, asyncio.CancelledError):
        context.is_disconnect = False


def _prepare_sqlite(connection: Any, entry: ConnectionPoolEntry) -> None:
    # The driver must not begin transactions by itself: BEGIN IMMEDIATE is ours to say.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
