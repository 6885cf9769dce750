"""``MessageBus``: what modules talk through. Everything a policy decides is here and in the files beside it, once.

Start: connect, ensure the streams and *all* modules' consumers, then listen. With the server away start returns
at once and the loops attach behind; until then a publish waits. Drain: stop pulling, let handlers end, flush.

Over 300 lines because the bus is one promise: publish, request, start, drain and health share one state.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from datetime import datetime
from typing import Any, TypeVar

import structlog
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.bus import last_tries
from nebengjek.bus.breaker import Breaker, BreakerState
from nebengjek.bus.capacity import ensure_streams
from nebengjek.bus.codec import EVENT_TYPE, ONLY_FOR, Codec, Received, Undecodable
from nebengjek.bus.dead_letters import STREAM as DEAD_LETTERS
from nebengjek.bus.dead_letters import DeadLetters
from nebengjek.bus.direct import Direct
from nebengjek.bus.errors import ApiError, BusError, Disconnected, NoStream, NotPermitted, PublishTimeout
from nebengjek.bus.gathering import Gatherer
from nebengjek.bus.handling import Answering, Hearing, Listening, Watching, contained
from nebengjek.bus.inbox import Inbox
from nebengjek.bus.interface import Broker, Connection, ConnectionStatus, Outcome, Subscription
from nebengjek.bus.last_tries import LastTries
from nebengjek.bus.messages import CoreMessage, Envelope, PubAck, header_text
from nebengjek.bus.observing import Observer, Silent, Spans
from nebengjek.bus.outbox import WAKE, Outbox
from nebengjek.bus.payloads import Payloads
from nebengjek.bus.runner import PULL_EXPIRES, Causes, Runner
from nebengjek.bus.specs import ConsumerSpec, Deliver, Retention, StreamInfo, StreamSpec
from nebengjek.bus.subjects import subject_matches
from nebengjek.bus.tracing import CORRELATION_ID, TRACEPARENT, current, enter, from_headers, leave, new_trace
from nebengjek.clock import Clock
from nebengjek.contracts.message import Event, Query, answer_type, rpc_subject, type_of, uuid7
from nebengjek.errors import Invalid, Misconfigured, NebengJekError, Rejected, Unavailable, describe, restore

A = TypeVar("A")
T = TypeVar("T")
E = TypeVar("E", bound=Event)
OnAck = Callable[[Envelope, PubAck | NebengJekError], None]

ERROR_KIND, ERROR_CODE, ERROR_TEXT = "Error-Kind", "Error-Code", "Error-Text"
RETRY_DELAYS = (1.0, 5.0, 15.0, 30.0)
PUBLISH_TIMEOUT = 5.0
PUBLISH_TRIES = 5

log = structlog.stdlib.get_logger("nebengjek.bus")


class RemoteError(BusError):
    """A query's handler failed in a way that is in no branch of the error tree.

    ``code``: INTERNAL, or UNDECODABLE when it answered something else than was asked for.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ConsumerHealth(Struct, frozen=True, kw_only=True):
    """``moving``: attached, its last pull younger than three times a pull's expiry, no breaker open.

    ``event``: the type that it hears. ``lagging``: more is waiting than ``MessageBus`` was told to worry about.
    """

    stream: str
    consumer: str
    event: str = ""
    lag: int
    ack_pending: int
    redelivered: int
    last_pull_age: float
    running: int
    blocked_by: str | None
    moving: bool
    lagging: bool = False
    paused_until: datetime | None = None


class StreamHealth(Struct, frozen=True, kw_only=True):
    """How full a stream of ours is; bytes, ``max_bytes`` -1 = no limit."""

    stream: str
    storage: str
    messages: int
    bytes: int
    max_bytes: int
    consumers: int


class Health(Struct, frozen=True, kw_only=True):
    status: ConnectionStatus
    where: str
    connection: Connection
    established: bool
    consumers: list[ConsumerHealth]
    breakers: dict[str, str]
    outbox_backlog: int
    dead_letters: int
    orphans: list[str]
    """``stream/consumer`` of durables that no module wants: on an interest stream they keep every message."""
    streams: list[StreamHealth] = []
    refusal: str | None = None
    """What the server would not let us make at the start; said until somebody mends it."""

    @property
    def problem(self) -> str | None:
        """Why the bus does not work, for people."""
        if self.established and self.status is ConnectionStatus.UP:
            return None
        if self.status is ConnectionStatus.UP:
            return self.refusal or "streams and consumers are not made yet"
        why = f": {self.connection.error}" if self.connection.error else ""
        return f"{self.status.value} for {self.connection.since:.0f} s{why}"

    @property
    def ready(self) -> bool:
        return (
            self.status is ConnectionStatus.UP
            and self.established
            and all(consumer.moving for consumer in self.consumers)
        )


