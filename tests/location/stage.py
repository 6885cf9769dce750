"""The location module on a real bus and database, over either fast store; the test plays phones and rides."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from nebengjek.bus.memory.broker import MemoryBroker
from nebengjek.bus.memory.server import MemoryServer
from nebengjek.bus.messaging import MessageBus
from nebengjek.contracts.geo import Location, Point
from nebengjek.contracts.location import (
    CloseRide,
    FrameRef,
    LatestLocations,
    LocationAggregate,
    LocationRefused,
    LocationStored,
    LocationUpdate,
    RideDistance,
)
from nebengjek.contracts.message import Event, uuid7
from nebengjek.contracts.rides import RideArrived, RideCancelled, RidePickup, RideStarted
from nebengjek.database import Database, metadata
from nebengjek.location import records
from nebengjek.location.module import location
from nebengjek.location.odometer import Rules
from nebengjek.location.redis_store import RedisPoints
from nebengjek.location.store import MemoryPoints, Points
from nebengjek.module import Module, on
from nebengjek.streams import streams
from tests.faststate.backends import START, Backend, backend

WAIT = 5.0
HOME = Location(latitude=-6.1754, longitude=106.8272)
TARGET = Location(latitude=-6.1754 + 10 / 111.195, longitude=106.8272)
RIDE = "ride-1"
DRIVER, PASSENGER = "driver", "passenger"

E = TypeVar("E", bound=Event)


def at(seconds: float, north_m: float = 0.0, east_m: float = 0.0) -> Point:
    """A place so many metres from home, so many seconds after the beginning."""
    return Point(
        latitude=HOME.latitude + north_m / 111_195,
        longitude=HOME.longitude + east_m / 110_550,
        timestamp=START + timedelta(seconds=seconds),
    )


class Ear:
    def __init__(self) -> None:
        self.heard: list[Any] = []

    async def hear(self, event: Event) -> None:
        self.heard.append(event)

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.heard if isinstance(event, kind)]


@dataclass
class Stage:
    bus: MessageBus
    database: Database
    where: Backend
    points: Points
    modules: list[Module]
    ear: Ear = field(default_factory=Ear)
    frames: int = 0

    # -- phones

    async def until(self, point: Point) -> None:
        """Let it be the moment of this point, unless it is later already."""
        ahead = (point.timestamp - self.where.clock.now()).total_seconds()
        if ahead > 0:
            await self.where.advance(ahead)

    async def say(self, user_id: str, *points: Point, now: Point | None = None) -> list[LocationUpdate]:
        """The user's phone reports points, at the moment of the last or ``now``; return when all have been judged."""
        await self.until(now or max(points, key=lambda point: point.timestamp))
        said = [self.update(user_id, point) for point in points]
        for event in said:
            await self.bus.publish(event)
        await self.settled()
        return said

    def update(self, user_id: str, point: Point) -> LocationUpdate:
        self.frames += 1
        frame = FrameRef(connection_id="c", id=str(self.frames))
        return LocationUpdate(user_id=user_id, point=point, received_at=self.where.clock.now(), frame=frame)

    async def settled(self) -> None:
        """Return when everything said so far has been heard by everybody."""
        async with asyncio.timeout(WAIT):
            while True:
                await self.bus.flush()
                health = await self.bus.health()
                waiting = sum(each.lag + each.ack_pending for each in health.consumers)
                if not waiting and await self.bus.outbox.size() == 0:
                    return
                await asyncio.sleep(0.002)

    async def latest(self, *user_ids: str) -> dict[str, Point]:
        return (await self.bus.request(LatestLocations(user_ids=list(user_ids)))).points

    # -- the ride

    def pickup(self, ride_id: str = RIDE) -> RidePickup:
        return RidePickup(
            **_parties(ride_id, 1), status="PICKUP", location=HOME, target_location=TARGET, created_at=START
        )

    def started(self, seconds: float = 0.0, ride_id: str = RIDE) -> RideStarted:
        return RideStarted(
            **_parties(ride_id, 2),
            status="ONGOING",
            location=HOME,
            target_location=TARGET,
            start_time=START + timedelta(seconds=seconds),
            started_at=START,
        )

    def arrived(self, ride_id: str = RIDE) -> RideArrived:
        return RideArrived(
            **_parties(ride_id, 3),
            status="ARRIVED",
            distance_km=0,
            total_cost=0,
            adjustment_factor=1,
            adjusted_cost=0,
            admin_fee=0,
            driver_payout=0,
            payment_id="p",
            arrived_at=START,
        )

    def cancelled(self, ride_id: str = RIDE) -> RideCancelled:
        return RideCancelled(**_parties(ride_id, 3), status="CANCELLED", reason=None, cancelled_at=START)

    async def tell(self, *events: Event) -> None:
        for event in events:
            await self.bus.publish(event)
            await self.settled()

    async def under_way(self) -> None:
        await self.tell(self.pickup(), self.started())

    async def close(self, start: Point | None = None) -> RideDistance:
        query = CloseRide(ride_id=RIDE, driver_id=DRIVER, passenger_id=PASSENGER, start=start or at(0))
        return await self.bus.request(query, timeout=10.0)

    # -- trouble

    async def lose_the_fast_store(self) -> None:
        """As a restart of this process, or of Redis without persistence."""
        if self.where.client is not None:
            await self.where.client.flushdb()
        else:
            MemoryPoints.__init__(self.points, self.where.clock)  # type: ignore[arg-type]

    async def sweep(self) -> None:
        for module in self.modules:
            for sweep in module.sweeps:
                await sweep.run()

    # -- what is known

    def stored(self, user_id: str) -> list[LocationStored]:
        return [event for event in self.ear.of(LocationStored) if event.user_id == user_id]

    def refused(self, user_id: str) -> list[str]:
        return [event.reason for event in self.ear.of(LocationRefused) if event.user_id == user_id]

    def aggregates(self) -> list[LocationAggregate]:
        return sorted(self.ear.of(LocationAggregate), key=lambda event: event.sequence)

    async def flags(self) -> dict[str, int]:
        async with self.database.read() as tx:
            return {row.user_id: row._mapping["count"] for row in await records.flagged(tx)}


