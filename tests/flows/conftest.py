"""The flow tests run twice, unchanged: everything embedded, and on a real nats-server, Valkey and PostgreSQL.

Those that change no setting and break nothing share one application (``Backend.world``), each with people of its own;
between two of them a night passes. A start takes longer than most of what there is to test.
"""

import asyncio
import gc
import itertools
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nebengjek import schema
from nebengjek.app import App
from nebengjek.clock import ManualClock
from nebengjek.database import Database
from nebengjek.settings import Settings
from nebengjek_plugins.chat.migrations import HISTORY as CHAT
from nebengjek_plugins.notifications.migrations import HISTORY as NOTIFICATIONS
from nebengjek_plugins.profiles.migrations import HISTORY as PROFILES
from tests.flows.world import World, running, settings_for
from tests.servers import NatsServer, PostgresServer, nats_server, valkey_server

_number = itertools.count()


class Backend(ABC):
    """Where a world keeps its things."""

    name: str
    races: int
    """How often two race for the same here."""
    _shared: AbstractAsyncContextManager[World] | None = None
    _world: World

    @abstractmethod
    async def fresh(self) -> dict[str, Any]:
        """The settings of empty stores."""

    @asynccontextmanager
    async def world(self, **values: Any) -> AsyncIterator[World]:
        """A running application on which others have been before: theirs is all over, but not forgotten.

        With ``values`` an application of its own, as ``own_world``.
        """
        if values:
            async with self.own_world(**values) as world:
                yield world
            return
        if self._shared is None:
            shared = self.own_world()
            self._world = await shared.__aenter__()
            self._shared = shared
        try:
            yield self._world
            await self._world.night()
        except BaseException:
            # Who knows in which state it is.
            await self.close()
            raise

    async def close(self) -> None:
        """End the application that is shared, if it was started."""
        shared, self._shared = self._shared, None
        if shared is not None:
            await shared.__aexit__(None, None, None)

    @asynccontextmanager
    async def own_world(self, *, sweeping: bool = False, **values: Any) -> AsyncIterator[World]:
        """A running application on empty stores; ``values``: settings, ``match__radius_km=3``."""
        given = await self.fresh() | values
        database_url = given.pop("database_url")

        def make(clock: ManualClock) -> App:
            return self.app(settings_for(database_url, **given), clock, sweeping)

        async with running(make) as world:
            yield world

    def app(self, settings: Settings, clock: ManualClock, sweeping: bool) -> App:
        return App(settings, clock=clock, sweeping=sweeping)


class Embedded(Backend):
    name = "embedded"
    races = 100

    def __init__(self, folder: Path, template: Path) -> None:
        self._folder = folder
        self._template = template

    async def fresh(self) -> dict[str, Any]:
        path = self._folder / f"{next(_number)}.sqlite3"
        shutil.copy(self._template, path)
        return {"database_url": f"sqlite:///{path}"}


class Real(Backend):
    name = "real"
    races = int(os.environ.get("RACES", "20"))

    def __init__(self, nats: NatsServer, redis_url: str, postgres: PostgresServer, template: str) -> None:
        self.nats = nats
        self._redis_url = redis_url
        self.postgres = postgres
        self.template = template

    async def fresh(self) -> dict[str, Any]:
        await self._forget_keys()
        database_url = await asyncio.to_thread(self.postgres.new_database, self.template)
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
    asyncio.run(make_schema(f"sqlite:///{path}"))
    return path


async def make_schema(url: str) -> None:
    """All tables, those of plugins too: to migrate takes longer than many a test."""
    database = Database(url)
    for history in (schema.OWN, CHAT, NOTIFICATIONS, PROFILES):
        await schema.upgrade(database, history)
    await database.close()


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    """The loop of every test that has a backend: what they share lives in it."""
    # As ``nebengjek.server`` does: the collector need not look at every module again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="session")
def embedded(
    runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path
) -> Iterator[Embedded]:
    backend = Embedded(tmp_path_factory.mktemp("worlds"), sqlite_template)
    yield backend
    runner.run(backend.close())


@pytest.fixture(scope="session")
def real_servers(postgres: PostgresServer) -> Iterator[Real]:
    with ExitStack() as stack:
        nats = stack.enter_context(nats_server())
        redis_url = stack.enter_context(valkey_server())
        template = postgres.new_database()
        asyncio.run(make_schema(template))
        yield Real(nats, redis_url, postgres, template)


@pytest.fixture(params=["embedded", pytest.param("real", marks=pytest.mark.real)], scope="module")
def backend(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Iterator[Backend]:
    if request.param == "embedded":
        yield request.getfixturevalue("embedded")
        return
    real: Real = request.getfixturevalue("real_servers")
    yield real
    # Its connections would not survive the time until the next module's tests: the loop stands still meanwhile.
    runner.run(real.close())
