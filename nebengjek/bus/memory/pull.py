"""Those who wait for messages of a memory consumer: one pull request, or the source of a consumer loop."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from nebengjek.bus.deliveries import Batch, Consumption, Delivery, PullStatus
from nebengjek.bus.memory.clock import BrokerClock, Timer
from nebengjek.bus.memory.consumer import MemoryConsumer, Waiter
from nebengjek.bus.memory.delivery import Connection

NO_WAIT_PATIENCE = 2.0
"""Seconds until a pure no-wait pull on a stalled consumer gives up: the server does not answer that one at all."""


class Attached(Connection, Protocol):
    """What a consumer loop's source needs of its broker."""

    @property
    def server(self) -> "Server": ...

    async def wait_connected(self) -> None: ...


class Server(Protocol):
    clock: BrokerClock

    def find_consumer(self, stream: str, name: str) -> MemoryConsumer | None: ...


class PullWaiter(Waiter):
    """One pull request: collects up to ``batch`` messages until it is full, or ends with a status."""

    def __init__(self, consumer: MemoryConsumer, batch: int, max_bytes: int | None, connection: Connection) -> None:
        self._consumer = consumer
        self._batch = batch
        self._bytes_left = max_bytes
        self._connection = connection
        self._messages: list[Delivery] = []
        self._ended: asyncio.Future[PullStatus] = asyncio.get_running_loop().create_future()

    async def collect(
        self, clock: BrokerClock, *, expires: float | None, no_wait: bool, heartbeat: float | None
    ) -> Batch:
        consumer = self._consumer
        timer: Timer | None = None
        spec = consumer.spec
        if consumer.outlet is not None:
            return Batch([], PullStatus.PUSH_BASED)
        if (
            0 < spec.max_batch < self._batch
            or 0 < spec.max_expires < (expires or 0.0)
            or 0 < spec.max_bytes < (self._bytes_left or 0)
        ):
            return Batch([], PullStatus.EXCEEDED)
        if len(consumer.waiting) >= consumer.spec.max_waiting > 0:
            if heartbeat is not None:
                # The server is silent to a pull with a heartbeat: its absence is the answer.
                await clock.sleep(2 * heartbeat)
                return Batch([], PullStatus.SILENT)
            return Batch([], PullStatus.MAX_WAITING)
        while not self._ended.done() and consumer.available() > 0:
            self._take()
        if not self._ended.done():
            stalled = consumer.num_pending > 0 and not consumer.paused
            if no_wait and not stalled and (self._messages or expires is None):
                return Batch(self._messages, PullStatus.NO_MESSAGES)
            if no_wait and expires is None:
                expires = NO_WAIT_PATIENCE
            consumer.waiting.append(self)
            if expires is not None:
                timer = clock.call_at(clock.monotonic() + expires, lambda: self.withdraw(PullStatus.TIMEOUT))
        try:
            status = await self._ended
        except asyncio.CancelledError:
            self.withdraw(PullStatus.TIMEOUT)
            for message in self._messages:
                consumer.nak(message.seq, 0.0)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        return Batch(self._messages, status)

    def _take(self) -> None:
        if self._bytes_left is not None:
            size = self._consumer.peek_size()
            if size > self._bytes_left:
                self.end(PullStatus.MAX_BYTES)
                return
            self._bytes_left -= size
        self._messages += self._consumer.take(1, self._connection)
        if len(self._messages) >= self._batch:
            self.end(PullStatus.COMPLETE)

    def feed(self, consumer: MemoryConsumer) -> None:
        if self._ended.done():
            return
        self._take()
        if not self._ended.done():
            consumer.waiting.append(self)

    def end(self, status: PullStatus) -> None:
        if not self._ended.done():
            self._ended.set_result(status)

    def withdraw(self, status: PullStatus) -> None:
        """Stop waiting."""
        if self in self._consumer.waiting:
            self._consumer.waiting.remove(self)
        self.end(status)


