"""What location remembers for good, in SQL: the rides with their checkpoints, and whom an operator should look at."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Boolean, Column, Float, Index, Integer, Row, String, Table, Text, bindparam, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.contracts.geo import Location, Point
from nebengjek.location.odometer import Fold
from nebengjek.location.store import Track
from nebengjek.sql import UtcDateTime, insert_ignore, metadata

odometer = Table(
    "odometer",
    metadata,
    Column("ride_id", String(36), primary_key=True),
    Column("driver_id", String(36), nullable=False),
    Column("passenger_id", String(36), nullable=False),
    Column("pickup", Text),
    Column("target", Text),
    Column("start", Text),
    Column("ended", Boolean, nullable=False),
    Column("total_km", Float, nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("anchor", Text),
    Column("closed", Boolean, nullable=False),
    Column("review", Boolean, nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
)
"""A row per ride. ``pickup`` and ``target``: locations, ``start``: a point, once they are known. ``ended``: nobody
follows it any more. The checkpoint: what was told to rides so far (``total_km``, ``sequence``), from which point on
(``anchor``). ``closed``: ``total_km`` is the whole ride."""

Index("ix_odometer_open", odometer.c.ended, sqlite_where=text("NOT ended"), postgresql_where=text("NOT ended"))

flags = Table(
    "flags",
    metadata,
    Column("user_id", String(36), primary_key=True),
    Column("kind", String(20), primary_key=True),
    Column("count", Integer, nullable=False),
    Column("last_at", UtcDateTime, nullable=False),
)
"""Phones that an operator should look at."""


# -- rides

_RIDE = select(odometer).where(odometer.c.ride_id == bindparam("ride_id"))
_CHANGE = update(odometer).where(odometer.c.ride_id == bindparam("of_ride"))
_END = _CHANGE.where(~odometer.c.ended)
_CLOSE = _CHANGE.where(~odometer.c.closed)
_ADVANCE = _CLOSE.where(odometer.c.sequence == bindparam("after"))


def track_of(row: Row[Any]) -> Track:
    return Track(
        ride_id=row.ride_id,
        driver_id=row.driver_id,
        passenger_id=row.passenger_id,
        pickup=_read(row.pickup, Location),
        target=_read(row.target, Location),
        start=_read(row.start, Point),
    )


async def follow(tx: AsyncConnection, track: Track, now: datetime) -> Row[Any]:
    """Remember what is known of a ride, whatever came before; the row as it is then, which may be ``ended``."""
    facts = {
        name: _write(value)
        for name, value in (("pickup", track.pickup), ("target", track.target), ("start", track.start))
        if value is not None
    }
    if not await insert_ignore(tx, odometer, {**_fresh(track, now), **facts}):
        await tx.execute(_CHANGE, {"of_ride": track.ride_id, **facts, "changed_at": now})
    row = await ride(tx, track.ride_id)
    assert row is not None
    return row


async def end(tx: AsyncConnection, track: Track, now: datetime) -> None:
    """Nobody follows the ride any more, also if it was not known yet."""
    if not await insert_ignore(tx, odometer, {**_fresh(track, now), "ended": True}):
        await tx.execute(_END, {"of_ride": track.ride_id, "ended": True, "changed_at": now})


async def ride(tx: AsyncConnection, ride_id: str) -> Row[Any] | None:
    return (await tx.execute(_RIDE, {"ride_id": ride_id})).first()


async def open_rides(tx: AsyncConnection) -> list[Track]:
    rows = (await tx.execute(select(odometer).where(~odometer.c.ended))).all()
    return [track_of(row) for row in rows]


def _fresh(track: Track, now: datetime) -> dict[str, Any]:
    return {
        "ride_id": track.ride_id,
        "driver_id": track.driver_id,
        "passenger_id": track.passenger_id,
        "ended": False,
        "total_km": 0.0,
        "sequence": 0,
        "closed": False,
        "review": False,
        "changed_at": now,
    }


# -- checkpoints


def anchor_of(row: Row[Any]) -> Point | None:
    anchor: Point | None = _read(row.anchor, Point)
    return anchor


async def advance(tx: AsyncConnection, ride_id: str, fold: Fold, now: datetime) -> bool:
    """Write the checkpoint after ``fold.sequence``; False when another pod has written it, or the ride is closed."""
    values = {
        "of_ride": ride_id,
        "after": fold.sequence,
        "total_km": fold.total_km,
        "sequence": fold.sequence + 1,
        "anchor": _write(fold.anchor),
        "changed_at": now,
    }
    return (await tx.execute(_ADVANCE, values)).rowcount == 1


async def close(tx: AsyncConnection, track: Track, total_km: float, *, review: bool, now: datetime) -> Row[Any]:
    """Close the ride with this total, unless it is closed; the row as it is then."""
    await insert_ignore(tx, odometer, _fresh(track, now))
    values = {"total_km": total_km, "closed": True, "review": review, "changed_at": now}
    await tx.execute(_CLOSE, {"of_ride": track.ride_id, **values})
    row = await ride(tx, track.ride_id)
    assert row is not None
    return row


# -- flags


async def flag(tx: AsyncConnection, user_id: str, kind: str, times: int, now: datetime) -> None:
    """Count so many more of this kind."""
    if not await insert_ignore(tx, flags, {"user_id": user_id, "kind": kind, "count": times, "last_at": now}):
        of_user = (flags.c.user_id == user_id) & (flags.c.kind == kind)
        await tx.execute(update(flags).where(of_user).values(count=flags.c.count + times, last_at=now))


async def flagged(tx: AsyncConnection, limit: int = 100) -> Sequence[Row[Any]]:
    """Whom an operator should look at, the latest first."""
    return (await tx.execute(select(flags).order_by(flags.c.last_at.desc()).limit(limit))).all()


def _write(value: Location | Point) -> str:
    return msgspec.json.encode(value).decode()


def _read(text: str | None, kind: Any) -> Any:
    return None if text is None else msgspec.json.decode(text, type=kind)
