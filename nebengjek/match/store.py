"""What match remembers: beacons, searches, proposals, and who is bound (``engaged``).

A little over 300 lines: four tables and every statement on them.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Float,
    Index,
    Integer,
    Row,
    String,
    Table,
    UniqueConstraint,
    and_,
    delete,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.contracts.geo import Location
from nebengjek.contracts.match import Match
from nebengjek.contracts.message import is_id
from nebengjek.contracts.users import DriverCard, PassengerCard
from nebengjek.database import UtcDateTime, insert_ignore, metadata

OPEN = ("PENDING", "DRIVER_CONFIRMED", "PASSENGER_CONFIRMED")
_STATES = (*OPEN, "ACCEPTED", "REJECTED", "EXPIRED", "CLOSED", "FAILED")

beacons = Table(
    "beacons",
    metadata,
    Column("driver_id", String(36), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("is_active", Boolean, nullable=False),
    Column("presence_version", Integer, nullable=False),
    Column("online", Boolean, nullable=False),
    Column("name", String(100)),
    Column("vehicle_type", String(10)),
    Column("vehicle_plate", String(12)),
    Column("latitude", Float),
    Column("longitude", Float),
    Column("changed_at", UtcDateTime, nullable=False),
)
"""A driver as match knows him; ``version`` and ``presence_version`` are the last ones heard."""

finders = Table(
    "finders",
    metadata,
    Column("passenger_id", String(36), primary_key=True),
    Column("version", Integer, nullable=False),
)
"""The last version heard of each passenger's finder."""

