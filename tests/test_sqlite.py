"""Transactions on SQLite: all or nothing, one at a time, and no trace of those that failed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.database import Database


@asynccontextmanager
async def things(folder: Path) -> AsyncIterator[Database]:
    """A database with things (1, 2, 3), and parts that each belong to a thing."""
    database = Database(f"sqlite:///{folder / 'things.sqlite3'}")
    async with database.begin() as tx:
        await tx.execute(text("CREATE TABLE things (id INTEGER PRIMARY KEY)"))
        reference = "REFERENCES things (id) DEFERRABLE INITIALLY DEFERRED"
        await tx.execute(text(f"CREATE TABLE parts (thing INTEGER {reference})"))
        await tx.execute(text("INSERT INTO things VALUES (1), (2), (3)"))
    yield database
    await database.close()


async def do(database: Database, *statements: str) -> None:
    """All of them in one transaction."""
    async with database.begin() as tx:
        for statement in statements:
            await tx.execute(text(statement))


async def ids(tx: AsyncConnection) -> list[int]:
    return list((await tx.execute(text("SELECT id FROM things ORDER BY id"))).scalars())


async def test_a_transaction_that_raises_leaves_nothing(tmp_path: Path) -> None:
    async with things(tmp_path) as database:
        with pytest.raises(IntegrityError):
            await do(database, "DELETE FROM things WHERE id > 1", "INSERT INTO things VALUES (1)")
        async with database.begin() as tx:
            assert await ids(tx) == [1, 2, 3]


async def test_a_commit_that_is_refused_leaves_nothing_and_lets_the_next_one_write(tmp_path: Path) -> None:
    async with things(tmp_path) as database:
        # Whether the thing of a part is there is checked at the commit.
        with pytest.raises(IntegrityError):
            await do(database, "INSERT INTO things VALUES (4)", "INSERT INTO parts VALUES (99)")
        async with database.begin() as tx:
            assert await ids(tx) == [1, 2, 3]
            await tx.execute(text("INSERT INTO things VALUES (5)"))
        async with database.read() as tx:
            assert await ids(tx) == [1, 2, 3, 5]


async def test_a_statement_that_is_refused_can_be_followed_by_others(tmp_path: Path) -> None:
    async with things(tmp_path) as database, database.begin() as tx:
        with pytest.raises(IntegrityError):
            await tx.execute(text("INSERT INTO things VALUES (1)"))
        await tx.execute(text("INSERT INTO things VALUES (4)"))
        assert await ids(tx) == [1, 2, 3, 4]


async def test_a_savepoint_takes_back_what_was_done_in_it(tmp_path: Path) -> None:
    async with things(tmp_path) as database:
        async with database.begin() as tx:
            async with tx.begin_nested() as savepoint:
                await tx.execute(text("DELETE FROM things WHERE id = 1"))
                await savepoint.rollback()
            await tx.execute(text("DELETE FROM things WHERE id = 2"))
        async with database.read() as tx:
            assert await ids(tx) == [1, 3]


async def test_a_result_that_nobody_reads_holds_up_nobody(tmp_path: Path) -> None:
    async with things(tmp_path) as database:
        async with database.begin() as tx:
            deleted = await tx.execute(text("DELETE FROM things WHERE id < 3 RETURNING id"))
            unread = await tx.execute(text("SELECT id FROM things"))
        async with database.begin() as tx:
            await tx.execute(text("DELETE FROM things"))
            assert await ids(tx) == []
        assert list(deleted.scalars()) == [1, 2]
        assert list(unread.scalars()) == [3]


async def test_a_result_shows_what_was_there_when_it_was_asked_for(tmp_path: Path) -> None:
    async with things(tmp_path) as database, database.begin() as tx:
        seen = []
        for row in await tx.execute(text("SELECT id FROM things ORDER BY id")):
            await tx.execute(text("INSERT INTO things VALUES (:id)"), {"id": row.id + 10})
            seen.append(row.id)
        assert seen == [1, 2, 3]


async def test_writers_wait_for_each_other_and_readers_for_nobody(tmp_path: Path) -> None:
    async with things(tmp_path) as database:
        written, go_on = asyncio.Event(), asyncio.Event()

        async def slow() -> None:
            async with database.begin() as tx:
                await tx.execute(text("DELETE FROM things WHERE id = 1"))
                written.set()
                await go_on.wait()

        async def quick() -> list[int]:
            async with database.begin() as tx:
                return await ids(tx)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(slow())
            await written.wait()
            second = tasks.create_task(quick())
            async with database.read() as tx:
                assert await ids(tx) == [1, 2, 3]
            assert not second.done()
            go_on.set()
        assert second.result() == [2, 3]


async def test_any_number_may_look_at_once(tmp_path: Path) -> None:
    async with things(tmp_path) as database:
        everybody_looks = asyncio.Barrier(60)

        async def look() -> list[int]:
            async with database.read() as tx:
                found = await ids(tx)
                await everybody_looks.wait()
                return found

        async with asyncio.timeout(8):
            assert await asyncio.gather(*(look() for _ in range(60))) == [[1, 2, 3]] * 60
