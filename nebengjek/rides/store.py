"""What rides remembers of rides: their rows, changed by conditional updates only, and their ledgers."""

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any

from msgspec import Struct
from sqlalchemy import and_, bindparam, exists, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.dml import ReturningUpdate

from nebengjek.contracts.geo import Location, Point
from nebengjek.contracts.message import is_id
from nebengjek.contracts.rides import LedgerEntry, Payment, Ride, RideState
from nebengjek.database import insert_ignore
from nebengjek.errors import NotFound
from nebengjek.rides.fares import kilometres
from nebengjek.rides.payment_store import PaymentRow
from nebengjek.rides.tables import ledger, payment_attempts, payments, rides
from nebengjek.sql import one_of

OPEN: tuple[RideState, ...] = ("PICKUP", "ONGOING", "ARRIVED")
ANY: tuple[RideState, ...] = (*OPEN, "COMPLETED", "CANCELLED")


class RideRow(Struct, frozen=True, kw_only=True):
    """A row of ``rides``; distances in millimetres, money in rupiah."""

    ride_id: str
    match_id: str
    driver_id: str
    passenger_id: str
    status: RideState
    version: int
    latitude: float
    longitude: float
    target_latitude: float
    target_longitude: float
    rate_per_km: int
    minimum_fare: int
    created_at: datetime
    start_latitude: float | None = None
    start_longitude: float | None = None
    start_time: datetime | None = None
    distance_mm: int = 0
    total_cost: int | None = None
    adjustment_factor: float | None = None
    adjusted_cost: int | None = None
    admin_fee: int | None = None
    driver_payout: int | None = None
    review: bool = False
    started_at: datetime | None = None
    arrived_at: datetime | None = None
    completed_at: datetime | None = None
    cancelled_at: datetime | None = None
    cancel_reason: str | None = None

    @property
    def parties(self) -> tuple[str, str]:
        return self.driver_id, self.passenger_id

    @property
    def start(self) -> Point:
        """Where and when the distance begins. Only of a ride that was started."""
        if self.start_latitude is None or self.start_longitude is None or self.start_time is None:
            raise ValueError(f"ride {self.ride_id} has not started")
        return Point(latitude=self.start_latitude, longitude=self.start_longitude, timestamp=self.start_time)


def view(row: RideRow, payment: PaymentRow | None) -> Ride:
    """The ride as its parties read it."""
    return Ride(**view_fields(row, payment))


def view_fields(row: RideRow, payment: PaymentRow | None) -> dict[str, Any]:
    return {
        "ride_id": row.ride_id,
        "match_id": row.match_id,
        "driver_id": row.driver_id,
        "passenger_id": row.passenger_id,
        "status": row.status,
        "location": Location(latitude=row.latitude, longitude=row.longitude),
        "target_location": Location(latitude=row.target_latitude, longitude=row.target_longitude),
        "distance_km": kilometres(row.distance_mm),
        "total_cost": row.total_cost,
        "adjustment_factor": row.adjustment_factor,
        "adjusted_cost": row.adjusted_cost,
        "admin_fee": row.admin_fee,
        "driver_payout": row.driver_payout,
        "payment": payment
        and Payment(
            payment_id=payment.payment_id, status=payment.status, method=payment.method, attempts=payment.attempts
        ),
        "created_at": row.created_at,
        "started_at": row.started_at,
        "arrived_at": row.arrived_at,
        "completed_at": row.completed_at,
        "cancelled_at": row.cancelled_at,
        "cancel_reason": row.cancel_reason,
    }


# -- rides ---------------------------------------------------------------------------------------------------

_open = one_of(rides.c.status, OPEN)
_CROSSED = select(
    exists().where(
        or_(rides.c.driver_id == bindparam("passenger_id"), rides.c.passenger_id == bindparam("driver_id")), _open
    )
)
_RIDE = select(rides).where(rides.c.ride_id == bindparam("ride_id"))
_RIDE_LOCKED = _RIDE.with_for_update()
_OF_MATCH = select(rides).where(rides.c.match_id == bindparam("match_id"))
_OF_USER = select(rides).where(
    or_(rides.c.driver_id == bindparam("user_id"), rides.c.passenger_id == bindparam("user_id"))
)
_OPEN_OF_USER = _OF_USER.where(_open).limit(1)
_UNPAID = (
    select(rides)
    .join(payments, and_(payments.c.ride_id == rides.c.ride_id, payments.c.status == "OVERDUE"))
    .where(rides.c.passenger_id == bindparam("user_id"))
    .order_by(rides.c.ride_id.desc())
    .limit(1)
)
_WAITING_SINCE = (
    select(rides.c.ride_id)
    .where(rides.c.status == "PICKUP", rides.c.created_at < bindparam("moment"))
    .limit(bindparam("rows"))
)
_UNPAID_SINCE = (
    select(rides.c.ride_id)
    .where(
        rides.c.status == "ARRIVED",
        rides.c.arrived_at < bindparam("moment"),
        ~exists().where(payment_attempts.c.ride_id == rides.c.ride_id, payment_attempts.c.status == "PENDING"),
    )
    .limit(bindparam("rows"))
)


@cache
def _change(states: tuple[RideState, ...]) -> ReturningUpdate[*tuple[Any, ...]]:
    return (
        update(rides)
        .where(rides.c.ride_id == bindparam("of_ride"), one_of(rides.c.status, states))
        .values(version=rides.c.version + bindparam("said"))
        .returning(*rides.c)
    )


