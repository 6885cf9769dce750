"""What match remembers: beacons, searches, proposals, and who is bound (``engaged``).

Over 300 lines: four tables and every statement on them.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Float,
    Index,
    Integer,
    Row,
    Select,
    String,
    Table,
    UniqueConstraint,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.dml import ReturningUpdate

from nebengjek.contracts.geo import Location
from nebengjek.contracts.match import Match
from nebengjek.contracts.message import is_id
from nebengjek.contracts.users import DriverCard, PassengerCard
from nebengjek.database import UtcDateTime, insert_ignore, metadata
from nebengjek.sql import one_of

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
    Column("avatar_url", String(500)),
    Column("avatar_version", Integer, nullable=False, server_default="0"),
    Column("latitude", Float),
    Column("longitude", Float),
    Column("changed_at", UtcDateTime, nullable=False),
)
"""A driver as match knows him; ``version``, ``presence_version`` and ``avatar_version`` are the last ones heard."""

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
_search_open = searches.c.status == literal_column("'OPEN'")
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
    Column("driver_avatar_url", String(500)),
    Column("passenger_name", String(100), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("check_at", UtcDateTime),
    UniqueConstraint("search_id", "driver_id"),
    CheckConstraint("driver_id <> passenger_id", name="two_people"),
    CheckConstraint(f"status IN {_STATES}", name="status"),
)
"""``check_at``: when an accepted match that has heard of no ride asks for it; null: it has, or it is over."""
_open = one_of(matches.c.status, OPEN)
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
        driver=DriverCard(
            name=row.driver_name,
            vehicle_type=row.vehicle_type,
            vehicle_plate=row.vehicle_plate,
            avatar_url=row.driver_avatar_url,
        ),
        passenger=PassengerCard(name=row.passenger_name),
        match_status=row.status,
        expires_at=row.expires_at,
        reason=row.reason,
    )


# -- beacons

_BEACON = select(beacons).where(beacons.c.driver_id == bindparam("of_driver")).with_for_update()
_CHANGE_BEACON = update(beacons).where(beacons.c.driver_id == bindparam("of_driver")).returning(beacons)
_AVAILABLE = (
    select(beacons)
    .outerjoin(engaged, engaged.c.user_id == beacons.c.driver_id)
    .where(beacons.c.is_active.is_(True), beacons.c.online.is_(True), engaged.c.user_id.is_(None))
)
_AVAILABLE_AMONG = _AVAILABLE.where(beacons.c.driver_id.in_(bindparam("driver_ids")))


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
    found: Row[Any] = (await tx.execute(_BEACON, {"of_driver": driver_id})).one()
    return found


async def change_beacon(tx: AsyncConnection, driver_id: str, **values: Any) -> Row[Any]:
    changed: Row[Any] = (await tx.execute(_CHANGE_BEACON, {"of_driver": driver_id, **values})).one()
    return changed


async def available(tx: AsyncConnection, driver_ids: Collection[str] | None = None) -> Sequence[Row[Any]]:
    """Drivers with the beacon on, a phone connected and no match: those that belong in the pool."""
    if driver_ids is None:
        return (await tx.execute(_AVAILABLE)).all()
    return (await tx.execute(_AVAILABLE_AMONG, {"driver_ids": list(driver_ids)})).all()


# -- searches

_HEAR_FINDER = update(finders).where(
    finders.c.passenger_id == bindparam("of_passenger"), finders.c.version < bindparam("newer")
)
_OPEN_SEARCH_OF = (
    select(searches).where(searches.c.passenger_id == bindparam("passenger_id"), _search_open).with_for_update()
)
_INSERT_SEARCH = insert(searches)
_CHANGE_SEARCH = update(searches).where(searches.c.search_id == bindparam("of_search"))
_CLOSE_SEARCH = _CHANGE_SEARCH.where(_search_open)
_EXPIRE_SEARCHES = update(searches).where(_search_open, searches.c.expires_at <= bindparam("now")).returning(searches)
_proposals = select(matches.c.search_id, func.count().label("n")).where(_open).group_by(matches.c.search_id).subquery()
_UNFILLED = (
    select(searches)
    .outerjoin(_proposals, _proposals.c.search_id == searches.c.search_id)
    .where(_search_open, or_(_proposals.c.n.is_(None), _proposals.c.n < bindparam("room")))
    .order_by(searches.c.created_at)
)
_UNFILLED_AMONG = _UNFILLED.where(searches.c.search_id.in_(bindparam("search_ids")))
_SEARCH = select(searches).where(searches.c.search_id == bindparam("search_id"), _search_open)
_SEARCH_LOCKED = _SEARCH.with_for_update()


async def finder_is_new(tx: AsyncConnection, passenger_id: str, version: int) -> bool:
    """Note the version of a finder; False when a newer one was heard."""
    if await insert_ignore(tx, finders, {"passenger_id": passenger_id, "version": version}):
        return True
    values = {"of_passenger": passenger_id, "newer": version, "version": version}
    return (await tx.execute(_HEAR_FINDER, values)).rowcount == 1


async def open_search_of(tx: AsyncConnection, passenger_id: str) -> Row[Any] | None:
    return (await tx.execute(_OPEN_SEARCH_OF, {"passenger_id": passenger_id})).first()


async def insert_search(tx: AsyncConnection, **values: Any) -> None:
    await tx.execute(_INSERT_SEARCH, values)


async def change_search(tx: AsyncConnection, search_id: str, **values: Any) -> None:
    await tx.execute(_CHANGE_SEARCH, {"of_search": search_id, **values})


async def close_search(tx: AsyncConnection, search_id: str, status: str) -> bool:
    """OPEN → MATCHED | ENDED; False when it was not open."""
    return (await tx.execute(_CLOSE_SEARCH, {"of_search": search_id, "status": status})).rowcount == 1


async def expired_searches(tx: AsyncConnection, now: datetime) -> Sequence[Row[Any]]:
    """End those whose time is over, and return them."""
    ended: Sequence[Row[Any]] = (await tx.execute(_EXPIRE_SEARCHES, {"now": now, "status": "ENDED"})).all()
    return ended


async def unfilled_searches(tx: AsyncConnection, room: int, among: Collection[str] | None = None) -> Sequence[Row[Any]]:
    """Open searches with fewer than ``room`` open proposals, oldest first; all, or those ``among`` some ids."""
    if among is None:
        return (await tx.execute(_UNFILLED, {"room": room})).all()
    return (await tx.execute(_UNFILLED_AMONG, {"room": room, "search_ids": list(among)})).all()


async def search(tx: AsyncConnection, search_id: str, *, lock: bool = False) -> Row[Any] | None:
    return (await tx.execute(_SEARCH_LOCKED if lock else _SEARCH, {"search_id": search_id})).first()


# -- matches

_MATCH = select(matches).where(matches.c.match_id == bindparam("match_id"))
_MATCH_LOCKED = _MATCH.with_for_update()
_CHANGE_MATCH = update(matches).where(matches.c.match_id == bindparam("of_match"))
_OF_SEARCH = select(matches).where(matches.c.search_id == bindparam("search_id"))
_OF_USER = (
    select(matches)
    .where(or_(matches.c.passenger_id == bindparam("user_id"), matches.c.driver_id == bindparam("user_id")))
    .order_by(matches.c.match_id.desc())
    .limit(bindparam("rows"))
)
_OF_USER_IN = _OF_USER.where(matches.c.status.in_(bindparam("statuses")))
_OFFERS = (
    select(matches.c.driver_id, func.count())
    .where(_open, matches.c.driver_id.in_(bindparam("driver_ids")))
    .group_by(matches.c.driver_id)
)
_END = (
    update(matches)
    .where(matches.c.match_id.in_(bindparam("match_ids")), _open)
    .values(version=matches.c.version + 1)
    .returning(matches)
)
_DUE_FOR_CHECK = (
    select(matches)
    .where(matches.c.check_at <= bindparam("now"), matches.c.status == literal_column("'ACCEPTED'"))
    .limit(100)
)
_ENGAGED_AMONG = select(engaged.c.user_id).where(engaged.c.user_id.in_(bindparam("user_ids")))
_ENGAGED_IN = select(engaged.c.match_id).where(engaged.c.user_id == bindparam("user_id"))
_RELEASE = delete(engaged).where(engaged.c.match_id == bindparam("match_id"))


@cache
def _move(when: tuple[str, ...]) -> ReturningUpdate[*tuple[Any, ...]]:
    return _CHANGE_MATCH.where(one_of(matches.c.status, when)).values(version=matches.c.version + 1).returning(matches)


async def match_row(tx: AsyncConnection, match_id: str, *, lock: bool = False) -> Row[Any] | None:
    """``lock``: nobody else changes it until the end of the transaction."""
    if not is_id(match_id):
        return None
    return (await tx.execute(_MATCH_LOCKED if lock else _MATCH, {"match_id": match_id})).first()


async def insert_match(tx: AsyncConnection, **values: Any) -> bool:
    """False: the driver has been proposed to this search before."""
    return await insert_ignore(tx, matches, values)


async def check_match(tx: AsyncConnection, match_id: str, at: datetime | None) -> None:
    """When to ask for the ride of an accepted match; None: there is nothing to ask."""
    await tx.execute(_CHANGE_MATCH, {"of_match": match_id, "check_at": at})


async def of_search(tx: AsyncConnection, search_id: str) -> Sequence[Row[Any]]:
    return (await tx.execute(_OF_SEARCH, {"search_id": search_id})).all()


async def of_user(
    tx: AsyncConnection, user_id: str, statuses: Collection[str] | None, limit: int = 100
) -> Sequence[Row[Any]]:
    values = {"user_id": user_id, "rows": limit}
    if statuses is None:
        return (await tx.execute(_OF_USER, values)).all()
    return (await tx.execute(_OF_USER_IN, {**values, "statuses": list(statuses)})).all()


async def offers(tx: AsyncConnection, driver_ids: Collection[str]) -> dict[str, int]:
    """Open proposals per driver."""
    return {row[0]: row[1] for row in await tx.execute(_OFFERS, {"driver_ids": list(driver_ids)})}


async def engaged_among(tx: AsyncConnection, user_ids: Collection[str]) -> set[str]:
    return set((await tx.execute(_ENGAGED_AMONG, {"user_ids": list(user_ids)})).scalars())


async def move(tx: AsyncConnection, match_id: str, to: str, *, when: Collection[str], **values: Any) -> Row[Any] | None:
    """Change the status if it is one of ``when``; the new row, or None."""
    found = await tx.execute(_move(tuple(when)), {"of_match": match_id, "status": to, **values})
    moved: Row[Any] | None = found.first()
    return moved


@cache
def _open_proposals(of: frozenset[str]) -> Select[str]:
    conditions = {
        "search_id": matches.c.search_id == bindparam("search_id"),
        "driver_id": matches.c.driver_id == bindparam("driver_id"),
        "expired_at": matches.c.expires_at <= bindparam("expired_at"),
    }
    whose = or_(*(conditions[name] for name in sorted(of)))
    return select(matches.c.match_id).where(_open, whose).order_by(matches.c.match_id).with_for_update()


async def end_open(tx: AsyncConnection, *, status: str, reason: str, **of: str | datetime) -> Sequence[Row[Any]]:
    """End the open proposals of this ``search_id`` or ``driver_id``, or those that have ``expired_at`` a moment.

    They are locked in the order of their ids; returned as they are then.
    """
    ids = list((await tx.execute(_open_proposals(frozenset(of)), of)).scalars())
    if not ids:
        return []
    found = await tx.execute(_END, {"match_ids": ids, "status": status, "reason": reason})
    ended: Sequence[Row[Any]] = found.all()
    return ended


async def engage(tx: AsyncConnection, match_id: str, user_ids: Collection[str]) -> bool:
    """Bind both, smaller id first, so that two transactions cannot wait for each other. False: one is bound."""
    for user_id in sorted(user_ids):
        if await insert_ignore(tx, engaged, {"user_id": user_id, "match_id": match_id}):
            continue
        holder = (await tx.execute(_ENGAGED_IN, {"user_id": user_id})).scalar()
        if holder != match_id:
            return False
    return True


async def release(tx: AsyncConnection, match_id: str) -> None:
    await tx.execute(_RELEASE, {"match_id": match_id})


async def due_for_check(tx: AsyncConnection, now: datetime) -> Sequence[Row[Any]]:
    """Accepted matches that should have heard of their ride by now."""
    return (await tx.execute(_DUE_FOR_CHECK, {"now": now})).all()