def _parties(ride_id: str, version: int) -> dict[str, Any]:
    return {
        "ride_id": ride_id,
        "match_id": f"match-of-{ride_id}",
        "driver_id": DRIVER,
        "passenger_id": PASSENGER,
        "version": version,
    }


@asynccontextmanager
async def stage(directory: Path, url: str | None, *, pods: int = 1, **values: Any) -> AsyncIterator[Stage]:
    """``pods``: so many run the module and share its consumers; the first one's bus is the test's own."""
    async with AsyncExitStack() as stack:
        where = await stack.enter_async_context(backend(url))
        server = MemoryServer()
        file = directory / f"{uuid7()}.db"
        acting: Stage | None = None
        for pod in range(pods):
            database = Database(f"sqlite:///{file}")
            stack.push_async_callback(database.close)
            if acting is None:
                async with database.begin() as tx:
                    await tx.run_sync(metadata.create_all)
            points: Points = RedisPoints(where.client) if where.client else MemoryPoints(where.clock)
            bus = MessageBus(MemoryBroker(server), streams(), database.begin, pod_id=f"pod-{pod}", clock=where.clock)
            database.on_commit(bus.outbox.committed)
            module = location(bus, database, points, where.clock, Rules(), **values)
            bus.wire("location", module.hears, module.watches, module.answers)
            if acting is None:
                acting = Stage(bus=bus, database=database, where=where, points=points, modules=[])
                said = (LocationStored, LocationRefused, LocationAggregate)
                bus.wire("ear", [on(kind, acting.ear.hear) for kind in said], [], [])
            acting.modules.append(module)
            assert module.start is not None
            await module.start()
            await bus.start()
            stack.push_async_callback(bus.drain, 5.0)
        assert acting is not None
        yield acting
