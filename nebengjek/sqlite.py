"""SQLite on the event loop's own thread.

A statement of ours on a local file takes some ten microseconds; the way to a thread and back, as asynchronous drivers
go it, a hundred, and a transaction is five to ten statements. So SQLAlchemy's synchronous engine runs them where they
are: the loop stands still for a fraction of a millisecond, as it does for any other computation. No task is ever cut
off inside a statement.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Connection, CursorResult, Executable, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.engine.cursor import FullyBufferedCursorFetchStrategy
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import ConnectionPoolEntry

_Result = CursorResult[*tuple[Any, ...]]


class InlineConnection(AsyncConnection):
    """An ``AsyncConnection`` that never waits. As there, a result is read to its end before it is handed out."""

    def __init__(self, connection: Connection) -> None:
        # Not the parent's, which takes an asynchronous engine and needs it for nothing but connecting.
        self.sync_engine = connection.engine
        self.sync_connection = self._assign_proxied(connection)

    async def execute(self, statement: Executable, parameters: Any = None, *, execution_options: Any = None) -> _Result:
        return _read(self._proxied.execute(statement, parameters, execution_options=execution_options))

    async def exec_driver_sql(self, statement: str, parameters: Any = None, execution_options: Any = None) -> _Result:
        return _read(self._proxied.exec_driver_sql(statement, parameters, execution_options))


def _read(result: _Result) -> _Result:
    # A cursor that is left open would keep its lock, and see what is written while it is read.
    if result.cursor is not None:
        rows = result.cursor.fetchall()
        result.cursor_strategy = FullyBufferedCursorFetchStrategy(result.cursor, initial_buffer=rows)
    return result


class SqliteEngine:
    """As much of an ``AsyncEngine`` as is used: ``begin``, ``connect``, ``dispose``.

    One writer at a time inside this process (a lock, then ``BEGIN IMMEDIATE``), so that a transaction never fails for
    having begun as a reader.
    """

    def __init__(self, url: URL) -> None:
        self.sync_engine = create_engine(
            url.set(drivername="sqlite+pysqlite"),
            connect_args={"cached_statements": 512},
            # Never full: to wait for a connection would be to stop the loop that gives it back.
            pool_size=10,
            max_overflow=-1,
            # Parameters hold phone numbers: they have no place in an error message.
            hide_parameters=True,
        )
        event.listen(self.sync_engine, "connect", _prepare)
        self._lock = asyncio.Lock()
        self._writer: Connection | None = None

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        async with self._lock:
            # Kept out of the pool: after a commit there is nothing to reset.
            writer, self._writer = self._writer or self.sync_engine.connect(), None
            try:
                writer.exec_driver_sql("BEGIN IMMEDIATE")
                yield InlineConnection(writer)
                writer.commit()
            except BaseException:
                try:
                    # Here, because SQLAlchemy takes a transaction whose commit was refused for ended; SQLite does not.
                    writer.connection.rollback()
                finally:
                    # The pool tries again, and throws away what it cannot roll back.
                    writer.close()
                raise
            self._writer = writer

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[AsyncConnection]:
        with self.sync_engine.connect() as connection:
            yield InlineConnection(connection)

    async def dispose(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        self.sync_engine.dispose()


def _prepare(connection: Any, entry: ConnectionPoolEntry) -> None:
    # The driver must not begin transactions by itself: BEGIN IMMEDIATE is ours to say.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
