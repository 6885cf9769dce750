"""What may happen to a ride: opened once per match, started, or cancelled.

Every change is one transaction: a conditional update of the row, and the event in the outbox. A repeated command
finds the row in a later state and is answered with that state. Distance and bill are in ``meter``, paying is in
``cashier``.
"""

from collections.abc import Sequence
from datetime import timedelta

import structlog

from nebengjek.bus.handling import Context
from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import Clock
from nebengjek.contracts.geo import Point, distance_km
from nebengjek.contracts.location import LatestLocations
from nebengjek.contracts.match import MatchAccepted
from nebengjek.contracts.message import uuid7
from nebengjek.contracts.rides import CancelRide, RideState, RideStatus, StartRide
from nebengjek.database import Database
from nebengjek.errors import Conflict, Forbidden, Invalid
from nebengjek.rides import events, store
from nebengjek.rides.fares import Tariff
from nebengjek.rides.store import RideRow

# Rides that one round of a sweep looks at: bounded, the next round comes in a second.
SWEEP_PAGE = 100
REASON_LENGTH = 200

log = structlog.stdlib.get_logger("nebengjek.rides")


class RideService:
    """Decides about rides. ``tariff``: of rides opened from now on; a ride keeps the rate it was opened with."""

    def __init__(
        self,
        bus: MessageBus,
        database: Database,
        clock: Clock,
        tariff: Tariff,
        *,
        start_radius_m: float,
        pickup_ttl: float,
    ) -> None:
        self._bus = bus
        self._database = database
        self._clock = clock
        self._tariff = tariff
        self._start_radius_m = start_radius_m
        self._pickup_ttl = timedelta(seconds=pickup_ttl)

    # -- from match to pick-up

    async def open(self, event: MatchAccepted, context: Context) -> None:
        """One ride per match, not after ``open_before``; nobody gets a second open ride (the match then fails)."""
        now = self._clock.now()
        if now >= event.open_before:
            log.warning("ride.not_opened", match=event.match_id, reason="too_late")
            return
        match = event.match
        ride = RideRow(
            ride_id=uuid7(),
            match_id=event.match_id,
            driver_id=match.driver_id,
            passenger_id=match.passenger_id,
            status="PICKUP",
            version=1,
            latitude=match.location.latitude,
            longitude=match.location.longitude,
            target_latitude=match.target_location.latitude,
            target_longitude=match.target_location.longitude,
            rate_per_km=self._tariff.rate_per_km,
            minimum_fare=self._tariff.minimum_fare,
            created_at=now,
        )
        async with self._database.begin() as tx:
            if not await self._bus.inbox.first(tx, context):
                return
            if not await store.insert_ride(tx, ride):
                # Not an error to try again: the match asks for its ride, finds none and frees both.
                log.warning("ride.not_opened", match=event.match_id, reason="there_is_one")
                return
            await self._bus.outbox.add(tx, events.pickup(ride))
        log.info("ride.pickup", ride=ride.ride_id, match=ride.match_id)

    async def start(self, command: StartRide) -> RideStatus:
        """The passenger is on board. By the driver, with both phones within the start radius.

        Raises NotFound, Forbidden, Conflict (too far apart, or nobody knows where a phone is), Unavailable.
        """
        ride = await self._known(command.ride_id)
        only_driver(ride, command.user_id)
        if ride.status == "CANCELLED":
            raise Conflict("the ride was cancelled")
        if ride.status != "PICKUP":
            return RideStatus(ride_id=ride.ride_id, status=ride.status)
        point = await self._where_it_begins(ride)
        async with self._database.begin() as tx:
            started = await store.change(
                tx,
                ride.ride_id,
                ["PICKUP"],
                said=1,
                status="ONGOING",
                start_latitude=point.latitude,
                start_longitude=point.longitude,
                start_time=point.timestamp,
                started_at=self._clock.now(),
            )
            if started is not None:
                await self._bus.outbox.add(tx, events.started(started))
        if started is None:  # decided otherwise in the meantime
            return await self.start(command)
        log.info("ride.started", ride=ride.ride_id)
        return RideStatus(ride_id=started.ride_id, status=started.status)

    async def _where_it_begins(self, ride: RideRow) -> Point:
        """The driver's point. Raises Conflict unless both phones are known to be near each other."""
        points = (await self._bus.request(LatestLocations(user_ids=list(ride.parties)))).points
        for who, user_id in (("driver", ride.driver_id), ("passenger", ride.passenger_id)):
            if user_id not in points:
                raise Conflict(f"it is not known where the {who} is: that phone has sent no point lately")
        metres = distance_km(points[ride.driver_id], points[ride.passenger_id]) * 1000
        if metres > self._start_radius_m:
            raise Conflict(f"the two phones are {metres:.0f} m apart, at most {self._start_radius_m:.0f} m to start")
        return points[ride.driver_id]

    # -- cancellation

    async def cancel(self, command: CancelRide) -> RideStatus:
        """Before the start, by either party. Raises Invalid (reason), NotFound, Forbidden, Conflict."""
        reason = _reason(command.reason)
        ride = await self._known(command.ride_id)
        if command.user_id not in ride.parties:
            raise Forbidden("only the driver and the passenger of a ride may cancel it")
        return await self._cancel(ride.ride_id, ["PICKUP"], reason)

    async def admin_cancel(self, ride_id: str, reason: str | None) -> RideStatus:
        """An operator ends a ride that has not arrived; nobody is billed. Raises as ``cancel`` does."""
        ride = await self._known(ride_id)
        return await self._cancel(ride.ride_id, ["PICKUP", "ONGOING"], _reason(reason))

    async def _cancel(self, ride_id: str, states: Sequence[RideState], reason: str | None) -> RideStatus:
        async with self._database.begin() as tx:
            cancelled = await store.change(
                tx,
                ride_id,
                states,
                said=1,
                status="CANCELLED",
                cancelled_at=self._clock.now(),
                cancel_reason=reason,
            )
            if cancelled is not None:
                await self._bus.outbox.add(tx, events.cancelled(cancelled))
        if cancelled is not None:
            log.info("ride.cancelled", ride=ride_id)
            return RideStatus(ride_id=ride_id, status=cancelled.status)
        present = await self._known(ride_id)
        if present.status != "CANCELLED":
            raise Conflict(f"the ride is {present.status} and can no longer be cancelled")
        return RideStatus(ride_id=ride_id, status=present.status)

    async def sweep(self) -> int:
        """Cancel the rides whose pick-up was awaited for too long; return how many."""
        before = self._clock.now() - self._pickup_ttl
        async with self._database.read() as connection:
            waiting = await store.waiting_since(connection, before, SWEEP_PAGE)
        done = 0
        for ride_id in waiting:
            try:
                await self._cancel(ride_id, ["PICKUP"], "pickup_timeout")
            except Conflict:  # it was started between the look and the update
                continue
            done += 1
        return done

    async def _known(self, ride_id: str) -> RideRow:
        """Raises NotFound."""
        async with self._database.read() as connection:
            return await store.known(connection, ride_id)


def only_driver(ride: RideRow, user_id: str) -> None:
    """Raises Forbidden for anybody else."""
    if user_id != ride.driver_id:
        raise Forbidden("only the driver of this ride may do that")


def _reason(text: str | None) -> str | None:
    """Raises Invalid: too long, or not one line of printable characters."""
    if text is None or not text.strip():
        return None
    stripped = text.strip()
    if len(stripped) > REASON_LENGTH or not stripped.isprintable():
        raise Invalid(f"reason is one line of at most {REASON_LENGTH} characters")
    return stripped
