"""Each scenario runs on the broker in memory, in virtual time, and on a real nats-server.

A third broker is one more parameter of ``harness``. Scenarios have times; where one fails on a machine that was late
itself, nothing is said about the broker, and it is played again.
"""

import inspect
from collections.abc import Iterator

import pytest

from tests.conformance.harness import Harness, MemoryHarness, NatsHarness, played
from tests.servers import NatsServer, nats_server


@pytest.fixture(scope="session")
def conformance_nats() -> Iterator[NatsServer]:
    with nats_server() as server:
        yield server


@pytest.fixture(params=["memory", pytest.param("nats", marks=pytest.mark.real)])
def harness(request: pytest.FixtureRequest) -> Harness:
    if request.param == "memory":
        return MemoryHarness()
    return NatsHarness(request.getfixturevalue("conformance_nats"))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Open the harness in the loop of the test, and close what the test left open."""
    harness = pyfuncitem.funcargs.get("harness")
    if not inspect.iscoroutinefunction(pyfuncitem.obj) or not isinstance(harness, Harness):
        return None
    names = pyfuncitem._fixtureinfo.argnames

    given = {name: pyfuncitem.funcargs[name] for name in names}
    played(harness, lambda: pyfuncitem.obj(**given))
    return True
