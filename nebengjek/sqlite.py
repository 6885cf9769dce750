"""SQLite on the event loop's own thread.

aiosqlite sends each statement to a thread and waits. A statement of ours on a local file takes some ten
microseconds, the way to the thread and back a hundred, and a transaction is five to ten statements. So they run
where they are: the loop stands still for a fraction of a millisecond, as it does for any other computation.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, cast

import aiosqlite


class _Here:
    """Stands where aiosqlite has its thread's queue: what is put in has been done when ``put_nowait`` returns."""

    def put_nowait(self, item: tuple[asyncio.Future[Any], Callable[[], Any]]) -> None:
        future, function = item
        try:
            future.set_result(function())
        except sqlite3.Error as error:
            future.set_exception(error)


class InlineConnection(aiosqlite.Connection):
    """An aiosqlite connection without its thread."""

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, iter_chunk_size=64)
        # SQLAlchemy's dialect sets the isolation level through the queue.
        self._tx = cast(Any, _Here())

    def __await__(self) -> Generator[Any, None, "InlineConnection"]:
        return self._connect().__await__()

    async def _connect(self) -> "InlineConnection":
        if self._connection is None:
            self._connection = self._connector()
        return self

    async def _execute(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        if self._connection is None:
            raise ValueError("Connection closed")
        return fn(*args, **kwargs)

    def stop(self) -> None:
        """Close; there is no thread to stop."""
        self._running = False
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def connect(database: str, **options: Any) -> InlineConnection:
    """For SQLAlchemy's ``async_creator``: await the result."""
    return InlineConnection(partial(sqlite3.connect, database, **options))
