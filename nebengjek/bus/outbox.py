"""The transactional outbox: an event is published after its transaction commits, and never without it.

A row is written in the caller's transaction. One pod at a time relays a module's rows (a lease row, 5 s, renewed), and
it is one that runs the module, because another may not be permitted to say its events. It reads what is *there* by
id, never "after the last id", because transactions commit out of order. Entities (subjects' last tokens) go in
parallel, rows of one entity in order. A row goes when its event is safe: on JetStream after the PubAck, in a process
of its own when every consumer has settled it, so that a kill in between delivers it again. A relay that pauses past
its lease can only publish the same ids again. An entity whose event is refused waits ``HOLD_SECONDS`` and holds up
nobody else. Whoever ends lets go of the lease; in a process of its own the lease of another holder is that of a dead
one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import groupby
from typing import Any

import msgspec
import structlog
from sqlalchemy import Row, Select, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.bus.codec import Codec
from nebengjek.bus.errors import MaxPayload, NotPermitted
from nebengjek.bus.interface import Broker, ConnectionStatus
from nebengjek.bus.messages import MAX_PAYLOAD, Envelope, PubAck
from nebengjek.bus.tables import outbox, outbox_lease
from nebengjek.bus.tracing import Trace
from nebengjek.clock import Clock
from nebengjek.contracts.message import Event, type_of
from nebengjek.errors import NebengJekError
from nebengjek.sql import insert_ignore

Begin = Callable[[], AbstractAsyncContextManager[AsyncConnection]]
Send = Callable[[Envelope], Awaitable[PubAck]]

LEASE_SECONDS = 5.0
POLL_SECONDS = 1.0
HOLD_SECONDS = 1.0
FORGET_SECONDS = 0.05
"""In a process of its own: how long a row that is done may wait for others, to go in one transaction with them."""
PAGE = 256
WAKE = "outbox.wake"

log = structlog.stdlib.get_logger("nebengjek.bus.outbox")

_INSERT = insert(outbox)
_THERE = select(outbox).order_by(outbox.c.id).limit(bindparam("rows"))
_FORGET = delete(outbox).where(outbox.c.id.in_(bindparam("done")))


class Outbox:
    """``add`` inside a transaction; ``run`` relays until it is cancelled."""

    def __init__(
        self,
        broker: Broker,
        codec: Codec,
        send: Send,
        begin: Begin,
        trace_of: Callable[[Event], Trace | None],
        *,
        pod_id: str,
        clock: Clock,
    ) -> None:
        self._broker = broker
        self._codec = codec
        self._send = send
        self._begin = begin
        self._trace_of = trace_of
        self._pod_id = pod_id
        self._clock = clock
        self._said_by: dict[str, str] = {}
        """The module of each event type that somebody declared."""
        self._mine = {""}
        """Modules of this pod; ``""`` stands for whoever did not declare what it says."""
        self._leases: frozenset[str] = frozenset()
        self._adding: set[int] = set()
        self._rung = asyncio.Event()
        self._news = False
        """We have said something that whoever holds the lease may not know of."""
        self._inflight: set[int] = set()
        self._done: list[int] = []
        self._forgetting: asyncio.TimerHandle | None = None
        self._waiters: set[asyncio.Task[None]] = set()
        self._held: dict[str, float] = {}
        """Entities whose event was refused, and until when (by the broker's clock) they wait."""
        self._lease_until = 0.0
        self._waiting_rows = 0
        self._limit = PAGE
        self.backlog = 0
        """Rows that the last look found, published or not."""

    def says(self, module: str, types: Iterable[str], *, running: bool) -> None:
        """``module`` says these; with ``running`` this pod relays them. Raises ValueError: another module does."""
        for name in types:
            if self._said_by.setdefault(name, module) != module:
                raise ValueError(f"{name} is said by {self._said_by[name]} and {module}")
            if running:
                self._mine.add(module)

    async def add(self, tx: AsyncConnection, *events: Event, because: Event | None = None) -> None:
        """Say ``events`` when ``tx`` commits.

        ``because``: the event of the running batch that caused them (its trace goes on). Raises InvalidSubject,
        InvalidHeader, MaxPayload, and NotPermitted for an event of a module that this pod does not run.
        """
        if not events:
            return
        now = self._clock.seconds()
        trace = self._trace_of(because) if because is not None else None
        rows = []
        for event in events:
            module = self._said_by.get(type_of(event), "")
            if module not in self._mine:
                raise NotPermitted(f"{type_of(event)} is {module}'s to say, which this pod does not run")
            envelope = self._codec.envelope(event, trace)
            if envelope.header_bytes + len(envelope.data) > MAX_PAYLOAD:
                raise MaxPayload(f"{type_of(event)} has more than {MAX_PAYLOAD} bytes")
            headers = msgspec.json.encode(envelope.headers).decode()
            rows.append(
                {
                    "subject": envelope.subject,
                    "headers": headers,
                    "data": envelope.data,
                    "created_at": now,
                    "module": module,
                }
            )
        # One by itself takes a shorter way through SQLAlchemy than a list of one.
        await tx.execute(_INSERT, rows if len(rows) > 1 else rows[0])
        self._adding.add(id(tx.sync_connection))

    def committed(self, tx: AsyncConnection) -> None:
        """Told by the database after each commit: rings the relay when the transaction said something."""
        key = id(tx.sync_connection)
        if key in self._adding:
            self._adding.discard(key)
            self.ring()

    def ring(self) -> None:
        """This process has something to relay."""
        self._news = True
        self._rung.set()

    def woken(self) -> None:
        """Another process has something to relay: ours to do if the lease is."""
        self._rung.set()

    async def run(self) -> None:
        """Relay for ever; a failure is logged and the next round comes."""
        prepared = False
        while True:
            try:
                if not prepared:
                    await self._prepare()
                    prepared = True
                await self._round()
            except (NebengJekError, SQLAlchemyError) as error:
                log.warning("outbox.paused", error=str(error))
                await asyncio.sleep(POLL_SECONDS)
                continue
            try:
                async with asyncio.timeout(POLL_SECONDS):
                    await self._rung.wait()
            except TimeoutError:
                pass
            self._rung.clear()

    async def _prepare(self) -> None:
        async with self._begin() as tx:
            for module in sorted(self._mine):
                await insert_ignore(tx, outbox_lease, {"module": module, "holder": "", "until": 0.0})
            if not self._broker.durable:
                await tx.execute(update(outbox_lease).values(holder=self._pod_id, until=0.0))

    async def drain(self, timeout: float) -> int:
        """Relay until nothing is left or the time is over, and let go of the lease.

        Returns how many rows are left (they stay in the table); -1 when the database does not say.
        """
        # The relay was cancelled: what it had under way is published again, with the same ids.
        self._inflight.clear()
        if timeout > 0:
            try:
                async with asyncio.timeout(timeout):
                    while await self.size():
                        if not await self._round():
                            break
            except (TimeoutError, NebengJekError, SQLAlchemyError) as error:
                log.warning("outbox.not_drained", error=str(error))
        for waiter in self._waiters:
            waiter.cancel()
        await asyncio.gather(*self._waiters, return_exceptions=True)
        try:
            left = await self.size()
            async with self._begin() as tx:
                await tx.execute(update(outbox_lease).where(outbox_lease.c.holder == self._pod_id).values(until=0.0))
        except (NebengJekError, SQLAlchemyError) as error:
            log.warning("outbox.not_counted", error=str(error))
            return -1
        return left

    async def size(self) -> int:
        """Rows that this pod may relay and are not marked yet."""
        async with self._begin() as tx:
            await self._forget(tx)
            counted = self._of(select(func.count()).select_from(outbox), self._mine)
            return int((await tx.execute(counted)).scalar_one())

    def _of(self, rows: Select[Any], modules: Collection[str]) -> Select[Any]:
        """Those of ``modules``. All of them: also the rows of one that there is no more."""
        if {"", *self._said_by.values()} <= {*modules}:
            return rows
        return rows.where(outbox.c.module.in_(sorted(modules)))

    async def _round(self) -> bool:
        """Relay what is there; False when that is not ours to do now, or nothing of it could be published."""
        if self._broker.status is not ConnectionStatus.UP:
            return False
        relayed = False
        while True:
            async with self._begin() as tx:
                leases = await self._lease(tx)
                rows = await self._there(tx, leases) if leases else ()
            if not self._mine <= leases:
                await self._tell_leader()
            if not leases:
                return False
            self._news = False
            self.backlog = len(rows)
            fresh = self._not_held([row for row in rows if row.id not in self._inflight])
            if not fresh:
                return relayed
            self._inflight.update(row.id for row in fresh)
            by_entity = sorted(fresh, key=lambda row: (_entity(row), row.id))
            sent = await asyncio.gather(*(self._relay(list(rows)) for _, rows in groupby(by_entity, key=_entity)))
            relayed = any(sent) or relayed
            if len(rows) < self._limit:
                # That was all; who says something meanwhile rings.
                return relayed

    async def _there(self, tx: AsyncConnection, leases: Collection[str]) -> Sequence[Row[Any]]:
        await self._forget(tx)
        self._limit = PAGE + len(self._inflight) + self._waiting_rows
        found: Sequence[Row[Any]] = (await tx.execute(self._of(_THERE, leases), {"rows": self._limit})).all()
        return found

    async def _tell_leader(self) -> None:
        # Only what we have said ourselves: a word about each word heard would go round for ever.
        if self._news:
            self._news = False
            await self._broker.core_publish(WAKE, b"")

    def _not_held(self, rows: Sequence[Row[Any]]) -> list[Row[Any]]:
        now = self._broker.monotonic()
        self._held = {entity: until for entity, until in self._held.items() if until > now}
        fresh = [row for row in rows if _entity(row) not in self._held] if self._held else list(rows)
        self._waiting_rows = len(rows) - len(fresh)
        return fresh

    async def _relay(self, rows: Sequence[Row[Any]]) -> bool:
        """The rows of one entity, in order; after one that fails the rest waits. False: the first one failed."""
        for index, row in enumerate(rows):
            try:
                envelope = Envelope.of(row.subject, bytes(row.data), msgspec.json.decode(row.headers))
                ack = await self._send(envelope)
            except NebengJekError as error:
                log.warning("outbox.not_published", subject=row.subject, error=str(error))
                self._inflight.difference_update(later.id for later in rows[index:])
                self._held[_entity(row)] = self._broker.monotonic() + HOLD_SECONDS
                return index > 0
            if self._broker.durable:
                self._mark(row.id)
            else:
                waiter = asyncio.create_task(self._wait_settled(row.id, ack))
                self._waiters.add(waiter)
                waiter.add_done_callback(self._waiters.discard)
        return True

    async def _wait_settled(self, row_id: int, ack: PubAck) -> None:
        try:
            await self._broker.settled(ack)
        except NebengJekError as error:
            # The connection or the stream is gone: said again with the same id, it finds out how far it was.
            log.info("outbox.not_settled", row=row_id, error=str(error))
            self._inflight.discard(row_id)
            self._rung.set()
        else:
            self._mark(row_id)

    def _mark(self, row_id: int) -> None:
        self._done.append(row_id)
        if self._broker.durable:
            self._rung.set()
        elif self._forgetting is None:
            self._forgetting = asyncio.get_running_loop().call_later(FORGET_SECONDS, self._rung.set)

    async def _forget(self, tx: AsyncConnection) -> None:
        done, self._done = self._done, []
        if not done:
            return
        if self._forgetting is not None:
            self._forgetting.cancel()
            self._forgetting = None
        try:
            await tx.execute(_FORGET, {"done": done})
        except BaseException:
            self._done.extend(done)
            raise
        self._inflight.difference_update(done)

    async def _lease(self, tx: AsyncConnection) -> frozenset[str]:
        """The modules whose rows are ours to relay now."""
        now = self._clock.seconds()
        # What ends too far ahead was taken before a clock went back: to wait for it would be to be deaf for as long.
        left = self._lease_until - now
        if LEASE_SECONDS / 2 < left <= LEASE_SECONDS and self._mine <= self._leases:
            return self._leases
        until = outbox_lease.c.until
        free = or_(outbox_lease.c.holder == self._pod_id, until < now, until > now + 2 * LEASE_SECONDS)
        mine = outbox_lease.c.module.in_(sorted(self._mine))
        taken = await tx.execute(
            update(outbox_lease)
            .where(free, mine)
            .values(holder=self._pod_id, until=now + LEASE_SECONDS)
            .returning(outbox_lease.c.module)
        )
        self._leases = frozenset(taken.scalars())
        self._lease_until = now + LEASE_SECONDS if self._leases else 0.0
        return self._leases


def _entity(row: Row[Any]) -> str:
    return str(row.subject).rpartition(".")[2]
