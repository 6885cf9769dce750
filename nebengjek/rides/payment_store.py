"""What rides remembers of payments: one a ride, and every try to pay it, changed by conditional updates only."""

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any

from msgspec import Struct
from sqlalchemy import bindparam, insert, literal_column, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.dml import ReturningUpdate

from nebengjek.contracts.rides import PaymentState
from nebengjek.rides.tables import payment_attempts, payments
from nebengjek.sql import one_of


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


_PAYMENTS_OF = select(payments).where(payments.c.ride_id.in_(bindparam("ride_ids")))
_PAYMENT_OF = select(payments).where(payments.c.ride_id == bindparam("ride_id"))
_COUNT_ATTEMPT = update(payments).where(payments.c.payment_id == bindparam("of_payment"))
_attempts = select(payment_attempts).order_by(payment_attempts.c.created_at)
_ATTEMPT = _attempts.where(
    payment_attempts.c.payment_id == bindparam("payment_id"), payment_attempts.c.attempt == bindparam("attempt")
)
_OPEN_ATTEMPT = _attempts.where(
    payment_attempts.c.payment_id == bindparam("payment_id"), payment_attempts.c.status == "PENDING"
).limit(1)
_OPEN_ATTEMPTS = _attempts.where(
    payment_attempts.c.status == "PENDING", payment_attempts.c.created_at < bindparam("before")
).limit(bindparam("rows"))
_FINISH_ATTEMPT = (
    update(payment_attempts)
    .where(
        payment_attempts.c.payment_id == bindparam("of_payment"),
        payment_attempts.c.attempt == bindparam("of_attempt"),
        payment_attempts.c.status == literal_column("'PENDING'"),
    )
    .returning(*payment_attempts.c)
)


@cache
def _change_payment(states: tuple[PaymentState, ...]) -> ReturningUpdate[*tuple[Any, ...]]:
    return (
        update(payments)
        .where(payments.c.payment_id == bindparam("of_payment"), one_of(payments.c.status, states))
        .returning(*payments.c)
    )


async def insert_payment(tx: AsyncConnection, payment: PaymentRow) -> None:
    await tx.execute(insert(payments), {name: getattr(payment, name) for name in payment.__struct_fields__})


async def payment_of(tx: AsyncConnection, ride_id: str) -> PaymentRow | None:
    row = (await tx.execute(_PAYMENT_OF, {"ride_id": ride_id})).first()
    return PaymentRow(**row._mapping) if row is not None else None


async def payments_of(tx: AsyncConnection, ride_ids: Sequence[str]) -> dict[str, PaymentRow]:
    """By ride id; a ride that has not arrived has none."""
    found = await tx.execute(_PAYMENTS_OF, {"ride_ids": list(ride_ids)})
    return {row.ride_id: PaymentRow(**row._mapping) for row in found}


async def change_payment(
    tx: AsyncConnection, payment_id: str, states: Sequence[PaymentState], **values: Any
) -> PaymentRow | None:
    """None: it is in none of ``states``."""
    row = (await tx.execute(_change_payment(tuple(states)), {"of_payment": payment_id, **values})).one_or_none()
    return PaymentRow(**row._mapping) if row is not None else None


async def insert_attempt(tx: AsyncConnection, attempt: Attempt) -> None:
    """Counts it in the payment too."""
    values = {name: getattr(attempt, name) for name in attempt.__struct_fields__}
    await tx.execute(insert(payment_attempts), values)
    counted = {"of_payment": attempt.payment_id, "attempts": attempt.attempt, "method": attempt.method}
    await tx.execute(_COUNT_ATTEMPT, counted)


async def open_attempt(tx: AsyncConnection, payment_id: str) -> Attempt | None:
    row = (await tx.execute(_OPEN_ATTEMPT, {"payment_id": payment_id})).first()
    return Attempt(**row._mapping) if row is not None else None


async def open_attempts(tx: AsyncConnection, before: datetime, limit: int) -> list[Attempt]:
    """The tries begun before then whose outcome is not known, oldest first."""
    return [Attempt(**row._mapping) for row in await tx.execute(_OPEN_ATTEMPTS, {"before": before, "rows": limit})]


async def attempt_again(tx: AsyncConnection, attempt: Attempt) -> Attempt:
    """The present row of a try that is there."""
    row = (await tx.execute(_ATTEMPT, {"payment_id": attempt.payment_id, "attempt": attempt.attempt})).one()
    return Attempt(**row._mapping)


async def finish_attempt(
    tx: AsyncConnection, attempt: Attempt, status: PaymentState, reason: str | None, now: datetime
) -> Attempt | None:
    """None: somebody else has finished it."""
    values = {"status": status, "reason": reason, "finished_at": now}
    of_attempt = {"of_payment": attempt.payment_id, "of_attempt": attempt.attempt}
    row = (await tx.execute(_FINISH_ATTEMPT, {**of_attempt, **values})).one_or_none()
    return Attempt(**row._mapping) if row is not None else None
