"""What may happen to a ride: opened once per match, started, measured, billed at arrival, or cancelled.

Every change is one transaction: a conditional update of the row, and the event in the outbox. A repeated command
finds the row in a later state and is answered with that state. Paying is in ``cashier``.
"""

from collections.abc import Sequence
from datetime import timedelta

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.bus.handling import Context, Reject
from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import Clock
from nebengjek.contracts.geo import Location, Point, distance_km
from nebengjek.contracts.location import CloseRide, LatestLocations, LocationAggregate, RideDistance
from nebengjek.contracts.match import MatchAccepted
from nebengjek.contracts.message import uuid7
from nebengjek.contracts.rides import (
    ArriveRide,
    Bill,
    CancelRide,
    OngoingRide,
    Ride,
    RideDetails,
    RideOfMatch,
    RideOfUser,
    RideState,
    RideStatus,
    StartRide,
)
from nebengjek.database import Database
from nebengjek.errors import Conflict, Forbidden, Invalid, NotFound
from nebengjek.rides import events, store
from nebengjek.rides.fares import Estimate, Tariff, estimate, millimetres
from nebengjek.rides.store import PaymentRow, RideRow

# Rides that one round of a sweep looks at: bounded, the next round comes in a second.
SWEEP_PAGE = 100
REASON_LENGTH = 200

log = structlog.stdlib.get_logger("nebengjek.rides")


