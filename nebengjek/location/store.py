"""What location remembers: everybody's latest point and the paths of open rides (fast), checkpoints (durable)."""

from abc import ABC, abstractmethod
from bisect import insort
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Boolean, Column, Float, Integer, Row, String, Table, Text, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.clock import Clock
from nebengjek.contracts.geo import Location, Point
from nebengjek.database import UtcDateTime, insert_ignore, metadata
from nebengjek.location.odometer import Fold

odometer = Table(
    "odometer",
    metadata,
    Column("ride_id", String(36), primary_key=True),
    Column("total_km", Float, nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("anchor", Text),
    Column("closed", Boolean, nullable=False),
    Column("review", Boolean, nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
)
"""A checkpoint per ride: what was told to rides so far (``sequence``), from which place on (``anchor``: a point)."""

flags = Table(
    "flags",
    metadata,
    Column("user_id", String(36), primary_key=True),
    Column("kind", String(20), primary_key=True),
    Column("count", Integer, nullable=False),
    Column("last_at", UtcDateTime, nullable=False),
)
"""Phones that an operator should look at."""


class UserState(Struct, kw_only=True):
    """``refused``: the implausible points since the last accepted one, at most three."""

    point: Point
    refused: list[Point] = []


class Track(Struct, frozen=True, kw_only=True):
    """An open ride. ``start``: where and when the distance begins; None during the pick-up."""

    ride_id: str
    driver_id: str
    passenger_id: str
    target: Location
    start: Point | None = None

    def other(self, user_id: str) -> str:
        return self.passenger_id if user_id == self.driver_id else self.driver_id


class Points(ABC):
    """Fast and forgettable: each user's state lives ``ttl`` seconds, a ride's path ``path_ttl``."""

    @abstractmethod
    async def load(self, user_ids: Collection[str]) -> dict[str, UserState]:
        """The states of those who have one."""

    @abstractmethod
    async def save(self, states: Mapping[str, UserState], ttl: float) -> None:
        """Keep them; a state whose point is older than the kept one does not replace it."""

    @abstractmethod
    async def track(self, track: Track, ttl: float) -> bool:
        """Follow a ride, or follow it further (with ``start``); False when it has ended already."""

    @abstractmethod
    async def untrack(self, ride_id: str, user_ids: Collection[str], ttl: float) -> None:
        """The ride has ended; it cannot be followed again."""

    @abstractmethod
    async def tracks(self, user_ids: Collection[str]) -> dict[str, Track]:
        """The open ride of each of these users who has one."""

    @abstractmethod
    async def append(self, ride_id: str, user_id: str, points: Sequence[Point], ttl: float) -> None:
        """Add points to the path of one party; a set, ordered by the phone's time."""

    @abstractmethod
    async def path(self, ride_id: str, user_id: str) -> list[Point]: ...

    @abstractmethod
    async def progress(self, ride_id: str) -> Fold | None:
        """How far the ride has come as far as this store knows."""

    @abstractmethod
    async def set_progress(self, ride_id: str, fold: Fold, ttl: float) -> None: ...


class MemoryPoints(Points):
    """For one process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._states: dict[str, tuple[UserState, float]] = {}
        self._tracks: dict[str, Track] = {}
        self._by_user: dict[str, str] = {}
        self._ended: dict[str, float] = {}
        self._paths: dict[str, dict[str, list[tuple[datetime, Point]]]] = {}
        self._folds: dict[str, Fold] = {}

    async def load(self, user_ids: Collection[str]) -> dict[str, UserState]:
        now, states = self._clock.seconds(), self._states
        found = {}
        for user_id in user_ids:
            kept = states.get(user_id)
            if kept is not None and kept[1] > now:
                found[user_id] = kept[0]
        return found

    async def save(self, states: Mapping[str, UserState], ttl: float) -> None:
        now, kept = self._clock.seconds(), self._states
        ends = now + ttl
        for user_id, state in states.items():
            # Taken out and put in again, the dict is in the order of ends: what is over is at its front.
            kept.pop(user_id, None)
            kept[user_id] = (state, ends)
        while kept:
            oldest = next(iter(kept))
            if kept[oldest][1] > now:
                break
            del kept[oldest]

    async def track(self, track: Track, ttl: float) -> bool:
        if track.ride_id in self._ended:
            return False
        known = self._tracks.get(track.ride_id)
        if known is None or known.start is None:
            self._tracks[track.ride_id] = track
        self._by_user[track.driver_id] = self._by_user[track.passenger_id] = track.ride_id
        return True

    async def untrack(self, ride_id: str, user_ids: Collection[str], ttl: float) -> None:
        now = self._clock.seconds()
        self._ended[ride_id] = now + ttl
        while self._ended:
            oldest = next(iter(self._ended))
            if self._ended[oldest] > now:
                break
            del self._ended[oldest]
        for user_id in user_ids:
            if self._by_user.get(user_id) == ride_id:
                del self._by_user[user_id]
        self._tracks.pop(ride_id, None)
        self._paths.pop(ride_id, None)
        self._folds.pop(ride_id, None)

    async def tracks(self, user_ids: Collection[str]) -> dict[str, Track]:
        if not self._tracks:
            return {}
        found = {}
        for user_id in user_ids:
            ride_id = self._by_user.get(user_id)
            if ride_id is not None:
                found[user_id] = self._tracks[ride_id]
        return found

    async def append(self, ride_id: str, user_id: str, points: Sequence[Point], ttl: float) -> None:
        path = self._paths.setdefault(ride_id, {}).setdefault(user_id, [])
        for point in points:
            item = (point.timestamp, point)
            if not path or path[-1][0] < point.timestamp:
                path.append(item)
            elif item not in path:
                insort(path, item, key=lambda known: known[0])

    async def path(self, ride_id: str, user_id: str) -> list[Point]:
        return [point for _, point in self._paths.get(ride_id, {}).get(user_id, [])]

    async def progress(self, ride_id: str) -> Fold | None:
        return self._folds.get(ride_id)

    async def set_progress(self, ride_id: str, fold: Fold, ttl: float) -> None:
        self._folds[ride_id] = fold


# -- checkpoints


async def checkpoint(tx: AsyncConnection, ride_id: str) -> Row[Any] | None:
    statement = select(odometer).where(odometer.c.ride_id == ride_id)
    return (await tx.execute(statement)).first()


async def advance(tx: AsyncConnection, ride_id: str, fold: Fold, now: datetime) -> bool:
    """Write the checkpoint after ``fold.sequence``; False when another pod has written it, or the ride is closed."""
    values = {
        "total_km": fold.total_km,
        "sequence": fold.sequence + 1,
        "anchor": msgspec.json.encode(fold.anchor).decode(),
        "changed_at": now,
    }
    if fold.sequence == 0:
        return await insert_ignore(tx, odometer, {"ride_id": ride_id, "closed": False, "review": False, **values})
    before = (odometer.c.sequence == fold.sequence) & odometer.c.closed.is_(False)
    statement = update(odometer).where(odometer.c.ride_id == ride_id, before).values(values)
    return (await tx.execute(statement)).rowcount == 1


async def close(tx: AsyncConnection, ride_id: str, total_km: float, *, review: bool, now: datetime) -> Row[Any]:
    """Close the ride with this total, unless it is closed; the row as it is then."""
    fresh = {"ride_id": ride_id, "total_km": total_km, "sequence": 0, "closed": True, "review": review}
    if not await insert_ignore(tx, odometer, {**fresh, "changed_at": now}):
        await tx.execute(
            update(odometer)
            .where(odometer.c.ride_id == ride_id, odometer.c.closed.is_(False))
            .values(total_km=total_km, closed=True, review=review, changed_at=now)
        )
    row = await checkpoint(tx, ride_id)
    assert row is not None
    return row


async def flag(tx: AsyncConnection, user_id: str, kind: str, now: datetime) -> None:
    """Count one more of this kind."""
    if not await insert_ignore(tx, flags, {"user_id": user_id, "kind": kind, "count": 1, "last_at": now}):
        of_user = (flags.c.user_id == user_id) & (flags.c.kind == kind)
        await tx.execute(update(flags).where(of_user).values(count=flags.c.count + 1, last_at=now))


async def flagged(tx: AsyncConnection, limit: int) -> Iterable[Row[Any]]:
    return (await tx.execute(select(flags).order_by(flags.c.last_at.desc()).limit(limit))).all()
