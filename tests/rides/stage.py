"""The rides module on a real bus and database; the phones' places and the odometer are said by the test."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import select

from nebengjek.bus.memory.broker import MemoryBroker
from nebengjek.bus.memory.server import MemoryServer
from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import ManualClock
from nebengjek.contracts.geo import Location, Point
from nebengjek.contracts.location import CloseRide, LatestLocations, LatestPoints, LocationAggregate, RideDistance
from nebengjek.contracts.match import Match, MatchAccepted
from nebengjek.contracts.message import Query, uuid7
from nebengjek.contracts.rides import (
    ArriveRide,
    Bill,
    CancelRide,
    OngoingRide,
    PaymentStatus,
    PayRide,
    Ride,
    RideArrived,
    RideCancelled,
    RideCompleted,
    RideEvent,
    RideOfMatch,
    RideOfUser,
    RidePayment,
    RidePickup,
    RideProgress,
    RideStarted,
    RideStatus,
    StartRide,
)
from nebengjek.contracts.users import DriverCard, PassengerCard
from nebengjek.database import Database, metadata
from nebengjek.errors import Unavailable
from nebengjek.module import Module, answer, on
from nebengjek.rides.module import rides
from nebengjek.rides.payments import SimulatedGateway, simulated_charges
from nebengjek.rides.tables import payment_attempts
from nebengjek.streams import streams

MONAS = Location(latitude=-6.1754, longitude=106.8272)
KOTA_TUA = Location(latitude=-6.1352, longitude=106.8133)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
WAIT = 5.0

A = TypeVar("A")
E = TypeVar("E", bound=RideEvent)


class Odometer:
    """Plays the location module: where phones are, and how long a ride was."""

    def __init__(self) -> None:
        self.points: dict[str, Point] = {}
        self.total_km = 0.0
        self.sequence = 0
        self.review = False
        self.away = False
        self.closed: list[CloseRide] = []
        self.together: asyncio.Barrier | None = None

    def put(self, user_id: str, place: Location, *, north_m: float = 0.0, at: datetime = NOON) -> None:
        latitude = place.latitude + north_m / 111_195
        self.points[user_id] = Point(latitude=latitude, longitude=place.longitude, timestamp=at)

    async def latest(self, query: LatestLocations) -> LatestPoints:
        return LatestPoints(points={who: self.points[who] for who in query.user_ids if who in self.points})

    async def close(self, query: CloseRide) -> RideDistance:
        self.closed.append(query)
        if self.together is not None:
            async with asyncio.timeout(WAIT):
                await self.together.wait()
        if self.away:
            raise Unavailable("redis")
        return RideDistance(total_km=self.total_km, sequence=self.sequence, review=self.review)


class Ear:
    """Hears every event about rides, as another module would."""

    def __init__(self) -> None:
        self.heard: list[RideEvent] = []
        self._news = asyncio.Condition()

    async def hear(self, event: RideEvent) -> None:
        async with self._news:
            self.heard.append(event)
            self._news.notify_all()

    def of(self, kind: type[E], ride_id: str) -> list[E]:
        return [event for event in self.heard if isinstance(event, kind) and event.ride_id == ride_id]

    async def wait(self, kind: type[E], met: Callable[[E], bool] = lambda _: True) -> E:
        """The first event of this kind for which ``met`` holds, now or later. Raises TimeoutError."""

        def found() -> list[E]:
            return [event for event in self.heard if isinstance(event, kind) and met(event)]

        async with asyncio.timeout(WAIT), self._news:
            await self._news.wait_for(lambda: bool(found()))
            return found()[0]


@dataclass
class Stage:
    bus: MessageBus
    database: Database
    clock: ManualClock
    module: Module
    odometer: Odometer = field(default_factory=Odometer)
    ear: Ear = field(default_factory=Ear)

    async def ask(self, query: Query[A]) -> A:
        return await self.bus.request(query, timeout=30.0)

    async def sweep(self) -> None:
        """Every sweep once."""
        for sweep in self.module.sweeps:
            await sweep.run()

    async def settled(self) -> None:
        """Return when everything said so far has been heard: by rides and by the ear."""
        async with asyncio.timeout(WAIT):
            while True:
                health = await self.bus.health()
                waiting = sum(each.lag + each.ack_pending for each in health.consumers)
                if not waiting and await self.bus.outbox.size() == 0:
                    return
                # Not 0: a loop that spins keeps the database's thread from running.
                await asyncio.sleep(0.002)

    # -- what people do

    def accepted(self, driver: str, passenger: str, *, open_for: float = 120.0) -> MatchAccepted:
        match_id = uuid7()
        match = Match(
            match_id=match_id,
            passenger_id=passenger,
            driver_id=driver,
            location=MONAS,
            driver_location=MONAS,
            target_location=KOTA_TUA,
            distance_km=0.1,
            eta_minutes=1,
            estimated_fare=15000,
            driver=DriverCard(name="Budi", vehicle_type="car", vehicle_plate="B 1234 XYZ"),
            passenger=PassengerCard(name="Sari"),
            match_status="ACCEPTED",
            expires_at=self.clock.now(),
        )
        before = self.clock.now() + timedelta(seconds=open_for)
        return MatchAccepted(match_id=match_id, version=3, match=match, open_before=before)

    async def picked_up(self, driver: str, passenger: str) -> str:
        """A ride in PICKUP whose two phones are at the same place; its id."""
        event = self.accepted(driver, passenger)
        await self.bus.publish(event)
        pickup = await self.ear.wait(RidePickup, lambda said: said.match_id == event.match_id)
        for who in (driver, passenger):
            self.odometer.put(who, MONAS)
        return pickup.ride_id

    async def under_way(self, driver: str = "driver", passenger: str = "passenger") -> str:
        ride_id = await self.picked_up(driver, passenger)
        await self.start(ride_id, driver)
        return ride_id

    async def at_the_end(self, km: float = 5.0, factor: float = 1.0) -> tuple[str, Bill]:
        """A ride of ``driver`` and ``passenger`` that has arrived, and its bill."""
        ride_id = await self.under_way()
        self.odometer.total_km = km
        return ride_id, await self.arrive(ride_id, factor=factor)

    async def start(self, ride_id: str, by: str = "driver") -> RideStatus:
        return await self.ask(StartRide(ride_id=ride_id, user_id=by))

    async def arrive(self, ride_id: str, by: str = "driver", *, factor: float = 1.0) -> Bill:
        return await self.ask(ArriveRide(ride_id=ride_id, user_id=by, adjustment_factor=factor))

    async def pay(
        self, ride_id: str, amount: int, by: str = "passenger", *, method: str = "simulated"
    ) -> PaymentStatus:
        return await self.ask(PayRide(ride_id=ride_id, user_id=by, amount=amount, method=method))

    async def cancel(self, ride_id: str, by: str = "passenger", *, reason: str | None = None) -> RideStatus:
        return await self.ask(CancelRide(ride_id=ride_id, user_id=by, reason=reason))

    async def drive(self, ride_id: str, sequence: int, km: float, total_km: float) -> None:
        event = LocationAggregate(ride_id=ride_id, sequence=sequence, distance_km=km, total_km=total_km)
        await self.bus.publish(event)

    # -- what is known

    async def ride(self, ride_id: str) -> Ride:
        match_id = next(event.match_id for event in self.ear.heard if event.ride_id == ride_id)
        found = await self.ask(RideOfMatch(match_id=match_id))
        assert found.ride is not None
        return found.ride

    async def of_user(self, user_id: str) -> OngoingRide:
        return await self.ask(RideOfUser(user_id=user_id))

    async def charged(self) -> int:
        """Rupiah that the gateway took."""
        columns = simulated_charges.c
        async with self.database.read() as connection:
            found = await connection.execute(select(columns.amount).where(columns.status == "charged"))
            return sum(found.scalars())

    async def attempts(self) -> list[tuple[int, str, str | None]]:
        """(attempt, status, reason) of every try to pay."""
        columns = payment_attempts.c
        async with self.database.read() as connection:
            statement = select(columns.attempt, columns.status, columns.reason).order_by(columns.attempt)
            return [tuple(row) for row in await connection.execute(statement)]


@asynccontextmanager
async def stage(where: Path | str, *, gateway: Any = None, **values: Any) -> AsyncIterator[Stage]:
    """The module with ``values`` as its settings; nothing sweeps by itself.

    ``where``: a directory for a database of its own, or the URL of an empty one.
    """
    database = Database(where if isinstance(where, str) else f"sqlite:///{where / uuid7()}.db")
    async with database.begin() as tx:
        await tx.run_sync(metadata.create_all)
    clock = ManualClock(NOON)
    bus = MessageBus(MemoryBroker(MemoryServer()), streams(), database.begin, pod_id="pod-test", clock=clock)
    database.on_commit(bus.outbox.committed)
    module = rides(bus, database, gateway or SimulatedGateway(database), clock, **values)
    acting = Stage(bus=bus, database=database, clock=clock, module=module)
    bus.wire("rides", module.hears, module.watches, module.answers)
    places = [answer(LatestLocations, acting.odometer.latest), answer(CloseRide, acting.odometer.close)]
    bus.wire("location", [], [], places)
    said = (RidePickup, RideStarted, RideProgress, RideArrived, RidePayment, RideCompleted, RideCancelled)
    bus.wire("ear", [on(kind, acting.ear.hear) for kind in said], [], [])
    await bus.start()
    try:
        yield acting
    finally:
        await bus.drain(5.0)
        await database.close()