searches = Table(
    "searches",
    metadata,
    Column("search_id", String(36), primary_key=True),
    Column("passenger_id", String(36), nullable=False),
    Column("finder_version", Integer, nullable=False),
    Column("passenger_name", String(100), nullable=False),
    Column("status", String(10), nullable=False),
    Column("latitude", Float, nullable=False),
    Column("longitude", Float, nullable=False),
    Column("target_latitude", Float, nullable=False),
    Column("target_longitude", Float, nullable=False),
    Column("vehicle_type", String(10)),
    Column("told", Boolean, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    CheckConstraint("status IN ('OPEN', 'MATCHED', 'ENDED')", name="status"),
)
_search_open = searches.c.status == "OPEN"
Index(
    "uq_searches_open",
    searches.c.passenger_id,
    unique=True,
    sqlite_where=_search_open,
    postgresql_where=_search_open,
)
Index("ix_searches_expires", searches.c.expires_at, sqlite_where=_search_open, postgresql_where=_search_open)

matches = Table(
    "matches",
    metadata,
    Column("match_id", String(36), primary_key=True),
    Column("search_id", String(36), nullable=False),
    Column("passenger_id", String(36), nullable=False, index=True),
    Column("driver_id", String(36), nullable=False, index=True),
    Column("status", String(20), nullable=False),
    Column("reason", String(10)),
    Column("version", Integer, nullable=False),
    Column("latitude", Float, nullable=False),
    Column("longitude", Float, nullable=False),
    Column("driver_latitude", Float, nullable=False),
    Column("driver_longitude", Float, nullable=False),
    Column("target_latitude", Float, nullable=False),
    Column("target_longitude", Float, nullable=False),
    Column("distance_km", Float, nullable=False),
    Column("eta_minutes", Integer, nullable=False),
    Column("estimated_fare", Integer, nullable=False),
    Column("driver_name", String(100), nullable=False),
    Column("vehicle_type", String(10), nullable=False),
    Column("vehicle_plate", String(12), nullable=False),
    Column("passenger_name", String(100), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("check_at", UtcDateTime),
    UniqueConstraint("search_id", "driver_id"),
    CheckConstraint("driver_id <> passenger_id", name="two_people"),
    CheckConstraint(f"status IN {_STATES}", name="status"),
)
"""``check_at``: when an accepted match that has heard of no ride asks for it; null: it has, or it is over."""
_open = matches.c.status.in_(OPEN)
Index("ix_matches_expires_at", matches.c.expires_at, sqlite_where=_open, postgresql_where=_open)
_unchecked = matches.c.check_at.is_not(None)
Index("ix_matches_check_at", matches.c.check_at, sqlite_where=_unchecked, postgresql_where=_unchecked)

engaged = Table(
    "engaged",
    metadata,
    Column("user_id", String(36), primary_key=True),
    Column("match_id", String(36), nullable=False, index=True),
)
"""The lock: a user is in at most one accepted match, because he is the primary key."""


def match_of(row: Row[Any]) -> Match:
    """A row as both phones see it."""
    return Match(
        match_id=row.match_id,
        passenger_id=row.passenger_id,
        driver_id=row.driver_id,
        location=Location(latitude=row.latitude, longitude=row.longitude),
        driver_location=Location(latitude=row.driver_latitude, longitude=row.driver_longitude),
        target_location=Location(latitude=row.target_latitude, longitude=row.target_longitude),
        distance_km=row.distance_km,
        eta_minutes=row.eta_minutes,
        estimated_fare=row.estimated_fare,
        driver=DriverCard(name=row.driver_name, vehicle_type=row.vehicle_type, vehicle_plate=row.vehicle_plate),
        passenger=PassengerCard(name=row.passenger_name),
        match_status=row.status,
        expires_at=row.expires_at,
        reason=row.reason,
    )


# -- beacons


async def ensure_beacon(tx: AsyncConnection, driver_id: str, now: datetime) -> Row[Any]:
    """The driver's row, locked; made when he is heard of for the first time."""
    row = {
        "driver_id": driver_id,
        "version": 0,
        "is_active": False,
        "presence_version": 0,
        "online": False,
        "changed_at": now,
    }
    await insert_ignore(tx, beacons, row)
    statement = select(beacons).where(beacons.c.driver_id == driver_id).with_for_update()
    found: Row[Any] = (await tx.execute(statement)).one()
    return found


async def change_beacon(tx: AsyncConnection, driver_id: str, **values: Any) -> Row[Any]:
    statement = update(beacons).where(beacons.c.driver_id == driver_id).values(values).returning(beacons)
    changed: Row[Any] = (await tx.execute(statement)).one()
    return changed


async def available(tx: AsyncConnection, driver_ids: Collection[str] | None = None) -> Sequence[Row[Any]]:
    """Drivers with the beacon on, a phone connected and no match: those that belong in the pool."""
    statement = (
        select(beacons)
        .outerjoin(engaged, engaged.c.user_id == beacons.c.driver_id)
        .where(beacons.c.is_active.is_(True), beacons.c.online.is_(True), engaged.c.user_id.is_(None))
    )
    if driver_ids is not None:
        statement = statement.where(beacons.c.driver_id.in_(driver_ids))
    return (await tx.execute(statement)).all()


# -- searches


async def finder_is_new(tx: AsyncConnection, passenger_id: str, version: int) -> bool:
    """Note the version of a finder; False when a newer one was heard."""
    if await insert_ignore(tx, finders, {"passenger_id": passenger_id, "version": version}):
        return True
    newer = and_(finders.c.passenger_id == passenger_id, finders.c.version < version)
    return (await tx.execute(update(finders).where(newer).values(version=version))).rowcount == 1


async def open_search_of(tx: AsyncConnection, passenger_id: str) -> Row[Any] | None:
    statement = select(searches).where(searches.c.passenger_id == passenger_id, _search_open).with_for_update()
    return (await tx.execute(statement)).first()


async def close_search(tx: AsyncConnection, search_id: str, status: str) -> bool:
    """OPEN → MATCHED | ENDED; False when it was not open."""
    statement = update(searches).where(searches.c.search_id == search_id, _search_open).values(status=status)
    return (await tx.execute(statement)).rowcount == 1


async def expired_searches(tx: AsyncConnection, now: datetime) -> Sequence[Row[Any]]:
    """End those whose time is over, and return them."""
    statement = (
        update(searches).where(_search_open, searches.c.expires_at <= now).values(status="ENDED").returning(searches)
    )
    ended: Sequence[Row[Any]] = (await tx.execute(statement)).all()
    return ended


async def unfilled_searches(tx: AsyncConnection, room: int, among: Collection[str] | None = None) -> Sequence[Row[Any]]:
    """Open searches with fewer than ``room`` open proposals, oldest first; all, or those ``among`` some ids."""
    proposals = (
        select(matches.c.search_id, func.count().label("n")).where(_open).group_by(matches.c.search_id).subquery()
    )
    statement = (
        select(searches)
        .outerjoin(proposals, proposals.c.search_id == searches.c.search_id)
        .where(_search_open, or_(proposals.c.n.is_(None), proposals.c.n < room))
        .order_by(searches.c.created_at)
    )
    if among is not None:
        statement = statement.where(searches.c.search_id.in_(among))
    return (await tx.execute(statement)).all()


async def search(tx: AsyncConnection, search_id: str, *, lock: bool = False) -> Row[Any] | None:
    statement = select(searches).where(searches.c.search_id == search_id, _search_open)
    return (await tx.execute(statement.with_for_update() if lock else statement)).first()


# -- matches


async def match_row(tx: AsyncConnection, match_id: str) -> Row[Any] | None:
    if not is_id(match_id):
        return None
    return (await tx.execute(select(matches).where(matches.c.match_id == match_id))).first()


async def of_search(tx: AsyncConnection, search_id: str) -> Sequence[Row[Any]]:
    return (await tx.execute(select(matches).where(matches.c.search_id == search_id))).all()


async def of_user(
    tx: AsyncConnection, user_id: str, statuses: Collection[str] | None, limit: int = 100
) -> Sequence[Row[Any]]:
    statement = select(matches).where(or_(matches.c.passenger_id == user_id, matches.c.driver_id == user_id))
    if statuses is not None:
        statement = statement.where(matches.c.status.in_(statuses))
    return (await tx.execute(statement.order_by(matches.c.match_id.desc()).limit(limit))).all()


async def offers(tx: AsyncConnection, driver_ids: Collection[str]) -> dict[str, int]:
    """Open proposals per driver."""
    statement = (
        select(matches.c.driver_id, func.count())
        .where(_open, matches.c.driver_id.in_(driver_ids))
        .group_by(matches.c.driver_id)
    )
    return {row[0]: row[1] for row in (await tx.execute(statement)).all()}


async def engaged_among(tx: AsyncConnection, user_ids: Collection[str]) -> set[str]:
    statement = select(engaged.c.user_id).where(engaged.c.user_id.in_(user_ids))
    return set((await tx.execute(statement)).scalars())


async def move(tx: AsyncConnection, match_id: str, to: str, *, when: Collection[str], **values: Any) -> Row[Any] | None:
    """Change the status if it is one of ``when``; the new row, or None."""
    statement = (
        update(matches)
        .where(matches.c.match_id == match_id, matches.c.status.in_(when))
        .values(status=to, version=matches.c.version + 1, **values)
        .returning(matches)
    )
    moved: Row[Any] | None = (await tx.execute(statement)).first()
    return moved


async def end_open(tx: AsyncConnection, condition: Any, *, status: str, reason: str) -> Sequence[Row[Any]]:
    """End the open proposals that ``condition`` names, locked in the order of their ids; return them."""
    statement = select(matches.c.match_id).where(_open, condition).order_by(matches.c.match_id).with_for_update()
    ids = list((await tx.execute(statement)).scalars())
    if not ids:
        return []
    statement_ended = (
        update(matches)
        .where(matches.c.match_id.in_(ids), _open)
        .values(status=status, reason=reason, version=matches.c.version + 1)
        .returning(matches)
    )
    ended: Sequence[Row[Any]] = (await tx.execute(statement_ended)).all()
    return ended


async def engage(tx: AsyncConnection, match_id: str, user_ids: Collection[str]) -> bool:
    """Bind both, smaller id first, so that two transactions cannot wait for each other. False: one is bound."""
    for user_id in sorted(user_ids):
        if await insert_ignore(tx, engaged, {"user_id": user_id, "match_id": match_id}):
            continue
        holder = (await tx.execute(select(engaged.c.match_id).where(engaged.c.user_id == user_id))).scalar()
        if holder != match_id:
            return False
    return True


async def release(tx: AsyncConnection, match_id: str) -> None:
    await tx.execute(delete(engaged).where(engaged.c.match_id == match_id))


async def due_for_check(tx: AsyncConnection, now: datetime) -> Sequence[Row[Any]]:
    """Accepted matches that should have heard of their ride by now."""
    statement = select(matches).where(matches.c.check_at <= now, matches.c.status == "ACCEPTED").limit(100)
    return (await tx.execute(statement)).all()
