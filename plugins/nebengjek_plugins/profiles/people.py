"""What is known of a person, put together from events that may come late, twice and in any order."""

from datetime import datetime
from typing import Any

from sqlalchemy import Row, Table, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.contracts.users import Account, UserCreated, UserDriverRegistered, UserUpdated
from nebengjek.database import insert_ignore

News = UserCreated | UserUpdated | UserDriverRegistered | Account
_FORGOTTEN = {
    "deleted": True,
    **dict.fromkeys(("msisdn_suffix", "full_name", "email", "vehicle_type", "vehicle_plate", "created_at")),
}


async def learn(tx: AsyncConnection, table: Table, news: News, now: datetime) -> Row[Any]:
    """Take over what ``news`` says and nothing newer has said otherwise; the row, locked until the transaction ends.

    What never changes (number, vehicle, when he came) is taken from news of any age.
    """
    row = await meet(tx, table, news.user_id, now)
    values = _always(news) | (_newest(news) if news.version > row.version else {})
    if row.deleted:
        values = {"version": max(row.version, news.version)}
    elif isinstance(news, UserUpdated) and news.deleted:
        values = {"version": news.version, **_FORGOTTEN}
    mine = table.c.user_id == news.user_id
    changed: Row[Any] = (
        await tx.execute(update(table).where(mine).values(**values, changed_at=now).returning(table))
    ).one()
    return changed


async def meet(tx: AsyncConnection, table: Table, user_id: str, now: datetime) -> Row[Any]:
    """The row of a user, locked; made when he is heard of for the first time."""
    await insert_ignore(tx, table, {"user_id": user_id, "version": 0, "deleted": False, "changed_at": now})
    row: Row[Any] = (await tx.execute(select(table).where(table.c.user_id == user_id).with_for_update())).one()
    return row


def _always(news: News) -> dict[str, Any]:
    if isinstance(news, UserCreated | Account):
        known: dict[str, Any] = {"msisdn_suffix": news.msisdn_suffix, "created_at": news.created_at}
        return known | (_vehicle(news) if isinstance(news, Account) and news.vehicle else {})
    return _vehicle(news) if isinstance(news, UserDriverRegistered) else {}


def _vehicle(news: UserDriverRegistered | Account) -> dict[str, Any]:
    assert news.vehicle is not None
    return {"vehicle_type": news.vehicle.vehicle_type, "vehicle_plate": news.vehicle.vehicle_plate}


def _newest(news: News) -> dict[str, Any]:
    role = "driver" if isinstance(news, UserDriverRegistered) else news.role
    return {"version": news.version, "full_name": news.full_name, "email": news.email, "role": role}
