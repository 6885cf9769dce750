"""The operators' search: kept by events, built anew from the accounts themselves."""

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Row, delete, exists, func, select, tuple_, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import Clock
from nebengjek.contracts.users import Account, AccountsAfter, Role, UserCreated, UserDriverRegistered, UserUpdated
from nebengjek.database import Database
from nebengjek.errors import Invalid, Unavailable
from nebengjek_plugins.profiles.fulltext import is_lost, make_index, matching, words_of
from nebengjek_plugins.profiles.people import learn
from nebengjek_plugins.profiles.tables import found, people

_RECENT = timedelta(minutes=1)
"""What was indexed so lately was not yet there when the accounts were read."""
_AT_ONCE = 20
"""Accounts in one transaction."""
_LOST = "there is no search index any more: nebengjek search rebuild makes it anew"


class Found(Struct, frozen=True, kw_only=True):
    user_id: str
    role: Role | None
    full_name: str | None
    msisdn_suffix: str | None
    vehicle_plate: str | None


class FoundUsers(Struct, frozen=True, kw_only=True):
    """``next_cursor``: hand it in as ``cursor``, with the same ``q``, for what follows; null at the end."""

    items: list[Found]
    next_cursor: str | None


class Rebuilt(Struct, frozen=True, kw_only=True):
    """``indexed``: in this step; ``removed``: of people who are no more; ``next``: where the next step begins."""

    indexed: int
    removed: int
    total: int | None
    next: str | None


CatchUp = Callable[[AsyncConnection, Sequence[Account]], Awaitable[None]]


class Search:
    """``others``: what else is kept of accounts and may have missed some; they catch up where the search is rebuilt."""

    def __init__(self, bus: MessageBus, database: Database, clock: Clock, *, others: Sequence[CatchUp] = ()) -> None:
        self._others = others
        self._bus = bus
        self._database = database
        self._clock = clock

    async def heard(self, event: UserCreated | UserUpdated | UserDriverRegistered) -> None:
        with _index_there():
            async with self._database.begin() as tx:
                await self._index(tx, await learn(tx, found, event, self._clock.now()))

    async def find(self, query: str, *, cursor: str | None, limit: int) -> FoundUsers:
        """Who has all the words, by name, those without one first; after the place that ``cursor`` names.

        Raises Invalid (there is no word in it, no such cursor), Unavailable (the index is lost).
        """
        columns = [found.c[name] for name in Found.__struct_fields__]
        place = (func.coalesce(found.c.full_name, ""), found.c.user_id)
        after = _read_cursor(cursor) if cursor is not None else None
        with _index_there():
            async with self._database.read() as tx:
                matches = matching(tx.dialect.name, query)
                if matches is None:
                    raise Invalid("q: expected a name, the end of a number, or a plate")
                hits = select(*columns).where(matches, found.c.deleted.is_(False))
                if after is not None:
                    hits = hits.where(tuple_(*place) > tuple_(*after))
                rows = await tx.execute(hits.order_by(*place).limit(limit + 1))
                items = [Found(**row._mapping) for row in rows]
                if not items and after is None:
                    await _not_emptied(tx)
        more = len(items) > limit
        return FoundUsers(items=items[:limit], next_cursor=_cursor(items[limit - 1]) if more else None)

    async def rebuild(self, after: str, limit: int) -> Rebuilt:
        """One step: index the accounts that come after ``after``; the first step makes the text index anew."""
        page = await self._bus.request(AccountsAfter(after=after, limit=limit))
        last = page.items[-1].user_id if len(page.items) >= limit else None
        now = self._clock.now()
        if not after:
            async with self._database.begin() as tx:
                await tx.run_sync(make_index)
        for first in range(0, len(page.items), _AT_ONCE):
            await self._take(page.items[first : first + _AT_ONCE], now)
            # SQLite works on the loop's thread: whoever waits for it, or for the database, has his turn.
            await asyncio.sleep(0)
        async with self._database.begin() as tx:
            there = [account.user_id for account in page.items]
            # Who left stays as an empty row, so that late news does not bring him back.
            others = delete(found).where(found.c.user_id > after, found.c.deleted.is_(False))
            others = others.where(found.c.user_id.not_in(there), found.c.changed_at < now - _RECENT)
            removed = await tx.execute(others if last is None else others.where(found.c.user_id <= last))
        return Rebuilt(indexed=len(page.items), removed=removed.rowcount, total=page.total, next=last)

    async def _take(self, accounts: Sequence[Account], now: datetime) -> None:
        async with self._database.begin() as tx:
            for account in accounts:
                await self._index(tx, await learn(tx, found, account, now))
            for catch_up in self._others:
                await catch_up(tx, accounts)

    async def _index(self, tx: AsyncConnection, row: Row[Any]) -> None:
        words = words_of(name=row.full_name, suffix=row.msisdn_suffix, plate=row.vehicle_plate)
        if words != row.words:
            await tx.execute(update(found).where(found.c.id == row.id).values(words=words))


def _cursor(last: Found) -> str:
    place = msgspec.json.encode((last.full_name or "", last.user_id))
    return base64.urlsafe_b64encode(place).decode().rstrip("=")


def _read_cursor(cursor: str) -> tuple[str, str]:
    """Raises Invalid."""
    try:
        place = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        name, user_id = msgspec.json.decode(place, type=tuple[str, str])
    except (binascii.Error, ValueError) as error:
        raise Invalid("cursor: is not one that this server gave") from error
    if "\0" in name + user_id:  # PostgreSQL knows no text with it.
        raise Invalid("cursor: is not one that this server gave")
    return name, user_id


async def _not_emptied(tx: AsyncConnection) -> None:
    """Raises Unavailable when there are profiles and not one entry of them: somebody has emptied the table."""
    if (await tx.execute(select(exists(select(found.c.id))))).scalar():
        return
    if (await tx.execute(select(exists(select(people.c.user_id))))).scalar():
        raise Unavailable("search index", _LOST)


@contextmanager
def _index_there() -> Iterator[None]:
    """Raises Unavailable when the index was deleted: what is heard meanwhile waits until it has been made anew."""
    try:
        yield
    except DBAPIError as error:
        if not is_lost(error):
            raise
        raise Unavailable("search index", _LOST) from error
