"""The migrations make exactly the tables that the code uses, on SQLite and PostgreSQL, also when two pods run them."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from msgspec import structs
from sqlalchemy import Connection

from nebengjek import app as _every_table_is_imported
from nebengjek import schema
from nebengjek.app import App
from nebengjek.database import Database
from nebengjek.errors import Misconfigured, Unavailable
from nebengjek.migrations import HEAD
from nebengjek.sql import metadata
from tests.flows.world import settings_for
from tests.servers import PostgresServer

assert _every_table_is_imported is not None


def differences(connection: Connection) -> list[Any]:
    return list(compare_metadata(MigrationContext.configure(connection), metadata))


async def test_the_migrations_make_the_tables_of_the_code(empty_database: str) -> None:
    database = Database(empty_database)
    assert await schema.upgrade(database) == (None, HEAD)
    assert await schema.upgrade(database) == (HEAD, HEAD)
    async with database.read() as connection:
        assert await connection.run_sync(differences) == []
    await database.close()


async def test_two_pods_may_upgrade_at_once(empty_database: str) -> None:
    pods = [Database(empty_database), Database(empty_database)]
    await asyncio.gather(*(schema.upgrade(pod) for pod in pods))
    assert [await schema.revision(pod) for pod in pods] == [HEAD, HEAD]
    for pod in pods:
        await pod.close()


async def test_the_head_that_a_start_compares_with_is_the_newest_script(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'head.sqlite3'}")

    def head(connection: Connection) -> str | None:
        return ScriptDirectory.from_config(schema.config(connection)).get_current_head()

    async with database.read() as connection:
        assert await connection.run_sync(head) == HEAD
    await database.close()


@pytest.mark.real
async def test_who_finds_all_connections_in_use_is_told_so(postgres: PostgresServer) -> None:
    database = Database(postgres.new_database(), pool_size=1, pool_seconds=0.05)
    async with database.read(), database.read():
        with pytest.raises(Unavailable, match="all connections to the database are in use"):
            await database.ping()
    await database.ping()
    await database.close()


@pytest.mark.real
async def test_production_does_not_migrate_by_itself(postgres: PostgresServer) -> None:
    database_url = await asyncio.to_thread(postgres.new_database)
    app = App(structs.replace(settings_for(database_url), profile="production"), sweeping=False)
    with pytest.raises(Misconfigured, match="nebengjek db upgrade"):
        await app.start()
    await app.database.close()
