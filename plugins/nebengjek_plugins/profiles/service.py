"""Profiles: made and kept by what is said of accounts; read by their owners."""

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from msgspec import Struct
from sqlalchemy import Row, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.clock import Clock
from nebengjek.contracts.users import Account, Role, UserCreated, UserDriverRegistered, UserUpdated, Vehicle
from nebengjek.database import Database, insert_ignore
from nebengjek.errors import NotFound
from nebengjek_plugins.profiles import gallery
from nebengjek_plugins.profiles.cache import Cache
from nebengjek_plugins.profiles.people import learn
from nebengjek_plugins.profiles.tables import people, pictures, signups

JAKARTA = timezone(timedelta(hours=7))
"""Where a day begins and ends."""


class Profile(Struct, frozen=True, kw_only=True):
    """``avatar``: addresses by size (``original``, ``64``, ``128``, ``512``), empty without a picture."""

    user_id: str
    role: Role | None
    full_name: str | None
    email: str | None
    vehicle: Vehicle | None
    avatar: dict[str, str]
    avatar_ready: bool
    created_at: datetime | None


class Profiles:
    def __init__(self, database: Database, cache: Cache, clock: Clock) -> None:
        self._database = database
        self._cache = cache
        self._clock = clock

    async def heard(self, event: UserCreated | UserUpdated | UserDriverRegistered) -> None:
        async with self._database.begin() as tx:
            row = await learn(tx, people, event, self._clock.now())
            if row.deleted and row.avatar_token is not None:
                await gallery.take_down(tx, row, self._clock.now())
        # After the commit, or a reader would put the old one back; done again when we die in between.
        await self._cache.forget(event.user_id)

    async def catch_up(self, tx: AsyncConnection, accounts: Sequence[Account]) -> None:
        """Make the profiles of those who were there before the plugin was, and of whom news was lost."""
        ids = [account.user_id for account in accounts]
        known = await tx.execute(select(people.c.user_id, people.c.version).where(people.c.user_id.in_(ids)))
        versions = dict(known.all())
        for account in accounts:
            if versions.get(account.user_id, 0) < account.version:
                await learn(tx, people, account, self._clock.now())

    async def read(self, user_id: str) -> Profile:
        """Raises NotFound: he left, or nothing has been heard of him yet."""
        if (kept := await self._cache.get(user_id, Profile)) is not None:
            return kept
        began = self._clock.seconds()
        async with self._database.read() as tx:
            mine = select(people, pictures.c.ready).outerjoin(pictures, pictures.c.token == people.c.avatar_token)
            row = (await tx.execute(mine.where(people.c.user_id == user_id, people.c.deleted.is_(False)))).first()
        if row is None:
            raise NotFound("there is no profile yet")
        profile = _view(row)
        await self._cache.keep(user_id, profile, began=began)
        return profile


class Signups:
    """Who signed up when: a row for each user, written once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def heard(self, event: UserCreated) -> None:
        async with self._database.begin() as tx:
            await self._count(tx, event)

    async def catch_up(self, tx: AsyncConnection, accounts: Sequence[Account]) -> None:
        """Count those who were there before the plugin was."""
        ids = [account.user_id for account in accounts]
        counted = set((await tx.execute(select(signups.c.user_id).where(signups.c.user_id.in_(ids)))).scalars())
        for account in accounts:
            if account.user_id not in counted:
                await self._count(tx, account)

    async def _count(self, tx: AsyncConnection, who: UserCreated | Account) -> None:
        day = who.created_at.astimezone(JAKARTA).date().isoformat()
        await insert_ignore(tx, signups, {"user_id": who.user_id, "day": day, "created_at": who.created_at})

    async def by_day(self, days: int) -> dict[str, int]:
        """The newest days on which somebody came."""
        counted = select(signups.c.day, func.count()).group_by(signups.c.day).order_by(signups.c.day.desc())
        async with self._database.read() as tx:
            return dict((await tx.execute(counted.limit(days))).all())


def _view(row: Row[Any]) -> Profile:
    vehicle = None
    if row.vehicle_type is not None:
        vehicle = Vehicle(vehicle_type=row.vehicle_type, vehicle_plate=row.vehicle_plate)
    return Profile(
        user_id=row.user_id,
        role=row.role,
        full_name=row.full_name,
        email=row.email,
        vehicle=vehicle,
        avatar=gallery.addresses(row.avatar_token) if row.avatar_token else {},
        avatar_ready=bool(row.ready),
        created_at=row.created_at,
    )
