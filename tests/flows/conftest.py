"""The flow tests run twice, unchanged: everything embedded, and on a real nats-server, Valkey and PostgreSQL."""

import asyncio
import itertools
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nebengjek import schema
from nebengjek.app import App
from nebengjek.clock import ManualClock
from nebengjek.database import Database
from tests.flows.world import World, running, settings_for
from tests.servers import NatsServer, PostgresServer, nats_server, postgres_server, valkey_server

_number = itertools.count()


class Backend:
    """Where a world keeps its things; ``world`` begins on empty stores."""

    name: str

    async def fresh(self) -> dict[str, Any]:
        """The settings of empty stores."""
        raise NotImplementedError

    @asynccontextmanager
    async def world(self, *, sweeping: bool = False, **values: Any) -> AsyncIterator[World]:
        """A running application; ``values``: settings, ``match__radius_km=3``."""
        given = await self.fresh() | values
        database_url = given.pop("database_url")

        def make(clock: ManualClock) -> App:
            return App(settings_for(database_url, **given), clock=clock, sweeping=sweeping)

        async with running(make) as world:
            yield world


class Embedded(Backend):
    name = "embedded"

    def __init__(self, folder: Path, template: Path) -> None:
        self._folder = folder
        self._template = template

    async def fresh(self) -> dict[str, Any]:
        path = self._folder / f"{next(_number)}.sqlite3"
        shutil.copy(self._template, path)
        return {"database_url": f"sqlite:///{path}"}


class Real(Backend):
    name = "real"

    def __init__(self, nats: NatsServer, redis_url: str, postgres: PostgresServer) -> None:
        self.nats = nats
        self._redis_url = redis_url
        self._postgres = postgres

    async def fresh(self) -> dict[str, Any]:
        await self._forget_keys()
        database_url = await asyncio.to_thread(self._postgres.new_database)
        return {"database_url": database_url, "nats__url": self.nats.fresh_account(), "redis__url": self._redis_url}

    async def _forget_keys(self) -> None:
        from redis.asyncio import Redis

        client = Redis.from_url(self._redis_url)
        await client.flushdb()
        await client.aclose()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database with the newest schema, made once."""
    path = tmp_path_factory.mktemp("template") / "empty.sqlite3"

    async def make() -> None:
        database = Database(f"sqlite:///{path}")
        await schema.upgrade(database)
        await database.close()

    asyncio.run(make())
    return path


@pytest.fixture(scope="session")
def real_servers() -> Iterator[Real]:
    with ExitStack() as stack:
        nats = stack.enter_context(nats_server())
        redis_url = stack.enter_context(valkey_server())
        postgres = stack.enter_context(postgres_server())
        yield Real(nats, redis_url, postgres)


@pytest.fixture(params=["embedded", pytest.param("real", marks=pytest.mark.real)])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "real":
        real: Real = request.getfixturevalue("real_servers")
        return real
    return Embedded(tmp_path, request.getfixturevalue("sqlite_template"))
