"""Pulling from a JetStream consumer: one request collected to its end, and the source of a consumer loop."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from nebengjek.bus.deliveries import Batch, Consumption, Delivery, PullStatus
from nebengjek.bus.errors import BusError
from nebengjek.bus.jetstream.link import Link, Waiting
from nebengjek.bus.jetstream.wire import pull_status
from nebengjek.bus.times import nanoseconds
from nebengjek.bus.wire_delivery import Listener, Message, WireDelivery

GRACE = 2.0
"""Seconds that the server may be late with the end of a pull before it is taken as silent."""
NO_WAIT_PATIENCE = 2.0
"""Seconds until a pure no-wait pull on a stalled consumer gives up: the server does not answer that one at all."""


def _request(
    batch: int, *, expires: float | None, no_wait: bool = False, max_bytes: int | None = None, heartbeat: float | None
) -> bytes:
    body: dict[str, Any] = {"batch": batch}
    if expires is not None:
        body["expires"] = nanoseconds(expires)
    if no_wait:
        body["no_wait"] = True
    if max_bytes is not None:
        body["max_bytes"] = max_bytes
    if heartbeat is not None:
        body["idle_heartbeat"] = nanoseconds(heartbeat)
    return msgspec.json.encode(body)


class Pull(Waiting):
    """One pull request on an inbox of its own: when nobody listens there, the server gives the message to another."""

    def __init__(self, link: Link, subject: str, batch: int, acked: bytes) -> None:
        self.subject = subject
        self._acked = acked
        self._link = link
        self._batch = batch
        self._messages: list[Delivery] = []
        self._over = False
        self._heard = 0.0
        self._ended: asyncio.Future[PullStatus] = asyncio.get_running_loop().create_future()

    async def collect(
        self,
        *,
        expires: float | None,
        no_wait: bool,
        max_bytes: int | None,
        heartbeat: float | None,
    ) -> Batch:
        inbox = self._link.new_inbox()
        listener = await self._link.listen(inbox, self._received)
        self._link.waits(self)
        try:
            body = _request(self._batch, expires=expires, no_wait=no_wait, max_bytes=max_bytes, heartbeat=heartbeat)
            await self._link.send(self.subject, self._acked + body, reply=inbox)
            status = await self._end(expires, no_wait, heartbeat)
        except BaseException:
            self._over = True
            for message in self._messages:
                self._link.in_background(message.nak())
            self._link.in_background(listener.drain())
            raise
        finally:
            self._link.waits_no_more(self)
        self._over = True
        # What the server sent meanwhile is received and given back: it must not lie here until its ack wait is over.
        self._link.in_background(listener.drain())
        return Batch(self._messages, status)

    async def _end(self, expires: float | None, no_wait: bool, heartbeat: float | None) -> PullStatus:
        loop = asyncio.get_running_loop()
        if no_wait and expires is None:
            last = loop.time() + NO_WAIT_PATIENCE
        else:
            last = loop.time() + expires + GRACE if expires is not None else float("inf")
        self._heard = loop.time()
        while True:
            until = last if heartbeat is None else min(last, self._heard + 2 * heartbeat)
            left = until - loop.time() if until != float("inf") else None
            done, _ = await asyncio.wait((self._ended,), timeout=left)
            if done:
                return self._ended.result()
            if loop.time() >= last:
                return PullStatus.TIMEOUT
            if heartbeat is not None and loop.time() >= self._heard + 2 * heartbeat:
                return PullStatus.SILENT

    async def _received(self, message: Message) -> None:
        self._heard = asyncio.get_running_loop().time()
        if message.reply:
            delivery = WireDelivery(self._link, message)
            if self._over:
                await delivery.nak()
                return
            self._messages.append(delivery)
            if len(self._messages) >= self._batch:
                self._finish(PullStatus.COMPLETE)
        elif (status := pull_status(message.headers or {})) is not None:
            self._finish(status)

    def lost(self) -> None:
        self._finish(PullStatus.DISCONNECTED)

    def _finish(self, status: PullStatus) -> None:
        if not self._ended.done():
            self._ended.set_result(status)

    def fail(self, error: BusError) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)


class JetStreamConsumption(Consumption, Waiting):
    """Pulls ahead: asks for more when half of what it may hold is free, hands out what is here."""

    def __init__(
        self,
        link: Link,
        subject: str,
        prefetch: int,
        expires: float,
        closed: Callable[["JetStreamConsumption"], None],
    ) -> None:
        self._link = link
        self.subject = subject
        self._prefetch = prefetch
        self._expires = expires
        self._heartbeat = expires / 3
        self._on_close = closed
        self._inbox = link.new_inbox()
        self._listener: Listener | None = None
        self._loop = asyncio.get_running_loop()
        self._buffer: deque[WireDelivery] = deque()
        self._pulls: dict[str, int] = {}
        """Requests under way, by the last token of their reply subject: how many messages each asked for."""
        self._requested = 0
        """Messages that they may still bring, together."""
        self._number = 0
        self._status: PullStatus | None = None
        self._failure: BusError | None = None
        self._wake: asyncio.Future[None] | None = None
        self._heard = self._loop.time()
        self._held = 0
        self._watch: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        self._listener = await self._link.listen(f"{self._inbox}.*", self._received)
        self._link.waits(self)
        self._watch = self._loop.call_later(self._heartbeat, self._look)

    async def next(self, limit: int) -> Batch:
        while True:
            count = min(limit, len(self._buffer))
            if self._link.connected() and not self.is_closed:
                await self._refill(len(self._buffer) - count)
            if count:
                return Batch([self._buffer.popleft() for _ in range(count)], PullStatus.COMPLETE)
            if self._buffer:
                continue
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            if self._status is not None or self.is_closed:
                status, self._status = self._status or PullStatus.DISCONNECTED, None
                return Batch([], status)
            if not self._link.connected():
                await self._link.wait_connected()
                continue
            self._wake = self._loop.create_future()
            await self._wake

    async def _refill(self, held: int) -> None:
        if self._status is not None or held + self._requested > self._prefetch // 2:
            return
        batch = self._prefetch - held - self._requested
        self._number += 1
        token = str(self._number)
        if not self._pulls:
            self._heard = self._loop.time()
        self._pulls[token] = batch
        self._requested += batch
        body = _request(batch, expires=self._expires, heartbeat=self._heartbeat)
        await self._link.send(self.subject, body, reply=f"{self._inbox}.{token}")

    async def _received(self, message: Message) -> None:
        self._heard = self._loop.time()
        if message.reply:
            delivery = WireDelivery(self._link, message)
            if self.is_closed:
                await delivery.nak()
                return
            self._buffer.append(delivery)
            self._came()
        else:
            status = self._pull_ended(message)
            if status is None:
                return
            self._status = status
        self._rouse()

    def _came(self) -> None:
        self._requested -= 1
        if self._requested <= 0:
            self._none_under_way()

    def _pull_ended(self, message: Message) -> PullStatus | None:
        """What ``next`` should say about it; None for a heartbeat, or when nobody needs to know."""
        headers = message.headers or {}
        status = pull_status(headers)
        if status is None:
            return None
        # A status arrives on the reply subject of its pull; messages come under their own, from any of the pulls.
        asked = self._pulls.pop(message.subject.rpartition(".")[2], 0)
        self._requested -= int(headers.get("Nats-Pending-Messages", asked))
        if not self._pulls or self._requested <= 0:
            self._none_under_way()
        if status is PullStatus.TIMEOUT and (self._buffer or self._pulls):
            self._rouse()
            return None
        return status

    def _none_under_way(self) -> None:
        self._pulls.clear()
        self._requested = 0

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _look(self) -> None:
        """Each heartbeat: is the server silent, and does something lie here so long that its ack wait may end?"""
        self._watch = self._loop.call_later(self._heartbeat, self._look)
        if self._pulls and self._loop.time() - self._heard > 2 * self._heartbeat:
            self._forget_pulls(PullStatus.SILENT)
        if self._buffer and self._held == self._buffer[0].consumer_seq and self._link.connected():
            self._link.in_background(self._keep())
        self._held = self._buffer[0].consumer_seq if self._buffer else 0

    async def _keep(self) -> None:
        for delivery in tuple(self._buffer):
            if not delivery.is_settled and self._link.connected():
                await delivery.in_progress()

    def _forget_pulls(self, status: PullStatus) -> None:
        self._none_under_way()
        self._status = status
        self._rouse()

    def lost(self) -> None:
        self._forget_pulls(PullStatus.DISCONNECTED)

    def fail(self, error: BusError) -> None:
        self._none_under_way()
        self._failure = error
        self._rouse()

    async def close(self) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        self._on_close(self)
        self._link.waits_no_more(self)
        if self._watch is not None:
            self._watch.cancel()
        self._rouse()
        try:
            while self._buffer:
                await self._buffer.popleft().nak()
        finally:
            if self._listener is not None:
                await self._listener.drain()

    @property
    def last_pull(self) -> float:
        return self._heard
