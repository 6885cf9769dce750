"""Pods that hear each other: who serves the phones does so alone, and who shares what is embedded is not ready."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nebengjek import schema
from nebengjek.bus.memory.broker import MemoryBroker
from nebengjek.bus.memory.server import MemoryServer
from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import ManualClock
from nebengjek.database import Database
from nebengjek.errors import Misconfigured
from nebengjek.pods import Pods
from nebengjek.streams import streams

EVERYTHING = ["users", "location", "match", "rides"]
OTHERS = ["location", "match", "rides"]


class Street:
    """One server that every pod is connected to, and one clock."""

    def __init__(self, folder: Path) -> None:
        self.server = MemoryServer()
        self.clock = ManualClock(datetime(2026, 1, 5, tzinfo=UTC))
        self._folder = folder

    @asynccontextmanager
    async def pod(self, pod_id: str, modules: list[str], *, embedded: list[str] | None = None) -> AsyncIterator[Pods]:
        database = Database(f"sqlite:///{self._folder / pod_id}.sqlite3")
        await schema.upgrade(database)
        broker = MemoryBroker(self.server)
        bus = MessageBus(broker, streams(), database.begin, pod_id=pod_id, clock=self.clock)
        await broker.connect()
        try:
            yield Pods(bus, self.clock, modules=modules, embedded=embedded or [])
        finally:
            await broker.close()
            await database.close()


async def all_heard(*pods: Pods) -> None:
    """Everybody says that he is there, and has heard it of everybody: tasks hand it on, no time has to pass."""
    for _ in range(2):
        for pod in pods:
            await pod.beat()
    async with asyncio.timeout(5):
        while any(len(pod.known()) < len(pods) for pod in pods):  # noqa: ASYNC110 - see above
            await asyncio.sleep(0)


async def test_a_second_pod_for_phones_is_refused_and_told_which_is_the_first(tmp_path: Path) -> None:
    street = Street(tmp_path)
    async with street.pod("one", EVERYTHING) as one, street.pod("two", ["users"]) as two:
        await one.refuse_second()
        await one.beat()
        with pytest.raises(Misconfigured, match="one runs the module users already"):
            await two.refuse_second()
        async with street.pod("three", OTHERS) as three:
            await three.refuse_second()
            await all_heard(one, three)
            assert (one.conflict(), three.conflict()) == (None, None)


async def test_who_comes_after_the_first_has_ended_is_welcome(tmp_path: Path) -> None:
    street = Street(tmp_path)
    async with street.pod("two", EVERYTHING) as two:
        async with street.pod("one", EVERYTHING) as one:
            await one.beat()
        await two.refuse_second()


async def test_who_could_not_ask_is_not_ready_while_both_are_there(tmp_path: Path) -> None:
    street = Street(tmp_path)
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(street.pod(name, EVERYTHING)) for name in ("one", "two")]
        street.server.stop()
        await two.refuse_second()
        street.server.start()
        await all_heard(one, two)
        assert one.conflict() == "two runs the module users too: a phone misses what the other pod hears for it"
        assert "one runs the module users too" in str(two.conflict())
        # Ten seconds later the other one is forgotten, unless it is heard.
        street.clock.advance(10.1)
        assert one.conflict() is None
        await all_heard(one, two)
        assert one.conflict() is not None


async def test_what_is_embedded_is_not_shared(tmp_path: Path) -> None:
    street = Street(tmp_path)
    async with street.pod("one", OTHERS, embedded=["fast state"]) as one, street.pod("two", OTHERS) as two:
        await all_heard(one, two)
        assert one.conflict() == "fast state is embedded in this process, but two runs too"
        assert two.conflict() is None
