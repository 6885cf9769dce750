"""Where the invariants of rides are tried: SQLite, and PostgreSQL."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nebengjek.contracts.message import uuid7
from tests.servers import PostgresServer


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.real)])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Each call: the URL of another empty database."""
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path / uuid7()}.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database