class ReviewedRide(Ride, frozen=True, kw_only=True):
    """A ride as an operator reads it. ``review``: the paths of the two phones differ."""

    review: bool


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
        arrival_wait: float,
    ) -> None:
        self._bus = bus
        self._database = database
        self._clock = clock
        self._tariff = tariff
        self._start_radius_m = start_radius_m
        self._pickup_ttl = timedelta(seconds=pickup_ttl)
        self._arrival_wait = arrival_wait

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
        _only_driver(ride, command.user_id)
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

    # -- under way

    async def book(self, event: LocationAggregate, context: Context) -> None:
        """Write what the ride came further into its ledger: the total minus what is booked, while it is ONGOING."""
        try:
            total = millimetres(event.total_km)
        except ValueError as error:
            raise Reject(str(error)) from error
        async with self._database.begin() as tx:
            if not await self._bus.inbox.first(tx, context):
                return
            ride = await store.find(tx, event.ride_id, lock=True)
            if ride is None or ride.status != "ONGOING" or total <= ride.distance_mm:
                return
            fare = await self._book(tx, ride, event.sequence, total)
            if fare is None:
                return
            further = await store.change(tx, ride.ride_id, ["ONGOING"], said=1, distance_mm=total)
            if further is not None:
                await self._bus.outbox.add(tx, events.progress(further, fare=fare, sequence=event.sequence))

    async def _book(self, tx: AsyncConnection, ride: RideRow, sequence: int, total: int) -> int | None:
        """Book the way up to ``total`` millimetres; return the fare so far, None: the sequence is booked already.

        An entry costs what it adds to the fare, so that the costs of a ledger add up to the fare to the rupiah.
        """
        tariff = self._tariff_of(ride)
        before = tariff.fare_mm(ride.distance_mm) if ride.distance_mm else 0
        fare = tariff.fare_mm(total)
        booked = await store.book(
            tx, ride.ride_id, sequence, total - ride.distance_mm, fare - before, self._clock.now()
        )
        return fare if booked else None

    def _tariff_of(self, ride: RideRow) -> Tariff:
        return Tariff(ride.rate_per_km, ride.minimum_fare, self._tariff.admin_fee_percent)

    # -- arrival

    async def arrive(self, command: ArriveRide) -> Bill:
        """The ride is over: measure it, fix the fare, make the payment. By the driver.

        Raises Invalid (factor), NotFound, Forbidden, Conflict, Unavailable (nothing has changed then).
        """
        if not 0 < command.adjustment_factor <= 1:
            raise Invalid("adjustment_factor is more than 0 and at most 1")
        ride = await self._known(command.ride_id)
        _only_driver(ride, command.user_id)
        return await self._arrive(ride, command.adjustment_factor)

    async def admin_arrive(self, ride_id: str) -> Bill:
        """An operator ends a ride whose driver's phone is gone; billed as usual. Raises as ``arrive`` does."""
        return await self._arrive(await self._known(ride_id), 1.0)

    async def _arrive(self, ride: RideRow, factor: float) -> Bill:
        if ride.status == "ONGOING":
            close = CloseRide(
                ride_id=ride.ride_id, driver_id=ride.driver_id, passenger_id=ride.passenger_id, start=ride.start
            )
            distance = await self._bus.request(close, timeout=self._arrival_wait + 5)
            if not await self._fix_bill(ride.ride_id, distance, factor):
                log.info("ride.arrived_already", ride=ride.ride_id)
        return await self._bill(ride.ride_id)

    async def _fix_bill(self, ride_id: str, distance: RideDistance, factor: float) -> bool:
        """Book the remainder, fix the fare and make the payment, all or nothing; False: somebody else has."""
        now = self._clock.now()
        async with self._database.begin() as tx:
            ride = await store.find(tx, ride_id, lock=True)
            if ride is None or ride.status != "ONGOING":
                return False
            total = max(ride.distance_mm, millimetres(distance.total_km))
            sequence = max(await store.last_sequence(tx, ride_id), distance.sequence) + 1
            fare = await self._book(tx, ride, sequence, total)
            if fare is None:
                raise ValueError(f"entry {sequence} of ride {ride_id} lies after the last one and is there")
            bill = self._tariff_of(ride).split(fare, factor)
            free = bill.adjusted_cost == 0
            payment = PaymentRow(
                payment_id=uuid7(),
                ride_id=ride_id,
                amount=bill.adjusted_cost,
                status="ACCEPTED" if free else "PENDING",
                method=None,
                attempts=0,
                created_at=now,
                paid_at=now if free else None,
            )
            arrived = await store.change(
                tx,
                ride_id,
                ["ONGOING"],
                said=3 if free else 1,
                status="COMPLETED" if free else "ARRIVED",
                distance_mm=total,
                total_cost=bill.total_cost,
                adjustment_factor=factor,
                adjusted_cost=bill.adjusted_cost,
                admin_fee=bill.admin_fee,
                driver_payout=bill.driver_payout,
                review=distance.review,
                arrived_at=now,
                completed_at=now if free else None,
            )
            if arrived is None:
                return False
            await store.insert_payment(tx, payment)
            if free:
                await self._bus.outbox.add(
                    tx,
                    events.arrived(arrived, payment, arrived.version - 2),
                    events.paid(arrived, payment, arrived.version - 1, status="ACCEPTED"),
                    events.completed(arrived, payment),
                )
            else:
                await self._bus.outbox.add(tx, events.arrived(arrived, payment, arrived.version))
        log.info("ride.arrived", ride=ride_id, total=bill.total_cost, adjusted=bill.adjusted_cost)
        return True

    async def _bill(self, ride_id: str) -> Bill:
        """Raises Conflict unless the ride has arrived."""
        async with self._database.read() as connection:
            ride = await store.find(connection, ride_id)
            payment = await store.payment_of(connection, ride_id)
        if ride is None or payment is None:
            raise Conflict(f"the ride is {ride.status if ride else 'gone'}, only an ONGOING one can arrive")
        view = store.view(ride, payment)
        if (
            view.total_cost is None
            or view.adjusted_cost is None
            or view.admin_fee is None
            or view.driver_payout is None
        ):
            raise ValueError(f"ride {ride_id} has a payment and no bill")
        return Bill(
            ride_id=ride_id,
            status=view.status,
            distance_km=view.distance_km,
            total_cost=view.total_cost,
            adjusted_cost=view.adjusted_cost,
            admin_fee=view.admin_fee,
            driver_payout=view.driver_payout,
            payment_id=payment.payment_id,
        )

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

    # -- reading

    async def of_user(self, query: RideOfUser) -> OngoingRide:
        async with self._database.read() as connection:
            ride = await store.open_of_user(connection, query.user_id)
            due = ride is None
            if ride is None:
                ride = await store.unpaid_of_passenger(connection, query.user_id)
            if ride is None:
                return OngoingRide(ride=None)
            payment = await store.payment_of(connection, ride.ride_id)
        return OngoingRide(ride=store.view(ride, payment), payment_due=due)

    async def of_match(self, query: RideOfMatch) -> OngoingRide:
        async with self._database.read() as connection:
            ride = await store.of_match(connection, query.match_id)
            if ride is None:
                return OngoingRide(ride=None)
            payment = await store.payment_of(connection, ride.ride_id)
        overdue = payment is not None and payment.status == "OVERDUE"
        return OngoingRide(ride=store.view(ride, payment), payment_due=overdue)

    async def details(self, ride_id: str, user_id: str) -> RideDetails:
        """Raises NotFound, for a stranger too."""
        async with self._database.read() as connection:
            ride = await store.find(connection, ride_id)
            if ride is None or user_id not in ride.parties:
                raise NotFound("there is no such ride of yours")
            payment = await store.payment_of(connection, ride_id)
            ledger = await store.entries(connection, ride_id)
        return RideDetails(**store.view_fields(ride, payment), ledger=ledger)

    async def page(
        self, user_id: str, *, status: RideState | None, before: str | None, limit: int
    ) -> tuple[list[Ride], str | None]:
        """A user's rides, newest first, and the id after which the next page begins (None: that was the last)."""
        async with self._database.read() as connection:
            found = await store.page(connection, user_id=user_id, status=status, before=before, limit=limit + 1)
            payments = await store.payments_of(connection, [ride.ride_id for ride in found[:limit]])
        items = [store.view(ride, payments.get(ride.ride_id)) for ride in found[:limit]]
        return items, items[-1].ride_id if len(found) > limit else None

    async def admin_rides(
        self, status: RideState | None = None, review: bool | None = None, limit: int = 100
    ) -> list[ReviewedRide]:
        """Anybody's rides, newest first; ``review`` True: those whose two phones tell different ways."""
        async with self._database.read() as connection:
            found = await store.newest(connection, status=status, review=review, limit=limit)
            payments = await store.payments_of(connection, [ride.ride_id for ride in found])
        return [
            ReviewedRide(**store.view_fields(ride, payments.get(ride.ride_id)), review=ride.review) for ride in found
        ]

    async def count_by_status(self) -> dict[str, int]:
        """How many rides are in each state that any ride is in."""
        async with self._database.read() as connection:
            return await store.count_by_status(connection)

    def estimate(self, start: Location, end: Location) -> Estimate:
        return estimate(self._tariff, start, end)

    async def _known(self, ride_id: str) -> RideRow:
        """Raises NotFound."""
        async with self._database.read() as connection:
            ride = await store.find(connection, ride_id)
        if ride is None:
            raise NotFound("there is no such ride")
        return ride


def _only_driver(ride: RideRow, user_id: str) -> None:
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
