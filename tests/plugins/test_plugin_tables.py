"""Every plugin with a history of its own: its migrations make exactly its tables, on SQLite and PostgreSQL."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData

from nebengjek import schema
from nebengjek.app import App
from nebengjek.database import Database
from nebengjek.module import History
from nebengjek_plugins.chat.migrations import HISTORY as CHAT
from nebengjek_plugins.chat.tables import metadata as chat
from nebengjek_plugins.notifications.migrations import HISTORY as NOTIFICATIONS
from nebengjek_plugins.notifications.tables import metadata as notifications
from nebengjek_plugins.profiles.fulltext import TEXT_INDEX
from nebengjek_plugins.profiles.migrations import HISTORY as PROFILES
from nebengjek_plugins.profiles.tables import metadata as profiles
from tests.flows.world import settings_for

PLUGINS = [(CHAT, chat), (NOTIFICATIONS, notifications), (PROFILES, profiles)]
FOLDER = Path(schema.__file__).parents[1] / "plugins" / "nebengjek_plugins"

every_plugin = pytest.mark.parametrize(("history", "metadata"), PLUGINS, ids=[one.name for one, _ in PLUGINS])


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    """Closed in any case: a test that fails must not fail others by what it left open."""
    database = Database(url)
    try:
        yield database
    finally:
        await database.close()


def differences(connection: Connection, metadata: MetaData, known: set[str]) -> list[Any]:
    """``known``: other tables that may be there."""

    def compared(_: Any, name: str | None, kind: str, *__: Any) -> bool:
        # The one thing that is no table in one database and an index in the other.
        made_by_hand = (name or "").removeprefix("ix_").startswith(TEXT_INDEX)
        return not made_by_hand and not (kind == "table" and name in known)

    options = {"include_object": compared}
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))


def newest(connection: Connection, history: History) -> str | None:
    return ScriptDirectory.from_config(schema.config(connection, history)).get_current_head()


def test_no_plugin_with_a_history_is_forgotten_here() -> None:
    assert sorted(path.parent.name for path in FOLDER.glob("*/migrations")) == [one.name for one, _ in PLUGINS]


@every_plugin
async def test_the_migrations_make_the_tables_of_the_plugin(
    empty_database: str, history: History, metadata: MetaData
) -> None:
    async with opened(empty_database) as database:
        assert await schema.upgrade(database, history) == (None, history.head)
        assert await schema.upgrade(database, history) == (history.head, history.head)
        async with database.read() as connection:
            assert await connection.run_sync(newest, history) == history.head
            assert await connection.run_sync(differences, metadata, {schema.version_table(history)}) == []


async def test_the_histories_do_not_get_in_each_others_way(empty_database: str) -> None:
    histories = [PROFILES, CHAT, schema.OWN, NOTIFICATIONS]
    async with opened(empty_database) as database:
        for history in histories:  # in any order
            assert await schema.upgrade(database, history) == (None, history.head)
        assert [await schema.revision(database, one) for one in histories] == [one.head for one in histories]


@every_plugin
async def test_the_application_knows_the_history_of_its_plugin(
    tmp_path: Path, history: History, metadata: MetaData
) -> None:
    table: dict[str, Any] = {"store": str(tmp_path / "pictures")} if history.name == "profiles" else {}
    path = f"nebengjek_plugins.{history.name}:{history.name}"
    given = settings_for(
        f"sqlite:///{tmp_path / 'app.sqlite3'}", plugins=[path], plugin={history.name: table} if table else {}
    )
    app = App(given, sweeping=False)
    found = schema.histories(app.modules)
    await app.database.close()
    assert found == [schema.OWN, history]
