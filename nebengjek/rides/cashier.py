"""Who pays whom: tries to charge, each a committed row before the gateway is called, and unpaid rides that end.

A try whose answer was lost stays open; a repeated command or the sweep asks the gateway what became of it, and
no new try begins while one is open, so that nobody pays twice.
"""

import asyncio
import re
from datetime import timedelta

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import Clock
from nebengjek.contracts.rides import PaymentState, PaymentStatus, PayRide
from nebengjek.database import Database
from nebengjek.errors import Conflict, Forbidden, Invalid, NotFound, Unavailable
from nebengjek.rides import events, payment_store, store
from nebengjek.rides.payment_store import Attempt, PaymentRow
from nebengjek.rides.payments import ChargeResult, PaymentGateway
from nebengjek.rides.service import SWEEP_PAGE
from nebengjek.rides.store import RideRow

CASH = "cash"
LOST = ChargeResult(status="refused", reason="lost")

_METHOD = re.compile(r"[a-z][a-z0-9_]{0,31}")

log = structlog.stdlib.get_logger("nebengjek.rides.cashier")


class Cashier:
    """``charge_timeout``: seconds the gateway may take; ``settle_after``: age in seconds (more than that) at which
    the sweep asks what became of a try.
    """

    def __init__(
        self,
        bus: MessageBus,
        database: Database,
        gateway: PaymentGateway,
        clock: Clock,
        *,
        payment_ttl: float,
        charge_timeout: float,
        settle_after: float,
    ) -> None:
        self._bus = bus
        self._database = database
        self._gateway = gateway
        self._clock = clock
        self._payment_ttl = timedelta(seconds=payment_ttl)
        self._charge_timeout = charge_timeout
        self._settle_after = timedelta(seconds=settle_after)

    async def pay(self, command: PayRide) -> PaymentStatus:
        """Pay a ride that has arrived: by its passenger, or in cash said by its driver.

        PENDING: the gateway has not said yet; the same command again, or the sweep, finds out. REJECTED may be
        tried again. Raises Invalid (method, amount), NotFound, Forbidden, Conflict.
        """
        if not _METHOD.fullmatch(command.method):
            raise Invalid("method is lower case letters, digits and underscores, at most 32")
        async with self._database.begin() as tx:
            ride, payment = await self._payable(tx, command)
            if payment.status == "ACCEPTED":
                return PaymentStatus(payment_id=payment.payment_id, status="ACCEPTED")
            if command.amount != payment.amount:
                raise Invalid(f"amount is {payment.amount} for this ride, not {command.amount}")
            attempt = await payment_store.open_attempt(tx, payment.payment_id)
            asked_before = attempt is not None
            if attempt is None:
                attempt = self._new_attempt(ride, payment, command.method)
                await payment_store.insert_attempt(tx, attempt)
                if command.method == CASH:
                    return await self._finish(tx, attempt, ChargeResult(status="charged"))
        return await (self._ask(attempt) if asked_before else self._charge(attempt))

    async def _payable(self, tx: AsyncConnection, command: PayRide) -> tuple[RideRow, PaymentRow]:
        ride = await store.find(tx, command.ride_id, lock=True)
        if ride is None:
            raise NotFound("there is no such ride")
        payer = ride.driver_id if command.method == CASH else ride.passenger_id
        if command.user_id != payer:
            who = "driver may say that it was paid in cash" if command.method == CASH else "passenger may pay"
            raise Forbidden(f"only the {who}")
        payment = await payment_store.payment_of(tx, ride.ride_id)
        if payment is None:
            raise Conflict(f"the ride is {ride.status}, there is nothing to pay")
        return ride, payment

    def _new_attempt(self, ride: RideRow, payment: PaymentRow, method: str) -> Attempt:
        return Attempt(
            payment_id=payment.payment_id,
            attempt=payment.attempts + 1,
            ride_id=ride.ride_id,
            status="PENDING",
            amount=payment.amount,
            method=method,
            reason=None,
            created_at=self._clock.now(),
            finished_at=None,
        )

    async def _charge(self, attempt: Attempt) -> PaymentStatus:
        try:
            async with asyncio.timeout(self._charge_timeout):
                result = await self._gateway.charge(attempt.key, attempt.amount, attempt.method)
        except (TimeoutError, Unavailable):
            log.warning("payment.no_answer", ride=attempt.ride_id, attempt=attempt.attempt)
            return _status(attempt)
        return await self._settle(attempt, result)

    async def _ask(self, attempt: Attempt) -> PaymentStatus:
        """What became of an open try? PENDING as long as its charge may still be on its way."""
        try:
            async with asyncio.timeout(self._charge_timeout):
                result = await self._gateway.status(attempt.key)
        except (TimeoutError, Unavailable):
            log.warning("payment.no_answer", ride=attempt.ride_id, attempt=attempt.attempt)
            return _status(attempt)
        if result is None and self._clock.now() < attempt.created_at + self._settle_after:
            return _status(attempt)
        return await self._settle(attempt, result or LOST)

    async def _settle(self, attempt: Attempt, result: ChargeResult) -> PaymentStatus:
        async with self._database.begin() as tx:
            # The ride's row first, as in every other transaction: no two of them wait for each other.
            await store.find(tx, attempt.ride_id, lock=True)
            return await self._finish(tx, attempt, result)

    async def _finish(self, tx: AsyncConnection, attempt: Attempt, result: ChargeResult) -> PaymentStatus:
        """Write down how a try ended, once, and say it; a ride that is still ARRIVED is complete when it is paid."""
        now = self._clock.now()
        accepted = result.status == "charged"
        status: PaymentState = "ACCEPTED" if accepted else "REJECTED"
        finished = await payment_store.finish_attempt(tx, attempt, status, result.reason, now)
        if finished is None:
            return _status(await payment_store.attempt_again(tx, attempt))
        if accepted:
            await payment_store.change_payment(
                tx, attempt.payment_id, ["PENDING", "REJECTED", "OVERDUE"], status="ACCEPTED", paid_at=now
            )
        else:  # an overdue payment stays so, or a refused card would lift the bar
            await payment_store.change_payment(tx, attempt.payment_id, ["PENDING", "REJECTED"], status="REJECTED")
        payment = await payment_store.payment_of(tx, attempt.ride_id)
        completed = None
        if accepted:
            completed = await store.change(
                tx, attempt.ride_id, ["ARRIVED"], said=2, status="COMPLETED", completed_at=now
            )
        ride = completed or await store.change(tx, attempt.ride_id, store.ANY, said=1)
        if ride is None or payment is None:
            raise ValueError(f"try {attempt.key} has no ride")
        version = ride.version - 1 if completed else ride.version
        said = events.paid(ride, payment, version, status=status, method=attempt.method, reason=result.reason)
        await self._bus.outbox.add(tx, said)
        if completed is not None:
            await self._bus.outbox.add(tx, events.completed(completed, payment))
        log.info("payment.finished", ride=attempt.ride_id, attempt=attempt.attempt, status=status)
        return _status(finished)

    # -- sweeps

    async def settle_open(self) -> int:
        """Ask what became of tries that are older than ``settle_after``; return how many are known now."""
        before = self._clock.now() - self._settle_after
        async with self._database.read() as connection:
            attempts = await payment_store.open_attempts(connection, before, SWEEP_PAGE)
        done = 0
        for attempt in attempts:
            done += (await self._ask(attempt)).status != "PENDING"
        return done

    async def end_unpaid(self) -> int:
        """Complete the rides that nobody paid in time, their payment OVERDUE; return how many."""
        before = self._clock.now() - self._payment_ttl
        async with self._database.read() as connection:
            unpaid = await store.unpaid_since(connection, before, SWEEP_PAGE)
        done = 0
        for ride_id in unpaid:
            done += await self._end_unpaid(ride_id)
        return done

    async def _end_unpaid(self, ride_id: str) -> bool:
        async with self._database.begin() as tx:
            ride = await store.find(tx, ride_id, lock=True)
            payment = await payment_store.payment_of(tx, ride_id)
            if ride is None or payment is None or ride.status != "ARRIVED":
                return False
            if await payment_store.open_attempt(tx, payment.payment_id) is not None:
                return False
            overdue = await payment_store.change_payment(
                tx, payment.payment_id, ["PENDING", "REJECTED"], status="OVERDUE"
            )
            ended = await store.change(
                tx, ride_id, ["ARRIVED"], said=2, status="COMPLETED", completed_at=self._clock.now()
            )
            if overdue is None or ended is None:
                raise ValueError(f"ride {ride_id} is ARRIVED and paid")
            said = events.paid(ended, overdue, ended.version - 1, status="OVERDUE", method=overdue.method)
            await self._bus.outbox.add(tx, said, events.completed(ended, overdue))
        log.info("payment.overdue", ride=ride_id)
        return True


def _status(attempt: Attempt) -> PaymentStatus:
    return PaymentStatus(payment_id=attempt.payment_id, status=attempt.status, reason=attempt.reason)
