"""Where the invariants of rides are tried: SQLite, and a PostgreSQL that the session starts."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nebengjek.contracts.message import uuid7
from tests.servers import PostgresServer, postgres_server


@pytest.fixture(scope="session")
def rides_postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.real)])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Each call: the URL of another empty database."""
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path / uuid7()}.db"
    server: PostgresServer = request.getfixturevalue("rides_postgres")
    return server.new_database
