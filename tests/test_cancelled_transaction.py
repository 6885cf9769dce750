"""A task that is cancelled in the middle of a transaction leaves no lock behind."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from nebengjek.database import Database


@pytest.mark.parametrize("during", ["BEGIN IMMEDIATE", "DELETE FROM things WHERE id = 1", "SELECT * FROM things"])
async def test_a_cancelled_transaction_lets_the_next_one_write(tmp_path: Path, during: str) -> None:
    database = Database(f"sqlite:///{tmp_path / 'nebengjek.db'}")
    async with database.begin() as tx:
        await tx.execute(text("CREATE TABLE things (id INTEGER PRIMARY KEY)"))
        await tx.execute(text("INSERT INTO things VALUES (1), (2), (3)"))

    async def work() -> None:
        async with database.begin() as tx:
            await tx.execute(text("DELETE FROM things WHERE id = 1"))
            await tx.execute(text("SELECT * FROM things"))
            # Statements on SQLite run where they are: a task can be cut off only where it waits for something else.
            await asyncio.sleep(0)

    task = asyncio.create_task(work())

    def cancel(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement == during:
            asyncio.get_running_loop().call_soon(task.cancel)

    event.listen(database.sync_engine, "before_cursor_execute", cancel)
    # The error is kept, as by whoever gathers tasks, and with it the frames and the cursor in them.
    with pytest.raises(asyncio.CancelledError) as kept:
        await task
    event.remove(database.sync_engine, "before_cursor_execute", cancel)
    # SQLite would wait five seconds for a lock that nobody gives back.
    async with asyncio.timeout(2.0), database.begin() as tx:
        assert (await tx.execute(text("SELECT count(*) FROM things"))).scalar_one() == 3
        await tx.execute(text("DELETE FROM things"))
    assert kept.traceback
    await database.close()
