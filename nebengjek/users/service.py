"""What a phone says of itself: beacon, finder, points, and whether it is there at all."""

from datetime import datetime
from typing import Any

import msgspec
from msgspec import structs
from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.bus.handling import Context
from nebengjek.bus.messaging import MessageBus
from nebengjek.bus.publishing import OnAck
from nebengjek.clock import Clock
from nebengjek.contracts.geo import Location, Point
from nebengjek.contracts.location import FrameRef, LocationUpdate
from nebengjek.contracts.match import MatchAccepted, MatchRejected, MatchUnavailable
from nebengjek.contracts.rides import RideCancelled, RideCompleted, RidePayment
from nebengjek.contracts.users import DriverCard, PassengerCard, UserBeacon, UserFinder, UserPresence
from nebengjek.database import Database
from nebengjek.errors import Conflict, Forbidden, Invalid, NotFound
from nebengjek.realtime.delivery import Delivery
from nebengjek.users import store
from nebengjek.users.frames import Active, BeaconData, FinderData, FinderState, PhonePoint


class _Sought(FinderData, frozen=True, kw_only=True):
    """An open search as the user's row keeps it."""

    began: int = 0


class UsersService:
    """``grace``: seconds that a phone may be gone before its driver leaves the pool."""

    def __init__(self, bus: MessageBus, database: Database, delivery: Delivery, clock: Clock, *, grace: float) -> None:
        self._bus = bus
        self._database = database
        self._delivery = delivery
        self._clock = clock
        self._grace = grace
        self._reconciled = False
        self._since = clock.now()

    # -- commands

    async def beacon(self, user_id: str, data: BeaconData) -> Active:
        """Switch the beacon. Raises Forbidden (no driver), Invalid (no location), Conflict (bound by a match)."""
        if data.is_active and data.location is None:
            raise Invalid("location: needed to switch the beacon on")
        if data.location is not None:
            await self.point(user_id, data.location, None)
        async with self._database.begin() as tx:
            row = await self._free(tx, user_id)
            if row.role != "driver":
                raise Forbidden("only a driver has a beacon")
            now = self._clock.now()
            version = await store.change(tx, user_id, now, beacon_active=data.is_active)
            event = UserBeacon(
                user_id=user_id,
                version=version or 0,
                is_active=data.is_active,
                location=_place(data.location),
                driver=DriverCard(
                    name=row.full_name or "",
                    vehicle_type=row.vehicle_type,
                    vehicle_plate=row.vehicle_plate,
                    avatar_url=row.avatar_url,
                ),
                avatar_version=row.avatar_version,
            )
            await self._bus.outbox.add(tx, event)
        said = Active(is_active=data.is_active)
        await self._delivery.deliver(user_id, "user.beacon", said, message_id=f"user.beacon-{user_id}-{version}")
        return said

    async def finder(self, user_id: str, data: FinderData) -> Active:
        """Switch the finder. Raises Forbidden (a driver), Invalid, Conflict (bound), Conflict PAYMENT_DUE."""
        if data.is_active and (data.location is None or data.target_location is None):
            raise Invalid("location and target_location: both are needed to look for a driver")
        if data.location is not None:
            await self.point(user_id, data.location, None)
        async with self._database.begin() as tx:
            row = await self._free(tx, user_id)
            if row.role != "passenger":
                raise Forbidden("only a passenger has a finder")
            if data.is_active and (ride_id := await store.owes(tx, user_id)):
                raise Conflict(f"ride {ride_id} is not paid yet", code="PAYMENT_DUE")
            event = await self._find(tx, row, data)
        said = Active(is_active=data.is_active)
        message_id = f"user.finder-{user_id}-{event.version}"
        await self._delivery.deliver(user_id, "user.finder", said, message_id=message_id)
        return said

    async def _find(self, tx: AsyncConnection, row: Row[Any], data: FinderData) -> UserFinder:
        now = self._clock.now()
        began = msgspec.json.decode(row.finder, type=_Sought).began if row.finder else row.version + 1
        sought = msgspec.json.encode(_Sought(**structs.asdict(data), began=began)).decode() if data.is_active else None
        version = await store.change_finder(tx, row.id, now, is_active=data.is_active, finder=sought)
        event = UserFinder(
            user_id=row.id,
            version=version or 0,
            is_active=data.is_active,
            passenger=PassengerCard(name=row.full_name or ""),
            location=_place(data.location),
            target_location=data.target_location,
            vehicle_type=data.vehicle_type,
            began=began,
        )
        await self._bus.outbox.add(tx, event)
        return event

    async def _free(self, tx: AsyncConnection, user_id: str) -> Row[Any]:
        row = await store.by_id(tx, user_id)
        if row is None:
            raise NotFound("there is no such user")
        if await store.engaged_in(tx, user_id):
            raise Conflict("a match or ride is under way")
        return row

    def stamped(self, point: PhonePoint) -> PhonePoint:
        """With the time at which it was received, if the phone gave none."""
        return point if point.timestamp is not None else structs.replace(point, timestamp=self._clock.now())

    async def point(self, user_id: str, point: PhonePoint, frame: FrameRef | None, on_ack: OnAck | None = None) -> None:
        """Pass a point on; without a phone time it has the time at which it was received."""
        now = self._clock.now()
        update = LocationUpdate(
            user_id=user_id,
            point=Point(
                latitude=point.latitude,
                longitude=point.longitude,
                timestamp=point.timestamp or now,
                accuracy=point.accuracy,
                speed=point.speed,
                heading=point.heading,
            ),
            received_at=now,
            frame=frame,
        )
        await self._bus.publish_soon(update, on_ack)

    # -- presence

    async def came(self, user_id: str) -> None:
        """A phone connected: say so, once."""
        await self._presence(user_id, online=True)

    async def sweep_presence(self) -> None:
        """Say who has been gone for longer than the grace; at the first round also who was there before a restart."""
        gone = await self._delivery.presence.lapsed(self._grace)
        if not self._reconciled:
            gone += await self._lost(self._clock.now())
        connected = await self._delivery.presence.connected(gone)
        away = [user_id for user_id in gone if user_id not in connected]
        for user_id in away:
            await self._presence(user_id, online=False)
        # Who connected meanwhile may have read that he was online still.
        for user_id in await self._delivery.presence.connected(away):
            await self.came(user_id)

    async def _lost(self, now: datetime) -> list[str]:
        if (now - self._since).total_seconds() < self._grace:
            return []
        self._reconciled = True
        async with self._database.read() as tx:
            statement = select(store.users.c.id).where(store.users.c.online.is_(True))
            return list((await tx.execute(statement)).scalars())

    async def _presence(self, user_id: str, *, online: bool) -> None:
        changed = store.users.c.online.is_(not online)
        async with self._database.begin() as tx:
            version = await store.change(tx, user_id, self._clock.now(), changed, online=online)
            if version is not None:
                await self._bus.outbox.add(tx, UserPresence(user_id=user_id, version=version, online=online))

    # -- what binds a user

    async def accepted(self, event: MatchAccepted, context: Context) -> None:
        parties = (event.match.driver_id, event.match.passenger_id)
        async with self._database.begin() as tx:
            if await self._bus.inbox.first(tx, context):
                await store.engage(tx, event.match_id, parties, self._clock.now())
                await store.change(tx, event.match.passenger_id, self._clock.now(), finder_active=False, finder=None)

    async def rejected(self, event: MatchRejected, context: Context) -> None:
        if event.match.reason == "failed":
            await self._release(event.match_id, (event.match.driver_id, event.match.passenger_id), context)

    async def ended(self, event: RideCompleted | RideCancelled, context: Context) -> None:
        await self._release(event.match_id, (event.driver_id, event.passenger_id), context)

    async def _release(self, match_id: str, parties: tuple[str, ...], context: Context) -> None:
        async with self._database.begin() as tx:
            if await self._bus.inbox.first(tx, context):
                await store.release(tx, match_id, parties, self._clock.now())

    async def paid(self, event: RidePayment, context: Context) -> None:
        if event.status not in ("OVERDUE", "ACCEPTED"):
            return
        async with self._database.begin() as tx:
            if await self._bus.inbox.first(tx, context):
                paid = event.status == "ACCEPTED"
                await store.note_payment(tx, event.ride_id, event.passenger_id, paid=paid, now=self._clock.now())

    async def search_ended(self, event: MatchUnavailable, context: Context) -> bool:
        """Switch the finder off that this search came from; False when it has been sent again since."""
        current = store.users.c.finder_version == event.finder_version
        active = store.users.c.finder_active.is_(True)
        async with self._database.begin() as tx:
            version = await store.change(
                tx, event.passenger_id, self._clock.now(), current, active, finder_active=False, finder=None
            )
            return version is not None

    async def state(self, user_id: str) -> tuple[Row[Any], Active | None, FinderState | None]:
        """The user's row, his beacon (drivers) and his finder (passengers). Raises NotFound."""
        async with self._database.read() as tx:
            row = await store.by_id(tx, user_id)
        if row is None:
            raise NotFound("there is no such user")
        if row.role == "driver":
            return row, Active(is_active=row.beacon_active), None
        if row.finder is None:
            return row, None, FinderState(is_active=False)
        return row, None, msgspec.json.decode(row.finder, type=FinderState)


def _place(point: PhonePoint | None) -> Location | None:
    return None if point is None else Location(latitude=point.latitude, longitude=point.longitude)
