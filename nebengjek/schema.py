"""Bringing a database to the newest schema, and asking how far it is.

The application has one history of migrations, each module that brings tables of its own another (``History``), with a
table of its own that says how far it is.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, inspect, text

from nebengjek.database import Database
from nebengjek.migrations import HEAD
from nebengjek.module import History, Module

_ADVISORY_LOCK = 7_365_501
"""Any number, the same in every pod: two that start at once migrate one after the other."""
_SCRIPTS = Path(__file__).parent / "migrations"
OWN = History(name="", folder=_SCRIPTS / "versions", head=HEAD)


def histories(modules: Iterable[Module]) -> list[History]:
    """The application's, and those of the modules that have one."""
    found = {module.history.name: module.history for module in modules if module.history is not None}
    return [OWN, *found.values()]


async def revision(database: Database, history: History = OWN) -> str | None:
    """The revision that the database has; None for an empty one. Raises as ``Database.reach``."""
    await database.reach()
    async with database.read() as connection:
        return await connection.run_sync(_revision, history)


def version_table(history: History) -> str:
    """``alembic_version``, ``alembic_version_chat``"""
    return f"alembic_version_{history.name}" if history.name else "alembic_version"


def _revision(connection: Connection, history: History) -> str | None:
    table = version_table(history)
    if not inspect(connection).has_table(table):
        return None
    found: str | None = connection.execute(text(f"SELECT version_num FROM {table}")).scalar()
    return found


async def upgrade(database: Database, history: History = OWN) -> tuple[str | None, str]:
    """Run the migrations that are missing; (revision before, revision after)."""
    before = await revision(database, history)
    if before != history.head:
        async with database.begin() as connection:
            if not database.is_sqlite:
                await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            await connection.run_sync(_upgrade, history)
    return before, history.head


def config(connection: Connection, history: History = OWN) -> Any:
    """Alembic's configuration on this connection."""
    # Half a second of imports that a process with a current schema does not need.
    from alembic.config import Config

    made = Config()
    made.set_main_option("script_location", str(_SCRIPTS))
    made.set_main_option("version_locations", str(history.folder))
    made.set_main_option("path_separator", "newline")
    made.attributes["connection"] = connection
    made.attributes["version_table"] = version_table(history)
    return made


def _upgrade(connection: Connection, history: History) -> None:
    from alembic import command

    command.upgrade(config(connection, history), "head")
