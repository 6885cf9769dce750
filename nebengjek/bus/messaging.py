"""``MessageBus``: what modules talk through. Everything a policy decides is here and in the files beside it, once.

Start: connect, ensure the streams and *all* modules' consumers, then listen. With the server away start returns
at once and the loops attach behind; until then a publish waits. Drain: stop pulling, let handlers end, flush.

Over 300 lines because the bus is one promise: what is wired is started, drained and told of as one.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from datetime import datetime
from typing import Any, TypeVar

import structlog
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.bus import last_tries
from nebengjek.bus.breaker import Breaker, BreakerState
from nebengjek.bus.capacity import ensure_streams
from nebengjek.bus.codec import ONLY_FOR, Codec, Received, Undecodable
from nebengjek.bus.dead_letters import STREAM as DEAD_LETTERS
from nebengjek.bus.dead_letters import DeadLetters
from nebengjek.bus.direct import Direct
from nebengjek.bus.errors import ApiError, NotPermitted
from nebengjek.bus.gathering import Gatherer
from nebengjek.bus.handling import Answering, Hearing, Listening, Watching
from nebengjek.bus.health import Health, consumer_health, stream_health
from nebengjek.bus.inbox import Inbox
from nebengjek.bus.interface import Broker, ConnectionStatus, Subscription
from nebengjek.bus.last_tries import LastTries
from nebengjek.bus.messages import CoreMessage, PubAck
from nebengjek.bus.observing import Observer, Silent, Spans
from nebengjek.bus.outbox import WAKE, Outbox
from nebengjek.bus.payloads import Payloads
from nebengjek.bus.publishing import OnAck, Publishing
from nebengjek.bus.queries import Queries
from nebengjek.bus.runner import Causes, Runner
from nebengjek.bus.specs import ConsumerSpec, Deliver, Retention, StreamSpec
from nebengjek.bus.subjects import subject_matches
from nebengjek.bus.watching import Watchers
from nebengjek.clock import Clock
from nebengjek.contracts.message import Event, Query, rpc_subject, type_of
from nebengjek.errors import Misconfigured, Unavailable
from nebengjek.tasks import cancelled

A = TypeVar("A")
T = TypeVar("T")
E = TypeVar("E", bound=Event)

RETRY_DELAYS = (1.0, 5.0, 15.0, 30.0)

log = structlog.stdlib.get_logger("nebengjek.bus")


class DrainReport(Struct, frozen=True, kw_only=True):
    """``finished``: handlers that ran at the beginning and came to their end; ``abandoned``: those that did not."""

    finished: int
    abandoned: int
    unpublished: int


class MessageBus:
    """Hand it the broker and the streams, ``wire`` the modules, then ``start``.

    ``begin``: opens a write transaction (for the outbox and the embedded dead letters). ``ack_wait``: seconds until
    what was delivered and not settled is delivered again. ``lag_alarm``: messages not delivered yet above which health
    calls a consumer lagging, 0 = never.
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
        ack_wait: float = 30.0,
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
        self._retry_delays = retry_delays
        self._ack_wait = ack_wait
        self._lag_alarm = lag_alarm
        self._audit = audit
        self._established = asyncio.Event()
        self._refusal: str | None = None
        self._runners: list[Runner] = []
        self._wanted: dict[tuple[str, str], ConsumerSpec] = {}
        self._by_module: dict[str, list[tuple[str, str]]] = {}
        self._watches: list[Watching] = []
        self._listens: list[Listening] = []
        self._answers: list[tuple[str, Answering]] = []
        self._subscriptions: list[Subscription] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._background: list[asyncio.Task[Any]] = []
        self._gatherers: list[Gatherer[Any, Event]] = []
        self._breakers: dict[str, Breaker] = {}
        self._causes = Causes()
        self._ensuring = asyncio.Lock()
        self._publishing = Publishing(
            broker, self._observer, self._established, self._spawn, window=window, audit=audit
        )
        self.direct = Direct(broker, payloads, self._publishing.wait_established, pod_id=pod_id)
        self._queries = Queries(broker, self._codec, self._spawn)
        self._watchers = Watchers(broker, self._codec, self._spawn)
        self.outbox = Outbox(
            broker, self._codec, self._publishing.send, begin, self._causes.trace, pod_id=pod_id, clock=clock
        )
        self.inbox = Inbox(clock)
        self.dead_letters = DeadLetters(broker, self._publishing.send, begin, self._observer, clock)
        self._last_tries: list[LastTries] = []

    @property
    def is_away(self) -> bool:
        """What is said now waits, or is refused."""
        return self.broker.status is not ConnectionStatus.UP

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
                ack_wait=self._ack_wait if hearing.ack_wait is None else hearing.ack_wait,
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
            hand_over=self._publishing.hand_over,
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
            self._subscriptions.append(await self._queries.serve(module, answering))
        for watching in self._watches:
            self._subscriptions.append(await self._watchers.listen(watching))
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
        await cancelled(*self._tasks, *self._background)
        await self.broker.close()

    async def _drain(self, timeout: float) -> DrainReport:
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
        await cancelled(*loops)
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
        if not self._publishing.outstanding:
            return
        try:
            async with asyncio.timeout(timeout):
                await self.flush()
        except TimeoutError:
            log.warning("bus.not_flushed", outstanding=self._publishing.outstanding)

    # -- publish

    async def publish(self, event: Event) -> PubAck:
        """Publish, wait for the store; again with the same id. Raises NoStream, PublishRefused, Unavailable."""
        return await self._publishing.send(self._codec.envelope(event))

    async def publish_soon(self, event: Event, on_ack: OnAck | None = None, *, because: Event | None = None) -> None:
        """Publish without waiting for the store, in a bounded window; waits when the window is full.

        ``on_ack(envelope, PubAck or the error)`` is called exactly once. ``because``: the event of the running
        batch that caused this one (its trace goes on).
        """
        envelope = self._codec.envelope(event, self._causes.trace(because) if because is not None else None)
        await self._publishing.send_soon(envelope, on_ack)

    async def flush(self) -> None:
        """Return when everything that ``publish_soon`` took has been stored or refused."""
        await self._publishing.flush()

    def gather(self, make: Callable[[list[T]], Event], *, size: int = 100, seconds: float = 0.05) -> Gatherer[T, Event]:
        """A publisher of many small things: ``make`` turns up to ``size`` of them, or 50 ms of them, into one event."""
        gatherer = Gatherer(self.publish_soon, make, self.broker.sleep, size=size, seconds=seconds)
        self._gatherers.append(gatherer)
        return gatherer

    async def request(self, query: Query[A], timeout: float = 5.0) -> A:
        """The answer of the module that serves the query.

        Raises what its handler raised (Conflict, Forbidden, NotFound …), NoResponders, RequestTimeout, RemoteError.
        """
        await self._publishing.wait_established()
        return await self._queries.ask(query, timeout)

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
        reachable = self.broker.status is ConnectionStatus.UP and self._established.is_set()
        consumers = [
            await consumer_health(runner, reachable=reachable, lag_alarm=self._lag_alarm) for runner in self._runners
        ]
        dead, orphans, streams = 0, [], []
        if reachable:
            try:
                streams = [stream_health(await self.broker.stream_info(name)) for name in self._streams]
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

    def read(self, message: Received, kind: type[E]) -> E:
        """The event that a message of a stream is. Raises Undecodable."""
        return self._codec.decode(message, kind)

    @property
    def under_way(self) -> int:
        """Handlers, answers and publishes that have begun and not ended."""
        return sum(runner.running for runner in self._runners) + len(self._tasks) + self._publishing.outstanding

    def breaker_open(self) -> bool:
        return any(breaker.state is not BreakerState.CLOSED for breaker in self._breakers.values())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
