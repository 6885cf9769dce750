"""What users remembers: people, vehicles, logins, and who is bound by a match or an unpaid ride."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    Row,
    String,
    Table,
    Text,
    bindparam,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.contracts.message import is_id
from nebengjek.database import UtcDateTime, insert_ignore, metadata

users = Table(
    "users",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("msisdn", String(20), unique=True),
    Column("full_name", String(100)),
    Column("email", String(254)),
    Column("role", String(10), nullable=False),
    Column("avatar_url", String(500)),
    Column("avatar_version", Integer, nullable=False, server_default="0"),
    Column("version", Integer, nullable=False),
    Column("online", Boolean, nullable=False),
    Column("beacon_active", Boolean, nullable=False),
    Column("finder_active", Boolean, nullable=False),
    Column("finder_version", Integer, nullable=False),
    Column("finder", Text),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("deleted_at", UtcDateTime),
    CheckConstraint("role IN ('passenger', 'driver')", name="role"),
)
"""``finder``: the open search as the phone sent it, JSON. ``msisdn`` is null once the account is anonymised.

``avatar_version``: the last one heard.
"""
Index("ix_users_online", users.c.online)

drivers = Table(
    "drivers",
    metadata,
    Column("user_id", String(36), ForeignKey("users.id"), primary_key=True),
    Column("vehicle_type", String(10), nullable=False),
    Column("vehicle_plate", String(12), nullable=False, unique=True),
    Column("created_at", UtcDateTime, nullable=False),
)

refresh_tokens = Table(
    "refresh_tokens",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("user_id", String(36), ForeignKey("users.id"), nullable=False),
    Column("session_id", String(36), nullable=False, index=True),
    Column("expires_at", UtcDateTime, nullable=False, index=True),
    Column("used_at", UtcDateTime),
)
"""Only the SHA-256 of a token; a used one stays until it expires, so that its second use is noticed."""

engagements = Table(
    "engagements",
    metadata,
    Column("match_id", String(36), primary_key=True),
    Column("user_id", String(36), primary_key=True, index=True),
    Column("ended", Boolean, nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
)
"""Who is bound by an accepted match. An end that overtakes its beginning leaves ``ended`` behind."""

payments_due = Table(
    "payments_due",
    metadata,
    Column("ride_id", String(36), primary_key=True),
    Column("user_id", String(36), nullable=False, index=True),
    Column("paid", Boolean, nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
)
"""Overdue payments; one that was paid before it was heard to be overdue stays paid."""


_BY_MSISDN = select(users).where(users.c.msisdn == bindparam("msisdn"))
_BY_ID = (
    select(users, drivers.c.vehicle_type, drivers.c.vehicle_plate)
    .outerjoin(drivers)
    .where(users.c.id == bindparam("user_id"), users.c.deleted_at.is_(None))
)
_CHANGE = (
    update(users)
    .where(users.c.id == bindparam("of_user"), users.c.deleted_at.is_(None))
    .values(version=users.c.version + 1)
    .returning(users.c.version)
)
_AFTER = (
    select(users, drivers.c.vehicle_type, drivers.c.vehicle_plate)
    .outerjoin(drivers)
    .where(users.c.id > bindparam("after"), users.c.deleted_at.is_(None))
    .order_by(users.c.id)
    .limit(bindparam("most"))
)
_OF = (
    select(users, drivers.c.vehicle_type, drivers.c.vehicle_plate)
    .outerjoin(drivers)
    .where(users.c.id.in_(bindparam("user_ids", expanding=True)), users.c.deleted_at.is_(None))
)
_COUNT = select(func.count()).select_from(users).where(users.c.deleted_at.is_(None))
_CHANGE_FINDER = _CHANGE.values(finder_version=users.c.version + 1)
_ENGAGED_IN = (
    select(engagements.c.match_id)
    .where(engagements.c.user_id == bindparam("user_id"), engagements.c.ended.is_(False))
    .limit(1)
)
_RELEASE = update(engagements).where(
    engagements.c.match_id == bindparam("of_match"), engagements.c.user_id == bindparam("of_user")
)
_OWES = (
    select(payments_due.c.ride_id)
    .where(payments_due.c.user_id == bindparam("user_id"), payments_due.c.paid.is_(False))
    .limit(1)
)


async def by_msisdn(tx: AsyncConnection, msisdn: str) -> Row[Any] | None:
    return (await tx.execute(_BY_MSISDN, {"msisdn": msisdn})).first()


async def by_id(tx: AsyncConnection, user_id: str) -> Row[Any] | None:
    """The user with his vehicle (``vehicle_type``, ``vehicle_plate``: null for a passenger), unless deleted."""
    if not is_id(user_id):
        return None
    return (await tx.execute(_BY_ID, {"user_id": user_id})).first()


async def after(tx: AsyncConnection, user_id: str, limit: int) -> Sequence[Row[Any]]:
    """The users whose ids come after ``user_id``, as ``by_id`` shows them, in order."""
    return (await tx.execute(_AFTER, {"after": user_id, "most": limit})).all()


async def of(tx: AsyncConnection, user_ids: Sequence[str]) -> Sequence[Row[Any]]:
    """These users, as ``by_id`` shows them."""
    return (await tx.execute(_OF, {"user_ids": user_ids})).all()


async def count(tx: AsyncConnection) -> int:
    return int((await tx.execute(_COUNT)).scalar_one())


async def change(tx: AsyncConnection, user_id: str, now: datetime, *conditions: Any, **values: Any) -> int | None:
    """Change the row if ``conditions`` hold and count its version; the new version, or None."""
    statement = _CHANGE.where(*conditions) if conditions else _CHANGE
    version: int | None = (await tx.execute(statement, {"of_user": user_id, "updated_at": now, **values})).scalar()
    return version


async def change_finder(
    tx: AsyncConnection, user_id: str, now: datetime, *, is_active: bool, finder: str | None
) -> int | None:
    """As ``change``; the finder's version is the row's."""
    values = {"of_user": user_id, "updated_at": now, "finder_active": is_active, "finder": finder}
    version: int | None = (await tx.execute(_CHANGE_FINDER, values)).scalar()
    return version


async def engaged_in(tx: AsyncConnection, user_id: str) -> str | None:
    """The match that binds the user, if one does."""
    match_id: str | None = (await tx.execute(_ENGAGED_IN, {"user_id": user_id})).scalar()
    return match_id


async def engage(tx: AsyncConnection, match_id: str, user_ids: tuple[str, ...], now: datetime) -> None:
    """Bind them, unless the match has ended already."""
    for user_id in user_ids:
        row = {"match_id": match_id, "user_id": user_id, "ended": False, "changed_at": now}
        await insert_ignore(tx, engagements, row)


async def release(tx: AsyncConnection, match_id: str, user_ids: tuple[str, ...], now: datetime) -> None:
    """The match is over for good."""
    for user_id in user_ids:
        row = {"match_id": match_id, "user_id": user_id, "ended": True, "changed_at": now}
        if not await insert_ignore(tx, engagements, row):
            ended = {"of_match": match_id, "of_user": user_id, "ended": True, "changed_at": now}
            await tx.execute(_RELEASE, ended)


async def owes(tx: AsyncConnection, user_id: str) -> str | None:
    """An overdue ride that the user has not paid."""
    ride_id: str | None = (await tx.execute(_OWES, {"user_id": user_id})).scalar()
    return ride_id


async def note_payment(tx: AsyncConnection, ride_id: str, user_id: str, *, paid: bool, now: datetime) -> None:
    """Overdue, or paid after all; paid is final whatever is heard later."""
    row = {"ride_id": ride_id, "user_id": user_id, "paid": paid, "changed_at": now}
    if not await insert_ignore(tx, payments_due, row) and paid:
        await tx.execute(
            update(payments_due).where(payments_due.c.ride_id == ride_id).values(paid=True, changed_at=now)
        )


async def forget_ended(tx: AsyncConnection, before: datetime) -> None:
    """Drop ended engagements, settled debts and dead refresh tokens that are older than ``before``."""
    await tx.execute(delete(engagements).where(engagements.c.ended.is_(True), engagements.c.changed_at < before))
    await tx.execute(delete(payments_due).where(payments_due.c.paid.is_(True), payments_due.c.changed_at < before))
    await tx.execute(delete(refresh_tokens).where(refresh_tokens.c.expires_at < before))