class DrainReport(Struct, frozen=True, kw_only=True):
    """``finished``: handlers that ran at the beginning and came to their end; ``abandoned``: those that did not."""

    finished: int
    abandoned: int
    unpublished: int


class MessageBus:
    """Hand it the broker and the streams, ``wire`` the modules, then ``start``.

    ``begin``: opens a write transaction (for the outbox and the embedded dead letters). ``lag_alarm``: messages not
    delivered yet above which health calls a consumer lagging, 0 = never.
    """

    def __init__(
        self,
        broker: Broker,
        streams: Sequence[StreamSpec],
        begin: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
        *,
        pod_id: str,
        clock: Clock,
        observer: Observer | None = None,
        spans: Spans | None = None,
        retry_delays: Sequence[float] = RETRY_DELAYS,
        window: int = 1024,
        lag_alarm: int = 0,
        audit: bool = False,
        payloads: Payloads | None = None,
    ) -> None:
        self.broker = broker
        self.pod_id = pod_id
        self._streams = {spec.name: spec for spec in streams}
        self._observer: Observer = observer or Silent()
        self._spans = spans
        payloads = payloads or Payloads()
        self._codec = Codec(pod_id, clock, payloads)
        self.direct = Direct(broker, payloads, self._wait_established, pod_id=pod_id)
        self._listens: list[Listening] = []
        self._retry_delays = retry_delays
        self._window = window
        self._lag_alarm = lag_alarm
        self._audit = audit
        self._established = asyncio.Event()
        self._refusal: str | None = None
        self._runners: list[Runner] = []
        self._wanted: dict[tuple[str, str], ConsumerSpec] = {}
        self._by_module: dict[str, list[tuple[str, str]]] = {}
        self._watches: list[Watching] = []
        self._answers: list[tuple[str, Answering]] = []
        self._subscriptions: list[Subscription] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._background: list[asyncio.Task[Any]] = []
        self._outstanding = 0
        self._landed = asyncio.Event()
        self._gatherers: list[Gatherer[Any]] = []
        self._soon: list[tuple[Envelope, OnAck | None]] = []
        self._breakers: dict[str, Breaker] = {}
        self._causes = Causes()
        self._ensuring = asyncio.Lock()
        self._draining = False
        self.outbox = Outbox(broker, self._codec, self._send, begin, self._causes.trace, pod_id=pod_id, clock=clock)
        self.inbox = Inbox(clock)
        self.dead_letters = DeadLetters(broker, self._send, begin, self._observer, clock)
        self._last_tries: list[LastTries] = []

    # -- wiring

    def keep(self, streams: Sequence[StreamSpec]) -> None:
        """Before the modules are wired: there are these streams too. Raises ValueError for a name that is taken."""
        for spec in streams:
            if self._streams.setdefault(spec.name, spec) != spec:
                raise ValueError(f"two streams would be called {spec.name}")

    def wire(
        self,
        module: str,
        hears: Sequence[Hearing],
        watches: Sequence[Watching],
        answers: Sequence[Answering],
        *,
        says: Sequence[type[Event]] = (),
        listens: Sequence[Listening] = (),
        running: bool = True,
    ) -> None:
        """Before ``start``. ``running=False``: another pod runs the module; only its consumers are made here.

        ``says``: events of the outbox that only a pod which runs the module relays. Raises ValueError: two consumers
        of one name, two modules that say one event, or no stream for an event.
        """
        self.outbox.says(module, map(type_of, says), running=running)
        own: list[tuple[str, str]] = []
        for hearing in hears:
            stream = self._stream_of(hearing.event)
            name = hearing.consumer(module)
            if any(known == name for _, known in self._wanted):
                raise ValueError(f"two consumers would be called {name}")
            spec = ConsumerSpec(
                name=name,
                filters=(f"{type_of(hearing.event)}.*",),
                # All of a limits stream would replay days of an audit trail to phones and locks.
                deliver=Deliver.NEW if stream.retention is Retention.LIMITS else Deliver.ALL,
                ack_wait=hearing.ack_wait,
                max_deliver=hearing.max_deliver,
                max_ack_pending=hearing.max_ack_pending,
            )
            self._wanted[stream.name, name] = spec
            own.append((stream.name, name))
            if running:
                self._runners.append(self._runner(stream.name, name, spec, hearing))
        self._by_module[module] = own
        if own and last_tries.STREAM in self._streams:
            spec = last_tries.consumer_of(module, own)
            self._wanted[last_tries.STREAM, last_tries.durable_of(module)] = spec
            if running:
                self._last_tries.append(LastTries(self.broker, self.dead_letters, spec, self._ensure_last_tries))
        if running:
            self._watches.extend(watches)
            self._listens.extend(listens)
            for answering in answers:
                if any(self._captures(spec, rpc_subject(answering.query)) for spec in self._streams.values()):
                    raise ValueError(
                        f"{rpc_subject(answering.query)} lies inside a stream, whose PubAck would answer it"
                    )
                self._answers.append((module.replace(".", "_"), answering))

    def _runner(self, stream: str, name: str, spec: ConsumerSpec, hearing: Hearing) -> Runner:
        return Runner(
            self.broker,
            self._codec,
            self.dead_letters,
            self._observer,
            self._breaker,
            self._causes,
            stream=stream,
            consumer=name,
            spec=spec,
            hearing=hearing,
            ensure_stream=self._ensure_stream,
            hand_over=self._hand_over,
            delays=self._retry_delays,
            spans=self._spans,
            audit=self._audit,
        )

    @staticmethod
    def _captures(spec: StreamSpec, subject: str) -> bool:
        return any(subject_matches(pattern, subject) for pattern in spec.subjects)

    def _stream_of(self, event: type[Event]) -> StreamSpec:
        subject = f"{type_of(event)}.x"
        for spec in self._streams.values():
            if self._captures(spec, subject):
                return spec
        raise ValueError(f"no stream takes {type_of(event)}")

    def _breaker(self, dependency: str) -> Breaker:
        if dependency not in self._breakers:
            self._breakers[dependency] = Breaker(dependency, self.broker.sleep)
        return self._breakers[dependency]

    # -- start and end

    async def start(self) -> None:
        """Connect and listen; with the server away return at once and go on behind.

        Raises ApiError, NotPermitted or Misconfigured when the server is there and refuses a stream or a consumer.
        """
        await self.broker.connect()
        behind = asyncio.Event()
        if self.broker.status is not ConnectionStatus.UP:
            behind.set()
        establishing = asyncio.create_task(self._establish(behind), name="bus: establish")
        self._background.append(establishing)
        waiting = asyncio.create_task(behind.wait())
        await asyncio.wait((establishing, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if establishing.done():
            await establishing

    async def _establish(self, behind: asyncio.Event) -> None:
        """Sets ``behind`` when that has to wait for the server, and whoever started us need not."""
        pause = 0.25
        while True:
            await self.broker.wait_connected()
            try:
                await self._ensure_all()
                await self.dead_letters.restore()
                self._refusal = None
                break
            except Unavailable as error:
                if str(error) != self._refusal:
                    log.warning("bus.not_established", error=str(error))
                self._refusal = str(error)
                behind.set()
                pause = min(pause * 2, 5.0)
                await self.broker.sleep(pause)
            except (ApiError, NotPermitted, Misconfigured) as error:
                # A person has to look at it; nobody waits for us any more, so say it until it is mended.
                if not behind.is_set():
                    raise
                self._refusal = str(error)
                log.error("bus.refused", error=str(error))
                await self.broker.sleep(5.0)
        listening = [asyncio.Event() for _ in self._runners]
        for runner, event in zip(self._runners, listening, strict=True):
            self._background.append(asyncio.create_task(runner.run(event), name=f"consumer {runner.consumer}"))
        await asyncio.gather(*(event.wait() for event in listening))
        self._background.append(asyncio.create_task(self.outbox.run(), name="outbox relay"))
        self._background += [asyncio.create_task(one.run(), name="last tries") for one in self._last_tries]

    @property
    def stream_names(self) -> Collection[str]:
        """The streams that the application wants."""
        return self._streams.keys()

    async def ensure(self) -> None:
        """Make what is missing of our streams and of all modules' consumers; bring up to date what is there.

        Raises ApiError, NotPermitted, Misconfigured, Unavailable.
        """
        await ensure_streams(self.broker, list(self._streams.values()), self._wanted)
        for (stream, _), consumer in self._wanted.items():
            await self._ensure_consumer(stream, consumer)

    async def _ensure_all(self) -> None:
        await self.ensure()
        if self._established.is_set():
            return
        for module, answering in self._answers:
            await self._serve(module, answering)
        for watching in self._watches:
            await self._watch(watching)
        for listening in self._listens:
            self._subscriptions.append(await self.direct.listen(listening))
        self._subscriptions.append(await self.broker.subscribe(WAKE, self._woken))
        self._established.set()

    async def _ensure_stream(self, name: str) -> None:
        async with self._ensuring:
            await self.broker.ensure_stream(self._streams[name])

    async def _ensure_last_tries(self, spec: ConsumerSpec) -> None:
        await self._ensure_stream(last_tries.STREAM)
        await self._ensure_consumer(last_tries.STREAM, spec)

    async def _ensure_consumer(self, stream: str, spec: ConsumerSpec) -> None:
        try:
            await self.broker.ensure_consumer(stream, spec)
        except ApiError as error:
            if error.code != 10012:
                raise
            # It was re-created after its ack floor once, and so begins elsewhere; all else is as wanted.
            log.info("consumer.kept", stream=stream, consumer=spec.name)

    async def drain(self, timeout: float = 30.0) -> DrainReport:
        """Stop pulling, wait for handlers, relay what is in the outbox, flush, close. What is not done comes again.

        Cancelled, it leaves nothing running either.
        """
        try:
            return await self._drain(timeout)
        except asyncio.CancelledError:
            await self._cut_off()
            raise

    async def _cut_off(self) -> None:
        await asyncio.gather(*(runner.abandon() for runner in self._runners))
        left = [task for task in (*self._tasks, *self._background) if not task.done()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self.broker.close()

    async def _drain(self, timeout: float) -> DrainReport:
        self._draining = True
        started = sum(runner.running for runner in self._runners)
        for runner in self._runners:
            await runner.drain()
        loops = [task for task in self._background if not task.done()]
        consumers = [task for task in loops if task.get_name().startswith("consumer ")]
        if consumers:
            await asyncio.wait(consumers, timeout=timeout)
        abandoned = sum(runner.running for runner in self._runners)
        await asyncio.gather(*(runner.abandon() for runner in self._runners))
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=max(0.1, timeout / 10))
            for task in late:
                task.cancel()
        for task in loops:
            task.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        if self.broker.status is ConnectionStatus.UP:
            # Durable: publish what is left. Embedded: nobody listens any more, the rows stay for the next start.
            unpublished = await self.outbox.drain(2.0 if self.broker.durable else 0.0)
            await self._flush_quietly(timeout)
        else:
            unpublished = -1
        await self.broker.close()
        return DrainReport(
            finished=max(0, started - abandoned),
            abandoned=abandoned,
            unpublished=unpublished,
        )

    async def _flush_quietly(self, timeout: float) -> None:
        for gatherer in self._gatherers:
            await gatherer.flush()
        if not self._outstanding:
            return
        try:
            await asyncio.wait_for(self.flush(), timeout)
        except TimeoutError:
            log.warning("bus.not_flushed", outstanding=self._outstanding)

    # -- publish

    async def publish(self, event: Event) -> PubAck:
        """Publish, wait for the store; again with the same id. Raises NoStream, PublishRefused, Unavailable."""
        return await self._send(self._codec.envelope(event))

    async def publish_soon(self, event: Event, on_ack: OnAck | None = None, *, because: Event | None = None) -> None:
        """Publish without waiting for the store, in a bounded window; waits when the window is full.

        ``on_ack(envelope, PubAck or the error)`` is called exactly once. ``because``: the event of the running
        batch that caused this one (its trace goes on).
        """
        envelope = self._codec.envelope(event, self._causes.trace(because) if because is not None else None)
        if not self._established.is_set():
            await self._wait_established()
        if self._outstanding >= self._window:
            await self._until(lambda: self._outstanding < self._window)
        self._outstanding += 1
        if not self._soon:
            asyncio.get_running_loop().call_soon(self._hand_over)
        self._soon.append((envelope, on_ack))

    def gather(self, make: Callable[[list[T]], Event], *, size: int = 100, seconds: float = 0.05) -> Gatherer[T]:
        """A publisher of many small things: ``make`` turns up to ``size`` of them, or 50 ms of them, into one event."""
        gatherer = Gatherer(self.publish_soon, make, self.broker.sleep, size=size, seconds=seconds)
        self._gatherers.append(gatherer)
        return gatherer

    def _hand_over(self) -> None:
        """Give the broker what ``publish_soon`` has gathered in this turn of the loop.

        Also called before anything else is said, and before a handler's message is settled, so that order is kept.
        """
        if not self._soon:
            return
        soon, self._soon = self._soon, []
        outcomes = self.broker.submit_all([envelope for envelope, _ in soon])
        stored: Counter[tuple[str, str]] = Counter()
        for (envelope, on_ack), outcome in zip(soon, outcomes, strict=True):
            if isinstance(outcome, PubAck):
                stored[outcome.stream, envelope.headers[EVENT_TYPE]] += 1
                if self._audit:
                    self._log_published(envelope, outcome)
                if on_ack is not None:
                    on_ack(envelope, outcome)
            else:
                self._spawn(self._land(envelope, outcome, on_ack))
        if stored:
            for (stream, event_type), count in stored.items():
                self._observer.published(stream, event_type, count)
            self._outstanding -= stored.total()
            self._landed.set()

    async def _until(self, met: Callable[[], bool]) -> None:
        while not met():
            self._landed.clear()
            await self._landed.wait()

    async def _land(self, envelope: Envelope, outcome: Outcome, on_ack: OnAck | None) -> None:
        try:
            ack = await self._send(envelope, outcome)
        except NebengJekError as error:
            self._not_published(envelope, error, on_ack)
        except asyncio.CancelledError:
            self._not_published(envelope, PublishTimeout("bus"), on_ack)
            raise
        else:
            if on_ack is not None:
                on_ack(envelope, ack)
        finally:
            self._outstanding -= 1
            self._landed.set()

    def _not_published(self, envelope: Envelope, error: NebengJekError, on_ack: OnAck | None) -> None:
        if on_ack is not None:
            on_ack(envelope, error)
        else:
            log.error("message.not_published", subject=envelope.subject, error=str(error))

    @staticmethod
    def _log_published(envelope: Envelope, ack: PubAck) -> None:
        log.debug("message.published", id=envelope.message_id, subject=envelope.subject, seq=ack.seq)

    async def flush(self) -> None:
        """Return when everything that ``publish_soon`` took has been stored or refused."""
        self._hand_over()
        await self._until(lambda: self._outstanding == 0)

    async def _send(self, envelope: Envelope, outcome: Outcome | None = None) -> PubAck:
        """``outcome``: of the first try, if it was made already."""
        if not self._established.is_set():
            await self._wait_established()
        self._hand_over()
        pause = 0.1
        for tries_left in reversed(range(PUBLISH_TRIES)):
            try:
                ack = await _answer_of(outcome or self.broker.submit_all((envelope,))[0])
            except (TimeoutError, Disconnected, PublishTimeout) as error:
                if not tries_left:
                    self._observer.publish_failed("timeout")
                    raise PublishTimeout("bus") from error
                await asyncio.sleep(pause)
                pause *= 2
                outcome = None
                if self.broker.status is not ConnectionStatus.UP:
                    await self._wait_connected()
            except (ApiError, NoStream, NotPermitted) as error:
                code = "not_permitted" if isinstance(error, NotPermitted) else getattr(error, "code", "no_stream")
                self._observer.publish_failed(str(code))
                raise
            else:
                self._observer.published(ack.stream, _type_in(envelope))
                if self._audit:
                    self._log_published(envelope, ack)
                return ack
        raise AssertionError("unreachable")

    async def _wait_established(self) -> None:
        try:
            await asyncio.wait_for(self._established.wait(), PUBLISH_TIMEOUT)
        except TimeoutError as error:
            raise Unavailable("bus") from error

    async def _wait_connected(self) -> None:
        """The server may be back in a moment. Raises PublishTimeout."""
        try:
            await asyncio.wait_for(self.broker.wait_connected(), PUBLISH_TIMEOUT)
        except TimeoutError as error:
            self._observer.publish_failed("timeout")
            raise PublishTimeout("bus") from error

    # -- request and answer

    async def request(self, query: Query[A], timeout: float = 5.0) -> A:
        """The answer of the module that serves the query.

        Raises what its handler raised (Conflict, Forbidden, NotFound …), NoResponders, RequestTimeout, RemoteError.
        """
        trace = current() or new_trace()
        headers = {CORRELATION_ID: trace.correlation_id, TRACEPARENT: trace.traceparent}
        if not self._established.is_set():
            await self._wait_established()
        reply = await self.broker.request(rpc_subject(query), self._codec.encode(query), headers, timeout=timeout)
        kind = reply.headers.get(ERROR_KIND)
        if kind == "Internal":
            raise RemoteError("INTERNAL", reply.headers.get(ERROR_TEXT, ""))
        if kind is not None:
            raise restore(kind, reply.headers.get(ERROR_CODE, ""), reply.headers.get(ERROR_TEXT, ""))
        try:
            answer: A = self._codec.decode_any(reply.data, answer_type(type(query)))
        except Undecodable as error:
            raise RemoteError("UNDECODABLE", str(error)) from error
        return answer

    async def _serve(self, module: str, answering: Answering) -> None:
        async def received(message: CoreMessage) -> None:
            # One task each: a slow answer must not hold up the next question.
            self._spawn(self._answer(answering, message))

        subject = rpc_subject(answering.query)
        self._subscriptions.append(await self.broker.subscribe(subject, received, queue=module))

    async def _answer(self, answering: Answering, message: CoreMessage) -> None:
        token = enter(from_headers(message.headers, uuid7()))
        headers: dict[str, str] = {}
        data = b""
        try:
            query = self._codec.decode_any(message.data, answering.query)
            data = self._codec.encode(await contained(answering.handler(query)))
        except Undecodable as error:
            headers = _error_headers(*describe(Invalid(str(error))))
        except (Rejected, Unavailable) as error:
            headers = _error_headers(*describe(error))
        except Exception as error:
            log.error("query.failed", query=type_of(answering.query), exc_info=error)
            headers = _error_headers("Internal", "INTERNAL", type(error).__name__)
        finally:
            leave(token)
        if message.reply:
            try:
                await self.broker.core_publish(message.reply, data, headers)
            except (Unavailable, Invalid) as error:
                # The asker's timeout tells him.
                log.warning("query.not_answered", query=type_of(answering.query), error=str(error))

    async def _watch(self, watching: Watching) -> None:
        async def received(message: CoreMessage) -> None:
            if ONLY_FOR in message.headers:
                # A replayed dead letter: it was seen when it was said.
                return
            try:
                event = self._codec.decode(message, watching.event)
            except Undecodable as error:
                log.warning("watch.undecodable", subject=message.subject, error=str(error))
                return
            self._spawn(self._watched(watching, event, message.headers))

        subject = f"{type_of(watching.event)}.*"
        self._subscriptions.append(await self.broker.subscribe(subject, received))

    async def _watched(self, watching: Watching, event: Event, headers: Mapping[str, str]) -> None:
        token = enter(from_headers(headers, uuid7()))
        try:
            await contained(watching.handler(event))
        except Exception as error:
            log.error("watch.failed", event_type=type_of(event), exc_info=error)
        finally:
            leave(token)

    async def _woken(self, _: CoreMessage) -> None:
        self.outbox.woken()

    # -- replay, health

    async def replay(
        self, kind: type[E], *, since: int | datetime = 1, follow: bool = False
    ) -> AsyncGenerator[E, None]:
        """Every stored event of this type from a sequence or a moment on, in order; disturbs no durable consumer.

        ``follow``: go on with what is said later, until closed. What was only said again, to a consumer that had
        failed, and what cannot be decoded, is left out.
        """
        stream = self._stream_of(kind).name
        beginning = max(1, since) if isinstance(since, int) else since
        stored = self.broker.ordered(stream, f"{type_of(kind)}.*", since=beginning, until_drained=not follow)
        async with aclosing(stored) as messages:
            async for message in messages:
                if ONLY_FOR in message.headers:
                    continue
                try:
                    event = self._codec.decode(message, kind)
                except Undecodable as error:
                    log.warning("replay.undecodable", stream=stream, seq=message.seq, error=str(error))
                    continue
                yield event

    async def health(self) -> Health:
        """What the bus sees of itself. With the server away the consumers are listed as not moving."""
        consumers = [await self._consumer_health(runner) for runner in self._runners]
        dead, orphans, streams = 0, [], []
        if self.broker.status is ConnectionStatus.UP and self._established.is_set():
            try:
                streams = [_stream_health(await self.broker.stream_info(name)) for name in self._streams]
                dead = next((info.messages for info in streams if info.stream == DEAD_LETTERS), 0)
                orphans = await self.orphans()
            except (ApiError, NotPermitted, Unavailable) as error:
                log.warning("health.incomplete", error=str(error))
        return Health(
            status=self.broker.status,
            where=self.broker.where,
            connection=self.broker.connection(),
            refusal=self._refusal,
            established=self._established.is_set(),
            consumers=consumers,
            breakers={name: breaker.state.value for name, breaker in self._breakers.items()},
            outbox_backlog=self.outbox.backlog,
            dead_letters=dead,
            orphans=orphans,
            streams=streams,
        )

    def consumers_of(self, module: str) -> list[tuple[str, ConsumerSpec]]:
        """The durable consumers of a wired module, each with its stream."""
        return [(stream, self._wanted[stream, name]) for stream, name in self._by_module.get(module, ())]

    async def orphans(self) -> list[str]:
        """``stream/consumer`` of durables on our streams that no module wants."""
        found = []
        for stream in self._streams:
            found += [
                f"{stream}/{info.name}"
                for info in await self.broker.consumers(stream)
                if info.spec.name is not None and (stream, info.name) not in self._wanted
            ]
        return found

    async def _consumer_health(self, runner: Runner) -> ConsumerHealth:
        lag = ack_pending = redelivered = 0
        paused_until = None
        attached = self.broker.status is ConnectionStatus.UP and self._established.is_set()
        if attached:
            try:
                info = await runner.info()
                lag, ack_pending, redelivered = info.num_pending, info.num_ack_pending, info.num_redelivered
                paused_until = info.paused_until
            except (ApiError, NotPermitted, Unavailable):
                attached = False
        age = runner.idle_for
        return ConsumerHealth(
            stream=runner.stream,
            consumer=runner.consumer,
            event=runner.event_type,
            lag=lag,
            ack_pending=ack_pending,
            redelivered=redelivered,
            last_pull_age=age,
            running=runner.running,
            blocked_by=runner.blocked_by,
            moving=attached and (age < 3 * PULL_EXPIRES or runner.running > 0) and runner.blocked_by is None,
            lagging=0 < self._lag_alarm < lag,
            paused_until=paused_until,
        )

    def read(self, message: Received, kind: type[E]) -> E:
        """The event that a message of a stream is. Raises Undecodable."""
        return self._codec.decode(message, kind)

    @property
    def under_way(self) -> int:
        """Handlers, answers and publishes that have begun and not ended."""
        return sum(runner.running for runner in self._runners) + len(self._tasks) + self._outstanding

    def breaker_open(self) -> bool:
        return any(breaker.state is not BreakerState.CLOSED for breaker in self._breakers.values())

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _answer_of(outcome: Outcome) -> PubAck:
    if isinstance(outcome, asyncio.Future):
        return outcome.result() if outcome.done() else await asyncio.wait_for(outcome, PUBLISH_TIMEOUT)
    if isinstance(outcome, NebengJekError):
        raise outcome
    return outcome


def _type_in(envelope: Envelope) -> str:
    return envelope.subject[: envelope.subject.rfind(".")]


def _stream_health(info: StreamInfo) -> StreamHealth:
    return StreamHealth(
        stream=info.spec.name,
        storage=info.spec.storage.value,
        messages=info.messages,
        bytes=info.bytes,
        max_bytes=info.spec.max_bytes,
        consumers=info.consumers,
    )


def _error_headers(kind: str, code: str, text: str) -> dict[str, str]:
    return {ERROR_KIND: kind, ERROR_CODE: code, ERROR_TEXT: header_text(text)}
