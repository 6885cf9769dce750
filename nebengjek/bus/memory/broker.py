"""The broker in this process: a connection to a server in memory, with JetStream's semantics.

Nothing is written to disk: ``MemoryBroker.durable`` is False. docs/bus.md has the rules, tests/conformance holds both
brokers to them.

Over 300 lines because the port has so many methods.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import datetime
from typing import Any, ClassVar, cast

from nebengjek.bus.checks import check_consumer, check_stream
from nebengjek.bus.deliveries import Batch, Consumption, Delivery, PullStatus
from nebengjek.bus.errors import (
    ApiError,
    Disconnected,
    MaxPayload,
    NoResponders,
    NoStream,
    PublishRefused,
    RequestTimeout,
)
from nebengjek.bus.interface import Account, Broker, ConnectionStatus, CoreHandler, Outcome, Subscription
from nebengjek.bus.memory.consumer import MemoryConsumer
from nebengjek.bus.memory.core import CoreSubscription
from nebengjek.bus.memory.delivery import MemoryDelivery
from nebengjek.bus.memory.pull import MemoryConsumption, PullWaiter
from nebengjek.bus.memory.push import Sink
from nebengjek.bus.memory.server import Attached, MemoryServer
from nebengjek.bus.memory.stream import MemoryStream
from nebengjek.bus.memory.subjects import prefix_of
from nebengjek.bus.messages import MAX_PAYLOAD, CoreMessage, Envelope, Headers, PubAck, StoredMessage, check_headers
from nebengjek.bus.ordered import read_in_order
from nebengjek.bus.pushing import PushSource, open_source
from nebengjek.bus.specs import ConsumerInfo, ConsumerSpec, Deliver, StreamInfo, StreamSpec
from nebengjek.bus.subjects import check_name, check_subject
from nebengjek.bus.wire_delivery import Line, Listener, Message

_NO_HEADERS: dict[str, str] = {}
_PUBLISHER = "_INBOX.publisher"


class MemoryBroker(Broker, Line, Attached):
    """A connection to a ``MemoryServer``. Headers and data of a publish are stored as they are: do not change them.

    A publish that no stream takes raises NoStream at once (a server would be asked again twice).
    """

    durable: ClassVar[bool] = False

    def __init__(self, server: MemoryServer) -> None:
        self.server = server
        self._status = ConnectionStatus.CONNECTING
        self._listeners: list[Callable[[ConnectionStatus], None]] = []
        self._up = asyncio.Event()
        self._subscriptions: set[CoreSubscription] = set()
        self._waiting: set[PullWaiter] = set()
        self._consumptions: set[MemoryConsumption] = set()
        self._sources: set[PushSource] = set()
        self._settling: set[asyncio.Future[None]] = set()
        self._requests: dict[str, asyncio.Future[CoreMessage]] = {}

    # -- connection

    async def connect(self) -> None:
        self.server.attach(self)
        if self.server.running:
            self._become(ConnectionStatus.UP)

    async def close(self) -> None:
        if self._status is ConnectionStatus.CLOSED:
            return
        for source in tuple(self._sources):
            await source.close()
        self.server.detach(self)
        for subscription in list(self._subscriptions):
            await subscription.unsubscribe()
        self._subscriptions.clear()
        self._cut()
        self._become(ConnectionStatus.CLOSED)

    def lost(self) -> None:
        """The connection breaks: what waits on it ends."""
        if self._status is ConnectionStatus.UP:
            self._become(ConnectionStatus.DOWN)
            self._cut()

    def found(self) -> None:
        """The server is there again."""
        self._become(ConnectionStatus.UP)

    def _cut(self) -> None:
        for waiter in list(self._waiting):
            waiter.withdraw(PullStatus.DISCONNECTED)
        for consumption in self._consumptions:
            consumption.lost()
        for source in self._sources:
            source.lost()
        outstanding: list[asyncio.Future[Any]] = [*self._settling, *self._requests.values()]
        for future in outstanding:
            if not future.done():
                future.set_exception(Disconnected("bus"))

    def _become(self, status: ConnectionStatus) -> None:
        if self._status in (status, ConnectionStatus.CLOSED):
            return
        self._status = status
        if status is ConnectionStatus.UP:
            self._up.set()
        else:
            self._up.clear()
        self.server.core.changed()
        for listener in self._listeners:
            listener(status)

    @property
    def status(self) -> ConnectionStatus:
        return self._status

    @property
    def where(self) -> str:
        return "in this process"

    async def wait_connected(self) -> None:
        await self._up.wait()

    def on_status(self, listener: Callable[[ConnectionStatus], None]) -> None:
        self._listeners.append(listener)

    def monotonic(self) -> float:
        return self.server.clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self.server.clock.sleep(seconds)

    def connected(self) -> bool:
        return self._status is ConnectionStatus.UP

    def closed(self) -> bool:
        return self._status is ConnectionStatus.CLOSED

    def _check_up(self) -> MemoryServer:
        if self._status is not ConnectionStatus.UP:
            raise Disconnected("bus")
        return self.server

    def _stream(self, name: str) -> MemoryStream:
        check_name(name)
        return self._check_up().stream(name)

    def _consumer(self, stream: str, name: str) -> MemoryConsumer:
        check_name(stream)
        check_name(name)
        return self._check_up().consumer(stream, name)

    # -- streams

    async def account(self) -> Account:
        quota = self._check_up().quota
        return quota.account() if quota is not None else await super().account()

    async def create_stream(self, spec: StreamSpec) -> StreamInfo:
        spec = check_stream(spec)
        return self._check_up().create_stream(spec).info()

    async def update_stream(self, spec: StreamSpec) -> StreamInfo:
        spec = check_stream(spec)
        return self._check_up().update_stream(spec).info()

    async def stream_info(self, name: str) -> StreamInfo:
        return self._stream(name).info()

    async def streams(self) -> list[StreamInfo]:
        return [stream.info() for stream in self._check_up().streams()]

    async def delete_stream(self, name: str) -> None:
        check_name(name)
        self._check_up().delete_stream(name)

    async def purge_stream(
        self, name: str, *, subject: str | None = None, keep: int | None = None, up_to: int | None = None
    ) -> int:
        return self._stream(name).purge(subject, keep, up_to)

    async def get_message(
        self, stream: str, seq: int | None = None, *, last_by_subject: str | None = None
    ) -> StoredMessage:
        return self._stream(stream).get(seq, last_by_subject)

    async def delete_message(self, stream: str, seq: int) -> None:
        self._stream(stream).delete(seq)

    # -- consumers

    async def create_consumer(self, stream: str, spec: ConsumerSpec) -> ConsumerInfo:
        spec = check_consumer(spec)
        return self._stream(stream).create_consumer(spec).info()

    async def update_consumer(self, stream: str, spec: ConsumerSpec) -> ConsumerInfo:
        spec = check_consumer(spec)
        return self._stream(stream).update_consumer(spec).info()

    async def consumer_info(self, stream: str, name: str) -> ConsumerInfo:
        return self._consumer(stream, name).info()

    async def consumers(self, stream: str) -> list[ConsumerInfo]:
        consumers = self._stream(stream).consumers
        return [consumers[name].info() for name in sorted(consumers)]

    async def delete_consumer(self, stream: str, name: str) -> None:
        check_name(name)
        self._stream(stream).delete_consumer(name)

    async def pause_consumer(self, stream: str, name: str, until: datetime | None) -> None:
        self._stream(stream).pause_consumer(check_name(name), until)

    # -- messages

    def submit_all(self, envelopes: Sequence[Envelope]) -> list[Outcome]:
        if self._status is not ConnectionStatus.UP:
            return [Disconnected("bus") for _ in envelopes]
        server, core = self.server, self.server.core
        outcomes: list[Outcome] = []
        kind: str | None = None
        stream: MemoryStream | None = None
        takers: tuple[MemoryConsumer, ...] = ()
        listened = False
        now = server.clock.time()
        for envelope in envelopes:
            subject, size = envelope.subject, envelope.header_bytes + len(envelope.data)
            if size > MAX_PAYLOAD:
                outcomes.append(MaxPayload(f"{size} bytes are more than {MAX_PAYLOAD}"))
                continue
            prefix = prefix_of(subject)
            if prefix != kind:
                # Who takes one takes the rest of its type: most of what comes together is.
                stream = server.route(subject)
                takers = stream.takers.match(subject) if stream is not None else ()
                listened = core.listened(subject)
                kind = prefix if server.by_prefix(prefix, stream) else None
            if listened:
                core.deliver(subject, envelope.data, envelope.headers, _PUBLISHER)
            if stream is not None:
                try:
                    outcomes.append(stream.publish(envelope, takers, now))
                except PublishRefused as refused:
                    outcomes.append(refused)
            elif listened:
                # Rule P1: with a listener on the subject there is no "no responders", and nobody answers.
                outcomes.append(asyncio.get_running_loop().create_future())
            else:
                outcomes.append(NoStream(f"no stream takes {subject}"))
        return outcomes

    async def ack_all(self, deliveries: Sequence[Delivery]) -> None:
        if self._status is ConnectionStatus.CLOSED:
            raise Disconnected("bus")
        if deliveries:
            first = deliveries[0]
            assert isinstance(first, MemoryDelivery)
            first.of.ack_all(cast(Sequence[MemoryDelivery], deliveries))

    async def settled(self, ack: PubAck) -> None:
        stored = self._check_up().stream(ack.stream).find(ack.seq)
        if stored is None or not stored.claims:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not future.done():
                future.set_result(None)

        if stored.waiters is None:
            stored.waiters = []
        stored.waiters.append(wake)
        self._settling.add(future)
        try:
            await future
        finally:
            self._settling.discard(future)

    async def pull(
        self,
        stream: str,
        consumer: str,
        *,
        batch: int = 1,
        expires: float | None = None,
        no_wait: bool = False,
        max_bytes: int | None = None,
        heartbeat: float | None = None,
        acking: Delivery | None = None,
    ) -> Batch:
        check_name(stream)
        check_name(consumer)
        if heartbeat is not None and (expires is None or heartbeat * 2 > expires):
            raise ValueError("a heartbeat needs an expiry of at least twice its length")
        found = self._check_up().find_consumer(stream, consumer)
        if acking is not None:
            await acking.ack()
        if found is None:
            return Batch([], PullStatus.NO_CONSUMER)
        waiter = PullWaiter(found, max(1, batch), max_bytes, self)
        self._waiting.add(waiter)
        try:
            return await waiter.collect(self.server.clock, expires=expires, no_wait=no_wait, heartbeat=heartbeat)
        finally:
            self._waiting.discard(waiter)

    async def consume(self, stream: str, consumer: str, *, prefetch: int, expires: float = 5.0) -> Consumption:
        check_name(stream)
        check_name(consumer)
        consumption = MemoryConsumption(self, stream, consumer, expires, self._consumptions.discard)
        self._consumptions.add(consumption)
        return consumption

    async def push(self, stream: str, consumer: str) -> Consumption:
        source = await open_source(self, self, check_name(stream), check_name(consumer), self._sources.discard)
        self._sources.add(source)
        return source

    def ordered(
        self,
        stream: str,
        *filters: str,
        since: int | datetime | Deliver = Deliver.ALL,
        headers_only: bool = False,
        until_drained: bool = False,
    ) -> AsyncGenerator[StoredMessage, None]:
        check_name(stream)
        return read_in_order(self, stream, filters, since=since, headers_only=headers_only, until_drained=until_drained)

    async def give_up(self, stream: str, consumer: str, seq: int, reason: str = "") -> None:
        found = self._consumer(stream, consumer)
        if found.next_seq <= seq:
            raise ApiError(10037, f"{seq} was never delivered", status=404)
        found.term(seq, reason, 0, 1)

    # -- core

    def new_inbox(self) -> str:
        return self.server.new_inbox()

    async def attend(self, subject: str, queue: str | None, received: Callable[[Message], None]) -> Listener:
        sink = Sink(self.server.core, subject, queue, received, self.connected)
        self.server.core.add(sink)
        return sink

    async def send(self, subject: str, data: bytes, *, reply: str = "") -> None:
        if self._status is ConnectionStatus.CLOSED:
            raise Disconnected("bus")
        self.server.publish_core(subject, data, _NO_HEADERS, reply or None)

    async def ask(self, subject: str, data: bytes, headers: Headers | None, timeout: float) -> CoreMessage:
        return await self.request(subject, data, headers, timeout=timeout)

    async def core_publish(
        self, subject: str, data: bytes, headers: Headers | None = None, *, reply: str | None = None
    ) -> None:
        _check_message(subject, data, headers)
        self._check_up().publish_core(subject, data, dict(headers or _NO_HEADERS), reply)

    async def subscribe(self, subject: str, handler: CoreHandler, *, queue: str | None = None) -> Subscription:
        check_subject(subject, literal=False)
        subscription = CoreSubscription(self.server.core, subject, handler, queue, self.connected)
        self.server.core.add(subscription)
        self._subscriptions.add(subscription)
        return subscription

    async def request(
        self, subject: str, data: bytes, headers: Headers | None = None, *, timeout: float
    ) -> CoreMessage:
        _check_message(subject, data, headers)
        server = self._check_up()
        inbox = server.new_inbox()
        answer: asyncio.Future[CoreMessage] = asyncio.get_running_loop().create_future()

        def received(message: CoreMessage) -> None:
            if not answer.done():
                answer.set_result(message)

        def expired() -> None:
            if not answer.done():
                answer.set_exception(RequestTimeout("bus", f"no answer on {subject} within {timeout} s"))

        server.core.inboxes[inbox] = received
        self._requests[inbox] = answer
        timer = server.clock.call_at(server.clock.monotonic() + timeout, expired)
        try:
            if not server.publish_core(subject, data, dict(headers or _NO_HEADERS), inbox):
                raise NoResponders("bus", f"nobody serves {subject}")
            return await answer
        finally:
            timer.cancel()
            del server.core.inboxes[inbox]
            del self._requests[inbox]


def _check_message(subject: str, data: bytes, headers: Headers | None) -> None:
    check_subject(subject)
    size = check_headers(headers or _NO_HEADERS) + len(data)
    if size > MAX_PAYLOAD:
        raise MaxPayload(f"{size} bytes are more than {MAX_PAYLOAD}")
