"""The transactional outbox: an event is published after its transaction commits, and never without it.

A row is written in the caller's transaction. One pod at a time relays (a lease row, 5 s, renewed); it reads what
is *there* by id, never "after the last id", because transactions commit out of order. Entities (subjects' last
tokens) go in parallel, rows of one entity in order. A row goes when its event is safe: on JetStream after the
PubAck, in a process of its own when every consumer has settled it, so that a kill in between delivers it again.
A relay that pauses past its lease can only publish the same ids again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import groupby
from typing import Any

import msgspec
import structlog
from sqlalchemy import Row, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.bus.codec import Codec, Envelope
from nebengjek.bus.interface import Broker, ConnectionStatus, PubAck
from nebengjek.bus.tables import outbox, outbox_lease
from nebengjek.clock import Clock
from nebengjek.contracts.message import Event
from nebengjek.errors import NebengJekError
from nebengjek.sql import insert_ignore

Begin = Callable[[], AbstractAsyncContextManager[AsyncConnection]]
Send = Callable[[Envelope], Awaitable[PubAck]]

LEASE_SECONDS = 5.0
POLL_SECONDS = 1.0
PAGE = 256
WAKE = "outbox.wake"

log = structlog.stdlib.get_logger("nebengjek.bus.outbox")


class Outbox:
    """``add`` inside a transaction; ``run`` relays until it is cancelled."""

    def __init__(self, broker: Broker, codec: Codec, send: Send, begin: Begin, *, pod_id: str, clock: Clock) -> None:
        self._broker = broker
        self._codec = codec
        self._send = send
        self._begin = begin
        self._pod_id = pod_id
        self._clock = clock
        self._adding: set[int] = set()
        self._rung = asyncio.Event()
        self._inflight: set[int] = set()
        self._done: list[int] = []
        self._waiters: set[asyncio.Task[None]] = set()
        self._lease_until = 0.0
        self.backlog = 0
        """Rows that the last look found, published or not."""

    async def add(self, tx: AsyncConnection, *events: Event) -> None:
        """Say ``events`` when ``tx`` commits."""
        if not events:
            return
        now = self._clock.seconds()
        rows = []
        for event in events:
            envelope = self._codec.envelope(event)
            headers = msgspec.json.encode(envelope.headers).decode()
            rows.append({"subject": envelope.subject, "headers": headers, "data": envelope.data, "created_at": now})
        await tx.execute(insert(outbox), rows)
        self._adding.add(id(tx.sync_connection))

    def committed(self, tx: AsyncConnection) -> None:
        """Told by the database after each commit: rings the relay when the transaction said something."""
        key = id(tx.sync_connection)
        if key in self._adding:
            self._adding.discard(key)
            self.ring()

    def ring(self) -> None:
        """There is something to relay."""
        self._rung.set()

    async def run(self) -> None:
        """Relay for ever; a failure is logged and the next round comes."""
        async with self._begin() as tx:
            await insert_ignore(tx, outbox_lease, {"id": 1, "holder": "", "until": 0.0})
        self.ring()
        while True:
            try:
                async with asyncio.timeout(POLL_SECONDS):
                    await self._rung.wait()
            except TimeoutError:
                pass
            self._rung.clear()
            try:
                await self._round()
            except NebengJekError as error:
                log.warning("outbox.paused", error=str(error))
                await asyncio.sleep(POLL_SECONDS)

    async def drain(self, timeout: float) -> int:
        """Relay until nothing is left or the time is over; return how many rows are left (they stay in the table)."""
        # The relay was cancelled: what it had under way is published again, with the same ids.
        self._inflight.clear()
        try:
            async with asyncio.timeout(timeout):
                while await self.size():
                    await self._round()
                    if self._waiters:
                        await asyncio.wait(self._waiters, return_when=asyncio.FIRST_COMPLETED)
        except (TimeoutError, NebengJekError):
            pass
        for waiter in self._waiters:
            waiter.cancel()
        await asyncio.gather(*self._waiters, return_exceptions=True)
        try:
            return await self.size()
        except NebengJekError:
            return -1

    async def size(self) -> int:
        """Rows that are not marked yet."""
        async with self._begin() as tx:
            await self._forget(tx)
            return int((await tx.execute(select(func.count()).select_from(outbox))).scalar_one())

    async def _round(self) -> None:
        if self._broker.status is not ConnectionStatus.UP:
            return
        while True:
            async with self._begin() as tx:
                if not await self._lease(tx):
                    await self._broker.core_publish(WAKE, b"")
                    return
                await self._forget(tx)
                limit = PAGE + len(self._inflight)
                rows = (await tx.execute(select(outbox).order_by(outbox.c.id).limit(limit))).all()
            self.backlog = len(rows)
            fresh = [row for row in rows if row.id not in self._inflight]
            if not fresh:
                return
            self._inflight.update(row.id for row in fresh)
            by_entity = sorted(fresh, key=lambda row: (_entity(row), row.id))
            await asyncio.gather(*(self._relay(list(rows)) for _, rows in groupby(by_entity, key=_entity)))

    async def _relay(self, rows: Sequence[Row[Any]]) -> None:
        """The rows of one entity, in order; after one that fails the rest waits for the next round."""
        for index, row in enumerate(rows):
            envelope = Envelope(row.subject, bytes(row.data), msgspec.json.decode(row.headers))
            try:
                ack = await self._send(envelope)
            except NebengJekError as error:
                log.warning("outbox.not_published", subject=row.subject, error=str(error))
                self._inflight.difference_update(later.id for later in rows[index:])
                return
            if self._broker.durable:
                self._done.append(row.id)
                self.ring()
            else:
                waiter = asyncio.create_task(self._wait_settled(row.id, ack))
                self._waiters.add(waiter)
                waiter.add_done_callback(self._waiters.discard)

    async def _wait_settled(self, row_id: int, ack: PubAck) -> None:
        await self._broker.settled(ack)
        self._done.append(row_id)
        self.ring()

    async def _forget(self, tx: AsyncConnection) -> None:
        done, self._done = self._done, []
        if not done:
            return
        try:
            await tx.execute(delete(outbox).where(outbox.c.id.in_(done)))
        except BaseException:
            self._done.extend(done)
            raise
        self._inflight.difference_update(done)

    async def _lease(self, tx: AsyncConnection) -> bool:
        now = self._clock.seconds()
        if now < self._lease_until - LEASE_SECONDS / 2:
            return True
        free = or_(outbox_lease.c.holder == self._pod_id, outbox_lease.c.until < now)
        taken = await tx.execute(
            update(outbox_lease).where(free).values(holder=self._pod_id, until=now + LEASE_SECONDS)
        )
        self._lease_until = now + LEASE_SECONDS if taken.rowcount else 0.0
        return taken.rowcount == 1


def _entity(row: Row[Any]) -> str:
    return str(row.subject).rpartition(".")[2]