class _Call(Waiter):
    """One ``next`` that waits. The message stays with the consumer until the task runs: cancelling loses nothing."""

    def __init__(self, consumer: MemoryConsumer) -> None:
        self.consumer = consumer
        self.woken = False
        self.future: asyncio.Future[PullStatus | None] = asyncio.get_running_loop().create_future()

    def feed(self, consumer: MemoryConsumer) -> None:
        if not self.future.done():
            self.woken = True
            consumer.woken += 1
            self.future.set_result(None)

    def end(self, status: PullStatus) -> None:
        if not self.future.done():
            self.future.set_result(status)

    def leave(self) -> None:
        """It has come for its message, or will not come."""
        if self.woken:
            self.woken = False
            self.consumer.woken -= 1
        elif self in self.consumer.waiting:
            self.consumer.waiting.remove(self)


class MemoryConsumption(Consumption):
    """Hands messages out straight from the consumer's state: there is nothing to pull ahead, nothing to give back."""

    def __init__(
        self,
        connection: Attached,
        stream: str,
        name: str,
        expires: float,
        closed: Callable[["MemoryConsumption"], None],
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._name = name
        self._expires = expires
        self._on_close = closed
        self._clock = connection.server.clock
        self._consumer: MemoryConsumer | None = None
        self._call: _Call | None = None
        self._lost = False
        self._idle_at = 0.0
        self._timer: Timer | None = None
        self._last_pull = self._clock.monotonic()

    async def next(self, limit: int) -> Batch:
        status: PullStatus | None = None
        while status is None:
            if self._lost or self.is_closed:
                self._lost = False
                return Batch([], PullStatus.DISCONNECTED)
            if not self._connection.connected():
                await self._connection.wait_connected()
                continue
            consumer = self._consumer
            if consumer is None or consumer.deleted:
                self._consumer = self._connection.server.find_consumer(self._stream, self._name)
                if consumer is not None:
                    return Batch([], PullStatus.CONSUMER_DELETED)
                if self._consumer is None:
                    return Batch([], PullStatus.NO_CONSUMER)
                continue
            if consumer.outlet is not None:
                return Batch([], PullStatus.PUSH_BASED)
            messages = consumer.take(self._share(consumer, limit), self._connection)
            if messages:
                self._last_pull = self._clock.monotonic()
                return Batch(messages, PullStatus.COMPLETE)
            status = await self._wait(consumer)
        if status is PullStatus.TIMEOUT:
            self._last_pull = self._clock.monotonic()
        elif status is PullStatus.CONSUMER_DELETED:
            self._consumer = None
        elif status is PullStatus.DISCONNECTED:
            self._lost = False
        return Batch([], status)

    def _share(self, consumer: MemoryConsumer, limit: int) -> int:
        """Leave something to others who wait for the same consumer."""
        others = consumer.woken + len(consumer.waiting)
        if others:
            there = consumer.available() + consumer.woken
            return min(limit, -(-there // (others + 1))) if there > 0 else limit
        return limit

    async def _wait(self, consumer: MemoryConsumer) -> PullStatus | None:
        if len(consumer.waiting) >= consumer.spec.max_waiting > 0:
            return PullStatus.MAX_WAITING
        call = self._call = _Call(consumer)
        consumer.waiting.append(call)
        # What was exhausted meanwhile is found out when somebody waits (rule L9).
        consumer.dispatch()
        self._idle_at = self._clock.monotonic() + self._expires
        if self._timer is None:
            self._timer = self._clock.call_at(self._idle_at, self._check_idle)
        try:
            status = await call.future
        except asyncio.CancelledError:
            call.leave()
            consumer.dispatch()
            raise
        finally:
            self._call = None
        call.leave()
        return status

    def _check_idle(self) -> None:
        """One timer for all calls: it rarely comes to its end, and is not moved for each message."""
        self._timer = None
        if self._call is None:
            return
        if self._clock.monotonic() >= self._idle_at:
            self._call.end(PullStatus.TIMEOUT)
        else:
            self._timer = self._clock.call_at(self._idle_at, self._check_idle)

    def lost(self) -> None:
        """The connection broke: say so once."""
        self._lost = True
        if self._call is not None:
            self._call.end(PullStatus.DISCONNECTED)

    async def close(self) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        self._on_close(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._call is not None:
            self._call.end(PullStatus.DISCONNECTED)

    @property
    def last_pull(self) -> float:
        return self._last_pull
