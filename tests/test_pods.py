"""Pods that hear each other: each knows the others, and who shares what is embedded is not ready."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from nebengjek import schema
from nebengjek.bus.memory.broker import MemoryBroker
from nebengjek.bus.memory.server import MemoryServer
from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import ManualClock
from nebengjek.contracts.pods import PodHeartbeat, health_subject
from nebengjek.database import Database
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
    async def broker(self) -> AsyncIterator[MemoryBroker]:
        broker = MemoryBroker(self.server)
        await broker.connect()
        try:
            yield broker
        finally:
            await broker.close()

    @asynccontextmanager
    async def pod(
        self, pod_id: str, modules: list[str], *, embedded: Sequence[str] = (), sockets: int = 0
    ) -> AsyncIterator[Pods]:
        database = Database(f"sqlite:///{self._folder / pod_id}.sqlite3")
        await schema.upgrade(database)
        async with self.broker() as broker:
            bus = MessageBus(broker, streams(), database.begin, pod_id=pod_id, clock=self.clock)
            yield Pods(bus, self.clock, modules=modules, embedded=[*embedded], sockets=lambda: sockets)
        await database.close()


async def all_heard(*pods: Pods) -> None:
    """Everybody says that he is there, and has heard it of everybody: tasks hand it on, no time has to pass."""
    for _ in range(2):
        for pod in pods:
            await pod.beat()
    async with asyncio.timeout(5):
        while any(len(pod.known()) < len(pods) for pod in pods):  # noqa: ASYNC110 - see above
            await asyncio.sleep(0)


async def test_pods_know_each_other_until_ten_seconds_after_the_last_word(tmp_path: Path) -> None:
    street = Street(tmp_path)
    async with street.pod("one", EVERYTHING) as one, street.pod("two", EVERYTHING, sockets=7) as two:
        await all_heard(one, two)
        assert [(pod.pod_id, pod.active_connections) for pod in one.known()] == [("one", 0), ("two", 7)]
        assert (one.conflict(), two.conflict()) == (None, None)
        street.clock.advance(10.1)
        assert [pod.pod_id for pod in one.known()] == ["one"]
        await all_heard(one, two)
        assert [pod.pod_id for pod in one.known()] == ["one", "two"]


async def test_a_pod_says_how_it_is_when_it_is_asked(tmp_path: Path) -> None:
    street = Street(tmp_path)
    async with street.pod("one", EVERYTHING, sockets=3) as one, street.broker() as asker:
        await one.beat()
        reply = await asker.request(health_subject("one"), b"", timeout=5)
        said = msgspec.json.decode(reply.data, type=PodHeartbeat)
        assert (said.pod_id, said.active_connections, said.modules) == ("one", 3, EVERYTHING)
        assert said.memory_usage_mb > 1


async def test_a_pod_that_begins_with_the_bus_away_is_heard_when_it_is_back(tmp_path: Path) -> None:
    street = Street(tmp_path)
    async with street.pod("one", EVERYTHING) as one, street.pod("two", EVERYTHING) as two:
        street.server.stop()
        await one.beat()
        street.server.start()
        await all_heard(one, two)


async def test_what_is_embedded_is_not_shared(tmp_path: Path) -> None:
    street = Street(tmp_path)
    async with street.pod("one", OTHERS, embedded=["fast state"]) as one, street.pod("two", OTHERS) as two:
        await all_heard(one, two)
        assert one.conflict() == "fast state is embedded in this process, but two runs too"
        assert two.conflict() is None
