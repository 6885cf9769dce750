"""How people wish to be told: language, what they want at all, and the hours in which they sleep."""

import hashlib
import hmac
from datetime import datetime, time, timedelta, timezone
from typing import Literal

from msgspec import UNSET, Struct, UnsetType, structs
from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.contracts.message import is_id
from nebengjek.database import Database, insert_ignore
from nebengjek.errors import Invalid, NotFound
from nebengjek_plugins.notifications.contracts import Language
from nebengjek_plugins.notifications.settings import Hour, NotificationsSettings
from nebengjek_plugins.notifications.tables import contacts, wishes

Zone = Literal["WIB", "WITA", "WIT"]
_HOURS: dict[str, int] = {"WIB": 7, "WITA": 8, "WIT": 9}
"""East of Greenwich; nowhere in Indonesia are clocks changed."""


class Wishes(Struct, frozen=True, kw_only=True):
    """``news``: mails that are not about a ride. They wait from ``quiet_from`` to ``quiet_until`` (``zone``)."""

    language: Language
    news: bool
    push: bool
    zone: Zone
    quiet_from: Hour | None
    quiet_until: Hour | None


class WishesChanged(Struct, frozen=True, kw_only=True):
    """What is not sent stays as it is. No quiet hours: both null."""

    language: Language | UnsetType = UNSET
    news: bool | UnsetType = UNSET
    push: bool | UnsetType = UNSET
    zone: Zone | UnsetType = UNSET
    quiet_from: Hour | UnsetType | None = UNSET
    quiet_until: Hour | UnsetType | None = UNSET


class WishBook:
    def __init__(self, database: Database, settings: NotificationsSettings) -> None:
        self._database = database
        self._secret = (settings.secret or "").encode()
        self._usual = Wishes(
            language=settings.language,
            news=True,
            push=True,
            zone="WIB",
            quiet_from=settings.quiet_from,
            quiet_until=settings.quiet_until,
        )

    async def of(self, user_id: str) -> Wishes:
        async with self._database.read() as tx:
            return await self.among(tx, user_id)

    async def among(self, tx: AsyncConnection, user_id: str) -> Wishes:
        row = (await tx.execute(select(wishes).where(wishes.c.user_id == user_id))).first()
        if row is None:
            return self._usual
        return Wishes(
            language=row.language or self._usual.language,
            news=row.news,
            push=row.push,
            zone=row.zone,
            quiet_from=row.quiet_from,
            quiet_until=row.quiet_until,
        )

    async def change(self, user_id: str, change: WishesChanged) -> Wishes:
        """Raises Invalid when only one end of the quiet hours would be set."""
        values = {name: value for name, value in structs.asdict(change).items() if value is not UNSET}
        async with self._database.begin() as tx:
            first = structs.asdict(structs.replace(self._usual, **values))
            # Only what was said: of two who change something at once neither undoes what the other said.
            if not await insert_ignore(tx, wishes, {"user_id": user_id, **first}) and values:
                await tx.execute(update(wishes).where(wishes.c.user_id == user_id).values(**values))
            after = await self.among(tx, user_id)
            if (after.quiet_from is None) != (after.quiet_until is None):
                raise Invalid("quiet_from and quiet_until: both or neither")
        return after

    async def forget(self, tx: AsyncConnection, user_id: str) -> None:
        await tx.execute(delete(wishes).where(wishes.c.user_id == user_id))

    def ticket(self, user_id: str) -> str:
        """What lets whoever has the mail end the news, and nothing else."""
        return f"{user_id}.{self._signature(user_id)}"

    async def unsubscribe(self, ticket: str) -> None:
        """No news any more. Raises NotFound for a ticket that is not ours."""
        user_id = self.holder(ticket)
        async with self._database.read() as tx:
            left = (await tx.execute(select(contacts.c.deleted).where(contacts.c.user_id == user_id))).scalar()
        # Of who has left nothing is kept, not even this.
        if not left:
            await self.change(user_id, WishesChanged(news=False))

    def holder(self, ticket: str) -> str:
        """Whose ticket it is. Raises NotFound."""
        user_id, _, signature = ticket.partition(".")
        could_be = self._secret and is_id(user_id) and signature.isascii()
        if not could_be or not hmac.compare_digest(self._signature(user_id), signature):
            raise NotFound("this link is not one of ours")
        return user_id

    def _signature(self, user_id: str) -> str:
        return hmac.new(self._secret, f"unsubscribe:{user_id}".encode(), hashlib.sha256).hexdigest()


def silence(wished: Wishes, now: datetime) -> float:
    """Seconds until the quiet hours that it is now are over; 0: it is none of them."""
    if wished.quiet_from is None or wished.quiet_until is None:
        return 0.0
    here = now.astimezone(timezone(timedelta(hours=_HOURS[wished.zone])))
    begin, end = (time.fromisoformat(hour) for hour in (wished.quiet_from, wished.quiet_until))
    at = here.time()
    quiet = begin <= at < end if begin <= end else at >= begin or at < end
    if not quiet:
        return 0.0
    morning = here.replace(hour=end.hour, minute=end.minute, second=0, microsecond=0)
    if morning <= here:
        morning += timedelta(days=1)
    return (morning - here).total_seconds()
