"""Each promise of the bus is tried on the broker in memory and on a real nats-server, with a real SQLite file."""

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from tests.bus.stage import Stage, make_stage
from tests.servers import NatsServer, nats_server


@pytest.fixture(scope="session")
def bus_nats() -> Iterator[NatsServer]:
    with nats_server() as server:
        yield server


@pytest.fixture(params=["memory", pytest.param("nats", marks=pytest.mark.real)])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Stage:
    return make_stage(request.param, tmp_path / "bus.sqlite3", lambda: request.getfixturevalue("bus_nats"))


@pytest.fixture
def memory_stage(tmp_path: Path) -> Stage:
    """For what only a bus in one process promises."""
    return make_stage("memory", tmp_path / "bus.sqlite3", lambda: None)


@pytest.fixture
def nats_stage(tmp_path: Path, bus_nats: NatsServer) -> Stage:
    return make_stage("nats", tmp_path / "bus.sqlite3", lambda: bus_nats)


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[EventDict]]:
    """What was logged. Not to be printed: tracebacks for people cost half a second each."""
    with capture_logs() as events:
        yield events


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Open the stage in the loop of the test, and end what the test left running."""
    names = pyfuncitem._fixtureinfo.argnames
    stages = [value for name in names if isinstance(value := pyfuncitem.funcargs[name], Stage)]
    if not inspect.iscoroutinefunction(pyfuncitem.obj) or not stages:
        return None

    async def run() -> None:
        async with stages[0]:
            await pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names})

    with asyncio.Runner() as runner:
        runner.run(run())
    return True