async def _rows(tx: AsyncConnection, statement: Any, values: dict[str, Any]) -> list[RideRow]:
    return [RideRow(**row._mapping) for row in await tx.execute(statement, values)]


async def _row(tx: AsyncConnection, statement: Any, values: dict[str, Any]) -> RideRow | None:
    return next(iter(await _rows(tx, statement, values)), None)


async def insert_ride(tx: AsyncConnection, row: RideRow) -> bool:
    """False: the match has a ride already, or one of the two is in another that has not ended.

    Two in the same role are refused by an index, whatever the timing; the look is for a driver who is a passenger.
    """
    parties = {"driver_id": row.driver_id, "passenger_id": row.passenger_id}
    if (await tx.execute(_CROSSED, parties)).scalar_one():
        return False
    return await insert_ignore(tx, rides, {name: getattr(row, name) for name in row.__struct_fields__})


async def find(tx: AsyncConnection, ride_id: str, *, lock: bool = False) -> RideRow | None:
    """``lock``: nobody else changes it until the end of the transaction."""
    if not is_id(ride_id):
        return None
    return await _row(tx, _RIDE_LOCKED if lock else _RIDE, {"ride_id": ride_id})


async def known(tx: AsyncConnection, ride_id: str) -> RideRow:
    """Raises NotFound."""
    ride = await find(tx, ride_id)
    if ride is None:
        raise NotFound("there is no such ride")
    return ride


async def of_match(tx: AsyncConnection, match_id: str) -> RideRow | None:
    if not is_id(match_id):
        return None
    return await _row(tx, _OF_MATCH, {"match_id": match_id})


async def open_of_user(tx: AsyncConnection, user_id: str) -> RideRow | None:
    """The ride of a driver or passenger that has not ended."""
    return await _row(tx, _OPEN_OF_USER, {"user_id": user_id})


async def unpaid_of_passenger(tx: AsyncConnection, user_id: str) -> RideRow | None:
    """The latest ride that ended with its payment overdue."""
    return await _row(tx, _UNPAID, {"user_id": user_id})


async def page(
    tx: AsyncConnection, *, user_id: str, status: RideState | None, before: str | None, limit: int
) -> list[RideRow]:
    """Up to ``limit`` rides of a user, newest first (ids are in the order of time), older than ``before``."""
    statement = _OF_USER
    if status is not None:
        statement = statement.where(rides.c.status == status)
    if before is not None:
        statement = statement.where(rides.c.ride_id < before)
    return await _rows(tx, statement.order_by(rides.c.ride_id.desc()).limit(limit), {"user_id": user_id})


async def newest(tx: AsyncConnection, *, status: RideState | None, review: bool | None, limit: int) -> list[RideRow]:
    statement = select(rides)
    if status is not None:
        statement = statement.where(rides.c.status == status)
    if review is not None:
        statement = statement.where(rides.c.review.is_(review))
    return await _rows(tx, statement.order_by(rides.c.ride_id.desc()).limit(limit), {})


async def count_open(tx: AsyncConnection) -> dict[str, int]:
    """Rides that have not ended in each of their states, also in those that no ride is in.

    Those that have ended are left out: they are counted as events, and here each look would read all that ever were.
    """
    found = await tx.execute(select(rides.c.status, func.count()).where(_open).group_by(rides.c.status))
    counts: dict[str, int] = dict.fromkeys(OPEN, 0)
    return counts | dict(found.all())


async def change(
    tx: AsyncConnection, ride_id: str, states: Sequence[RideState], *, said: int, **values: Any
) -> RideRow | None:
    """Change a ride that is in one of ``states`` and count the ``said`` events about it; None: it is in another."""
    return await _row(tx, _change(tuple(states)), {"of_ride": ride_id, "said": said, **values})


async def waiting_since(tx: AsyncConnection, moment: datetime, limit: int) -> list[str]:
    """Rides whose pick-up has been awaited since before ``moment``."""
    return list((await tx.execute(_WAITING_SINCE, {"moment": moment, "rows": limit})).scalars())


async def unpaid_since(tx: AsyncConnection, moment: datetime, limit: int) -> list[str]:
    """Rides that arrived before ``moment`` and are not paid, nor is anybody trying."""
    return list((await tx.execute(_UNPAID_SINCE, {"moment": moment, "rows": limit})).scalars())


# -- ledger --------------------------------------------------------------------------------------------------

_LAST_SEQUENCE = select(func.max(ledger.c.sequence)).where(ledger.c.ride_id == bindparam("ride_id"))
_ENTRIES = select(ledger).where(ledger.c.ride_id == bindparam("ride_id")).order_by(ledger.c.sequence)


async def book(tx: AsyncConnection, ride_id: str, sequence: int, mm: int, cost: int, now: datetime) -> bool:
    """False: this sequence of the ride is booked already."""
    values = {"ride_id": ride_id, "sequence": sequence, "distance_mm": mm, "cost": cost, "created_at": now}
    return await insert_ignore(tx, ledger, values)


async def last_sequence(tx: AsyncConnection, ride_id: str) -> int:
    """0 when nothing is booked."""
    return (await tx.execute(_LAST_SEQUENCE, {"ride_id": ride_id})).scalar_one() or 0


async def entries(tx: AsyncConnection, ride_id: str) -> list[LedgerEntry]:
    found = await tx.execute(_ENTRIES, {"ride_id": ride_id})
    return [
        LedgerEntry(
            sequence=row.sequence, distance_km=kilometres(row.distance_mm), cost=row.cost, created_at=row.created_at
        )
        for row in found
    ]
