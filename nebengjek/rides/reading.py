"""What may be read about rides, and by whom; nothing is changed here."""

from nebengjek.contracts.geo import Location
from nebengjek.contracts.rides import (
    OngoingRide,
    RecentRides,
    Ride,
    RideDetails,
    RideDetailsOf,
    RideList,
    RideOfMatch,
    RideOfUser,
    RideState,
)
from nebengjek.database import Database
from nebengjek.errors import NotFound
from nebengjek.rides import payment_store, store
from nebengjek.rides.fares import Estimate, Tariff, estimate


class ReviewedRide(Ride, frozen=True, kw_only=True):
    """A ride as an operator reads it. ``review``: the paths of the two phones differ."""

    review: bool


class RideReader:
    """Answers questions about rides. ``tariff``: of the estimates."""

    def __init__(self, database: Database, tariff: Tariff) -> None:
        self._database = database
        self._tariff = tariff

    async def of_user(self, query: RideOfUser) -> OngoingRide:
        async with self._database.read() as connection:
            ride = await store.open_of_user(connection, query.user_id)
            due = ride is None
            if ride is None:
                ride = await store.unpaid_of_passenger(connection, query.user_id)
            if ride is None:
                return OngoingRide(ride=None)
            payment = await payment_store.payment_of(connection, ride.ride_id)
        return OngoingRide(ride=store.view(ride, payment), payment_due=due)

    async def of_match(self, query: RideOfMatch) -> OngoingRide:
        async with self._database.read() as connection:
            ride = await store.of_match(connection, query.match_id)
            if ride is None:
                return OngoingRide(ride=None)
            payment = await payment_store.payment_of(connection, ride.ride_id)
        overdue = payment is not None and payment.status == "OVERDUE"
        return OngoingRide(ride=store.view(ride, payment), payment_due=overdue)

    async def details(self, ride_id: str, user_id: str) -> RideDetails:
        """Raises NotFound, for a stranger too."""
        async with self._database.read() as connection:
            ride = await store.find(connection, ride_id)
            if ride is None or user_id not in ride.parties:
                raise NotFound("there is no such ride of yours")
            payment = await payment_store.payment_of(connection, ride_id)
            ledger = await store.entries(connection, ride_id)
        return RideDetails(**store.view_fields(ride, payment), ledger=ledger)

    async def details_of(self, query: RideDetailsOf) -> RideDetails:
        return await self.details(query.ride_id, query.user_id)

    async def recent(self, query: RecentRides) -> RideList:
        items, _ = await self.page(query.user_id, status=None, before=None, limit=query.limit)
        return RideList(rides=items)

    async def page(
        self, user_id: str, *, status: RideState | None, before: str | None, limit: int
    ) -> tuple[list[Ride], str | None]:
        """A user's rides, newest first, and the id after which the next page begins (None: that was the last)."""
        async with self._database.read() as connection:
            found = await store.page(connection, user_id=user_id, status=status, before=before, limit=limit + 1)
            payments = await payment_store.payments_of(connection, [ride.ride_id for ride in found[:limit]])
        items = [store.view(ride, payments.get(ride.ride_id)) for ride in found[:limit]]
        return items, items[-1].ride_id if len(found) > limit else None

    async def admin_rides(
        self, status: RideState | None = None, review: bool | None = None, limit: int = 100
    ) -> list[ReviewedRide]:
        """Anybody's rides, newest first; ``review`` True: those whose two phones tell different ways."""
        async with self._database.read() as connection:
            found = await store.newest(connection, status=status, review=review, limit=limit)
            payments = await payment_store.payments_of(connection, [ride.ride_id for ride in found])
        return [
            ReviewedRide(**store.view_fields(ride, payments.get(ride.ride_id)), review=ride.review) for ride in found
        ]

    def estimate(self, start: Location, end: Location) -> Estimate:
        return estimate(self._tariff, start, end)
