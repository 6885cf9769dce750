"""Bringing a database to the newest schema, and asking how far it is."""

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, inspect, text

from nebengjek.database import Database
from nebengjek.migrations import HEAD

_ADVISORY_LOCK = 7_365_501
"""Any number, the same in every pod: two that start at once migrate one after the other."""


async def revision(database: Database) -> str | None:
    """The revision that the database has; None for an empty one. Raises as ``Database.reach``."""
    await database.reach()
    async with database.read() as connection:
        return await connection.run_sync(_revision)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return found


async def upgrade(database: Database) -> tuple[str | None, str]:
    """Run the migrations that are missing; (revision before, revision after)."""
    before = await revision(database)
    if before != HEAD:
        async with database.begin() as connection:
            if not database.is_sqlite:
                await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            await connection.run_sync(_upgrade)
    return before, HEAD


def config(connection: Connection) -> Any:
    """Alembic's configuration on this connection."""
    # Half a second of imports that a process with a current schema does not need.
    from alembic.config import Config

    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    made.attributes["connection"] = connection
    return made


def _upgrade(connection: Connection) -> None:
    from alembic import command

    command.upgrade(config(connection), "head")
