"""What rides remembers of payments: one a ride, and every try to pay it, changed by conditional updates only."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.contracts.rides import PaymentState
from nebengjek.rides.tables import payment_attempts, payments


class PaymentRow(Struct, frozen=True, kw_only=True):
    payment_id: str
    ride_id: str
    amount: int
    status: PaymentState
    method: str | None
    attempts: int
    created_at: datetime
    paid_at: datetime | None


class Attempt(Struct, frozen=True, kw_only=True):
    """One try to pay. PENDING: the gateway was asked, or is about to be."""

    payment_id: str
    attempt: int
    ride_id: str
    status: PaymentState
    amount: int
    method: str
    reason: str | None
    created_at: datetime
    finished_at: datetime | None

    @property
    def key(self) -> str:
        """Under which the gateway knows it."""
        return f"{self.payment_id}-{self.attempt}"


async def insert_payment(tx: AsyncConnection, payment: PaymentRow) -> None:
    await tx.execute(insert(payments).values({name: getattr(payment, name) for name in payment.__struct_fields__}))


async def payment_of(tx: AsyncConnection, ride_id: str) -> PaymentRow | None:
    return (await payments_of(tx, [ride_id])).get(ride_id)


async def payments_of(tx: AsyncConnection, ride_ids: Sequence[str]) -> dict[str, PaymentRow]:
    """By ride id; a ride that has not arrived has none."""
    found = await tx.execute(select(payments).where(payments.c.ride_id.in_(ride_ids)))
    return {row.ride_id: PaymentRow(**row._mapping) for row in found}


async def change_payment(
    tx: AsyncConnection, payment_id: str, states: Sequence[PaymentState], **values: Any
) -> PaymentRow | None:
    """None: it is in none of ``states``."""
    statement = (
        update(payments)
        .where(payments.c.payment_id == payment_id, payments.c.status.in_(states))
        .values(**values)
        .returning(*payments.c)
    )
    row = (await tx.execute(statement)).one_or_none()
    return PaymentRow(**row._mapping) if row is not None else None


async def insert_attempt(tx: AsyncConnection, attempt: Attempt) -> None:
    """Counts it in the payment too."""
    values = {name: getattr(attempt, name) for name in attempt.__struct_fields__}
    await tx.execute(insert(payment_attempts).values(values))
    counted = update(payments).where(payments.c.payment_id == attempt.payment_id)
    await tx.execute(counted.values(attempts=attempt.attempt, method=attempt.method))


async def open_attempt(tx: AsyncConnection, payment_id: str) -> Attempt | None:
    columns = payment_attempts.c
    found = await _attempts(tx, columns.payment_id == payment_id, columns.status == "PENDING", limit=1)
    return found[0] if found else None


async def open_attempts(tx: AsyncConnection, before: datetime, limit: int) -> list[Attempt]:
    """The tries begun before then whose outcome is not known, oldest first."""
    return await _attempts(
        tx, payment_attempts.c.status == "PENDING", payment_attempts.c.created_at < before, limit=limit
    )


async def attempt_again(tx: AsyncConnection, attempt: Attempt) -> Attempt:
    """The present row of a try that is there."""
    columns = payment_attempts.c
    return (await _attempts(tx, columns.payment_id == attempt.payment_id, columns.attempt == attempt.attempt, limit=1))[
        0
    ]


async def _attempts(tx: AsyncConnection, *conditions: Any, limit: int) -> list[Attempt]:
    statement = select(payment_attempts).where(*conditions).order_by(payment_attempts.c.created_at).limit(limit)
    return [Attempt(**row._mapping) for row in await tx.execute(statement)]


async def finish_attempt(
    tx: AsyncConnection, attempt: Attempt, status: PaymentState, reason: str | None, now: datetime
) -> Attempt | None:
    """None: somebody else has finished it."""
    columns = payment_attempts.c
    statement = (
        update(payment_attempts)
        .where(
            columns.payment_id == attempt.payment_id, columns.attempt == attempt.attempt, columns.status == "PENDING"
        )
        .values(status=status, reason=reason, finished_at=now)
        .returning(*columns)
    )
    row = (await tx.execute(statement)).one_or_none()
    return Attempt(**row._mapping) if row is not None else None
