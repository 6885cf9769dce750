"""How tests run: an ``async def`` test runs in a fresh event loop, or in that of its fixture ``runner``.

One PostgreSQL serves them all, each with databases of its own.
"""

import asyncio
import inspect
from collections.abc import Iterator
from contextlib import nullcontext
from contextvars import copy_context
from pathlib import Path

import pytest

from tests.distribution import pytest_collection_modifyitems, pytest_xdist_make_scheduler
from tests.servers import PostgresServer, postgres_server

__all__ = ["pytest_collection_modifyitems", "pytest_xdist_make_scheduler"]


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.real)])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database with nothing in it."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.sqlite3'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    shared = pyfuncitem.funcargs.get("runner")
    with nullcontext(shared) if isinstance(shared, asyncio.Runner) else asyncio.Runner() as runner:
        # A context of its own, or a runner would carry one test's trace into the next.
        runner.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}), context=copy_context())
    return True
