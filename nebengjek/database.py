"""Durable facts: one SQLAlchemy engine, SQLite by default, PostgreSQL by URL; Core tables, no session.

SQLite: write-ahead log, one writer at a time (``nebengjek.sqlite``). PostgreSQL: read committed; rows that decide are
changed by conditional updates, and where two rows must be looked at together they are selected ``for update``.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from sqlalchemy import Engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from nebengjek.errors import Misconfigured, Unavailable
from nebengjek.sql import UtcDateTime, insert_ignore, metadata
from nebengjek.sqlite import SqliteEngine

__all__ = ["Database", "UtcDateTime", "insert_ignore", "metadata"]

CONNECT_SECONDS = 5.0
POOL_SECONDS = 10.0
"""How long who finds all connections in use waits for one."""
STATEMENTS = 500
"""More than there are: each connection keeps those it has prepared."""


class Database:
    """The engine and the two ways to use it: ``begin`` to write, ``read`` to look."""

    def __init__(self, url: str, *, pool_size: int = 10, pool_seconds: float = POOL_SECONDS) -> None:
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._engine: SqliteEngine | AsyncEngine
        self._reading: SqliteEngine | AsyncEngine
        if self.is_sqlite:
            self._engine = self._reading = SqliteEngine(self.url)
        else:
            self._engine = create_async_engine(
                self.url.set(drivername="postgresql+asyncpg"),
                connect_args={"timeout": CONNECT_SECONDS, "prepared_statement_cache_size": STATEMENTS},
                # Those beyond the pool's size would be opened and closed at each use.
                pool_size=2 * pool_size,
                max_overflow=0,
                pool_timeout=pool_seconds,
                pool_use_lifo=True,
                # Parameters hold phone numbers: they have no place in an error message.
                hide_parameters=True,
            )
            # Who only looks needs no BEGIN and ROLLBACK, each of them a way to the server and back.
            self._reading = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._committed: list[Callable[[AsyncConnection], None]] = []

    @property
    def sync_engine(self) -> Engine:
        """Where SQLAlchemy's events are listened for."""
        return self._engine.sync_engine

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

        Raises Unavailable("database") when the server cannot be reached, or all connections stay in use.
        """
        with _reaching():
            async with self._engine.begin() as connection:
                yield connection
        for callback in self._committed:
            callback(connection)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection to look with, not to write: each statement is on its own. Raises Unavailable("database")."""
        with _reaching():
            async with self._reading.connect() as connection:
                yield connection

    async def ping(self) -> None:
        """Raises Unavailable("database")."""
        async with self.read() as connection:
            await connection.execute(text("SELECT 1"))

    async def reach(self) -> None:
        """For a start: is it there, and may we use it? The errors say what was tried, without the password.

        Raises Unavailable when it does not answer, Misconfigured when it refuses us.
        """
        try:
            await self.ping()
        except Unavailable as error:
            reason = f"database.url: {self.where} does not answer ({_why(error.__cause__)})"
            raise Unavailable("database", reason) from error
        except DBAPIError as error:
            raise Misconfigured(f"database.url: {self.where} cannot be used: {_why(error)}") from error

    async def close(self) -> None:
        await self._engine.dispose()


@contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except PoolTimeout as error:
        raise Unavailable("database", "all connections to the database are in use, try again") from error
    except OSError as error:
        raise Unavailable("database") from error
    except DBAPIError as error:
        if error.connection_invalidated or _cannot_now(error):
            raise Unavailable("database") from error
        raise


def _cannot_now(error: DBAPIError) -> bool:
    """PostgreSQL starts or ends, or has no connection or room left (SQLSTATE classes 08, 53, 57)."""
    return str(getattr(error.orig, "sqlstate", None))[:2] in ("08", "53", "57")


def _why(error: BaseException | None) -> str:
    """In one line, without SQL."""
    cause = getattr(error, "orig", None) or error
    return " ".join(str(cause).split()) or type(cause).__name__
