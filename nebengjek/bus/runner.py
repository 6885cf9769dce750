"""The loop of one durable consumer: pull, decode, handle, settle; retry, dead letter, breaker, drain.

Every policy of delivery is here, once, above the broker: what is tested in memory is what runs on NATS.

Over 300 lines because what becomes of a delivery is one decision with many ends, and they belong side by side.
"""

import asyncio
import inspect
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import structlog
from msgspec import structs

from nebengjek.bus.breaker import Breaker, BreakerState, first_of
from nebengjek.bus.codec import ONLY_FOR, Codec, Undecodable, original_id
from nebengjek.bus.dead_letters import DeadLetters
from nebengjek.bus.deliveries import Delivery, PullStatus
from nebengjek.bus.errors import ApiError, BusError
from nebengjek.bus.handling import Context, Crashed, Hearing, Reject, Retry
from nebengjek.bus.interface import Broker, ConnectionStatus
from nebengjek.bus.messages import StoredMessage
from nebengjek.bus.observing import Observer, Spans
from nebengjek.bus.specs import ConsumerInfo, ConsumerSpec, Deliver
from nebengjek.bus.tracing import Trace, current, enter, from_headers, leave
from nebengjek.contracts.message import Event, type_of
from nebengjek.errors import Conflict, Forbidden, Invalid, Unavailable

PULL_EXPIRES = 5.0
CONSUMER_EXISTS = 10148

log = structlog.stdlib.get_logger("nebengjek.bus")


class Cause:
    """The events of a running batch and what they came in."""

    def __init__(self, events: Sequence[Event], deliveries: Sequence[Delivery]) -> None:
        self._events = events
        self._deliveries = deliveries
        self._by_id: dict[int, Delivery] | None = None

    def delivery(self, event: Event) -> Delivery | None:
        if self._by_id is None:
            self._by_id = dict(zip(map(id, self._events), self._deliveries, strict=True))
        return self._by_id.get(id(event))


class Causes:
    """Which message caused which event of a batch, so that each answer continues its own trace."""

    def __init__(self) -> None:
        self._running: dict[Cause, None] = {}

    def note(self, cause: Cause) -> None:
        self._running[cause] = None

    def forget(self, cause: Cause) -> None:
        del self._running[cause]

    def trace(self, event: Event) -> Trace | None:
        """The trace that ``event`` of a running batch belongs to."""
        for cause in self._running:
            delivery = cause.delivery(event)
            if delivery is not None:
                headers = delivery.headers
                return from_headers(headers, original_id(headers, delivery.stream, delivery.seq))
        return current()


class _MeantForAnother(Exception):
    """A replayed dead letter of another consumer."""


class Runner:
    """Feeds one ``Hearing`` from its durable consumer until ``drain``."""

    def __init__(
        self,
        broker: Broker,
        codec: Codec,
        dead_letters: DeadLetters,
        observer: Observer,
        breakers: Callable[[str], Breaker],
        causes: Causes,
        *,
        stream: str,
        consumer: str,
        spec: ConsumerSpec,
        hearing: Hearing,
        ensure_stream: Callable[[str], Awaitable[None]],
        hand_over: Callable[[], None],
        delays: Sequence[float],
        spans: Spans | None = None,
        audit: bool = False,
    ) -> None:
        self.stream = stream
        self.consumer = consumer
        self.event_type = type_of(hearing.event)
        self.spec = spec
        self.handled = 0
        self._broker = broker
        self._codec = codec
        self._dead_letters = dead_letters
        self._observer = observer
        self._breakers = breakers
        self._causes = causes
        self._hearing = hearing
        self._ensure_stream = ensure_stream
        self._hand_over = hand_over
        self._delays = delays
        self._spans = spans
        self._audit = audit
        self._takes_context = not hearing.batch and len(inspect.signature(hearing.handler).parameters) == 2
        self._slots = asyncio.Semaphore(hearing.concurrency)
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: dict[Delivery, None] = {}
        self._tails: dict[object, asyncio.Task[None]] = {}
        self._breaker: Breaker | None = None
        self._stopping = asyncio.Event()
        self._parked: asyncio.Task[Any] | None = None
        self._due: dict[asyncio.Task[Any], float] = {}
        """By when the handlers that run must have ended; the first that began comes first."""
        self._watch: asyncio.TimerHandle | None = None
        self._last_info: ConsumerInfo | None = None
        self._last_pull = broker.monotonic()
        self._gone_for = 0.0
        self._missed = False
        """The server was asked for the consumer and has none, whatever it says to pulls."""

    # -- the loop

    async def run(self, listening: asyncio.Event) -> None:
        """Pull until ``drain``, or the broker is closed. Sets ``listening`` when the consumer is attached."""
        keepalive = asyncio.create_task(self._keep_alive(), name=f"keepalive {self.consumer}")
        try:
            while self._goes_on:
                try:
                    await self._listen(listening)
                except Exception as error:
                    # Whatever it was: a loop that ended would be deaf for as long as the process lives.
                    log.error("consumer.loop_failed", consumer=self.consumer, exc_info=error)
                    await self._park(self._broker.sleep(1.0))
            if self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            keepalive.cancel()
            if self._watch is not None:
                self._watch.cancel()

    async def _listen(self, listening: asyncio.Event) -> None:
        prefetch = max(self._hearing.batch, self._hearing.concurrency) * 2
        limit = self._hearing.batch or self._hearing.concurrency
        # What lies pulled ahead is kept alive by the rhythm of the pulls, so that must not be slower than the ack wait.
        # Nor may a pull outlive what was in progress two thirds of the wait ago: who is held up would get it again.
        expires = min(PULL_EXPIRES, self.spec.ack_wait * 0.6)
        consumption = await self._broker.consume(self.stream, self.consumer, prefetch=prefetch, expires=expires)
        listening.set()
        try:
            while self._goes_on:
                if self._breaker is not None:
                    await self._park(self._breaker.closed())
                    self._breaker = None
                    continue
                await self._slots.acquire()
                self._slots.release()
                batch = await self._park(consumption.next(limit))
                if batch is None:
                    break
                self._last_pull = max(self._last_pull, consumption.last_pull)
                if batch.messages or batch.status is PullStatus.TIMEOUT:
                    self._gone_for = 0.0
                if batch.messages:
                    await self._take(batch.messages)
                    if self._hearing.batch:
                        # Idle, the first message is taken at once; under load the next ones gather meanwhile.
                        await self._park(asyncio.sleep(self._hearing.linger))
                elif self._missed or batch.status in (PullStatus.NO_CONSUMER, PullStatus.CONSUMER_DELETED):
                    self._missed = False
                    await self._recreate()
                elif batch.status is not PullStatus.TIMEOUT:
                    # It may say so at once each time, for as long as the connection closes.
                    await self._park(self._broker.sleep(0.05))
        finally:
            await consumption.close()

    @property
    def _goes_on(self) -> bool:
        return not self._stopping.is_set() and self._broker.status is not ConnectionStatus.CLOSED

    async def _park(self, awaitable: Awaitable[Any]) -> Any:
        """Wait where ``drain`` may interrupt; None when it did."""
        task = asyncio.current_task()
        assert task is not None
        self._parked = task
        try:
            return await awaitable
        except asyncio.CancelledError:
            if self._stopping.is_set() and task.uncancel() == 0:
                return None
            raise
        finally:
            self._parked = None

    async def _take(self, messages: list[Delivery]) -> None:
        redelivered = sum(1 for message in messages if message.deliveries > 1)
        self._observer.delivered(self.stream, self.consumer, len(messages), redelivered)
        if self._hearing.batch:
            self._running.update(dict.fromkeys(messages))
            await self._slots.acquire()
            self._start(partial(self._handle_batch, messages), messages)
            return
        for message in messages:
            self._running[message] = None
        for message in messages:
            await self._slots.acquire()
            if self._stopping.is_set():
                self._slots.release()
                await self._nak(message, 0.0)
            else:
                self._start(partial(self._handle, message), (message,))

    def _start(self, work: Callable[[], Awaitable[None]], held: Sequence[Delivery]) -> None:
        task = asyncio.create_task(self._hold(work, held))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def _hold(self, work: Callable[[], Awaitable[None]], held: Sequence[Delivery]) -> None:
        """Whatever becomes of ``work``: what it did not settle is no longer kept from coming again."""
        try:
            await work()
        except asyncio.CancelledError:
            for delivery in held:
                if delivery in self._running:
                    await self._nak(delivery, 0.0)
            raise
        finally:
            for delivery in held:
                self._running.pop(delivery, None)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slots.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("consumer.broken", consumer=self.consumer, exc_info=error)

    async def _recreate(self) -> None:
        """The consumer is gone: make it again after its last known ack floor; the pause grows, the warning is one."""
        if self._gone_for == 0.0:
            log.warning("consumer.gone", stream=self.stream, consumer=self.consumer)
            # A nats-server tells us before it has cleared away a stream: one that is made meanwhile may never answer.
            await self._park(self._broker.sleep(0.1))
        pause = self._gone_for = min(max(self._gone_for * 2, 0.25), 5.0)
        try:
            await self._ensure_stream(self.stream)
            await self._broker.create_consumer(self.stream, await self._where_it_was())
            # It is there, and somebody may be waiting for us; one that goes each time must not make us spin.
            pause = 0.25
        except ApiError as error:
            # Another pod may have been first; its floor was another one, or the spec would be the same.
            if error.code != CONSUMER_EXISTS:
                log.warning("consumer.not_created", consumer=self.consumer, error=str(error))
        except Unavailable as error:
            log.warning("consumer.not_created", consumer=self.consumer, error=str(error))
        await self._park(self._broker.sleep(pause))

    async def _where_it_was(self) -> ConsumerSpec:
        """The spec that begins after the last known ack floor; at the beginning if the stream itself is new."""
        if self._last_info is None:
            return self.spec
        floor = self._last_info.ack_floor.stream
        info = await self._broker.stream_info(self.stream)
        if 0 < floor <= info.last_seq:
            return structs.replace(self.spec, deliver=Deliver.BY_SEQ, start_seq=floor + 1)
        return structs.replace(self.spec, deliver=Deliver.ALL)

    async def _keep_alive(self) -> None:
        """Tell the server what is still being handled, or held by an open breaker; ask it how far the consumer is."""
        while True:
            try:
                await self.info()
            except (BusError, Unavailable) as error:
                self._missed = isinstance(error, ApiError) and error.status == 404
                log.debug("consumer.not_seen", consumer=self.consumer, error=str(error))
            await self._broker.sleep(self.spec.ack_wait / 3)
            for delivery in list(self._running):
                # It may have been settled while the one before was being told.
                if delivery in self._running:
                    try:
                        await delivery.in_progress()
                    except Unavailable:
                        break

    # -- one message

    async def _handle(self, delivery: Delivery) -> None:
        try:
            event = self._decode(delivery)
        except (Undecodable, _MeantForAnother) as error:
            await self._not_read(delivery, error)
            return
        key = getattr(event, self._hearing.ordered_by) if self._hearing.ordered_by else None
        if key is not None:
            tail, this = self._tails.get(key), asyncio.current_task()
            assert this is not None
            self._tails[key] = this
            if tail is not None:
                await asyncio.wait((tail,))
        try:
            await self._attempt(delivery, event)
        finally:
            if key is not None and self._tails.get(key) is asyncio.current_task():
                del self._tails[key]

    async def _attempt(self, delivery: Delivery, event: Event) -> None:
        message_id = original_id(delivery.headers, delivery.stream, delivery.seq)
        trace = from_headers(delivery.headers, message_id)
        token = enter(trace)
        started = self._broker.monotonic()
        try:
            arguments = (event, self._context(delivery, message_id)) if self._takes_context else (event,)
            if self._spans is None:
                await self._call(*arguments)
            else:
                with self._span(self._spans, trace, delivery):
                    await self._call(*arguments)
        except Exception as error:
            await self._failed(delivery, error)
        else:
            self._hand_over()
            await self._ack(delivery)
        finally:
            self._observer.handled(self.consumer, self._broker.monotonic() - started)
            leave(token)

    @contextmanager
    def _span(self, spans: Spans, trace: Trace, delivery: Delivery) -> Iterator[None]:
        attributes: dict[str, str | int] = {
            "messaging.system": "nats",
            "messaging.destination.name": self.stream,
            "messaging.consumer.group.name": self.consumer,
            "messaging.message.delivery_count": delivery.deliveries,
        }
        with spans.span(f"process {self.consumer}", trace, **attributes) as inner:
            enter(inner)
            yield

    async def _call(self, *arguments: Any) -> Any:
        """Call the handler; while a dependency does not answer, wait for it: an outage burns no tries."""
        breaker: Breaker | None = self._breaker
        while True:
            try:
                if breaker is not None:
                    async with breaker.turn(self._stopping):
                        return await self._timed(arguments)
                return await self._timed(arguments)
            except Unavailable as error:
                if self._stopping.is_set():
                    raise
                if breaker is None or breaker.dependency != error.dependency:
                    breaker = self._breakers(error.dependency)
                    breaker.trip()
                self._breaker = breaker
                log.warning("dependency.away", dependency=error.dependency, consumer=self.consumer)

    async def _timed(self, given: Sequence[Any]) -> Any:
        """Raises TimeoutError when the handler takes longer than it may."""
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        due = self._due[task] = loop.time() + self._hearing.timeout
        if self._watch is None:
            self._watch = loop.call_at(due, self._overdue)
        try:
            return await self._hearing.handler(*given)
        except (Exception, GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and task.cancelling():
                if task not in self._due and task.uncancel() == 0:
                    raise TimeoutError from None
                raise
            raise Crashed(error) from error
        finally:
            self._due.pop(task, None)

    def _overdue(self) -> None:
        """One timer for all handlers: they may take equally long, so the one that began first is due first."""
        self._watch = None
        loop = asyncio.get_running_loop()
        while self._due:
            task, due = next(iter(self._due.items()))
            if due > loop.time():
                self._watch = loop.call_at(due, self._overdue)
                return
            del self._due[task]
            task.cancel()

    # -- a batch

    async def _handle_batch(self, deliveries: list[Delivery]) -> None:
        events: list[Event] = []
        known: list[Delivery] = []
        for delivery in deliveries:
            try:
                events.append(self._decode(delivery))
            except (Undecodable, _MeantForAnother) as error:
                await self._not_read(delivery, error)
            else:
                known.append(delivery)
        if not events:
            return
        cause = Cause(events, known)
        self._causes.note(cause)
        started = self._broker.monotonic()
        try:
            failed = {id(event) for event in await self._call(events) or ()}
        except Exception as error:
            if len(events) == 1:
                await self._failed(known[0], error)
                return
            # One of them is to blame: alone, it cannot take the others along to the dead letters.
            for delivery in known:
                await self._handle_batch([delivery])
            return
        finally:
            self._causes.forget(cause)
            self._observer.handled(self.consumer, self._broker.monotonic() - started)
        self._hand_over()
        acked = known
        if failed:
            acked = []
            for event, delivery in zip(events, known, strict=True):
                if id(event) in failed:
                    await self._failed(delivery, RuntimeError("the batch handler gave it back"))
                else:
                    acked.append(delivery)
        for delivery in acked:
            del self._running[delivery]
        await self._broker.ack_all(acked)
        self.handled += len(acked)
        self._observer.settled(self.consumer, "acked", len(acked))

    # -- settling

    def _decode(self, delivery: Delivery) -> Event:
        if ONLY_FOR in delivery.headers and delivery.headers[ONLY_FOR] != self.consumer:
            raise _MeantForAnother
        return self._codec.decode(delivery, self._hearing.event)

    async def _not_read(self, delivery: Delivery, error: Exception) -> None:
        if isinstance(error, Undecodable):
            await self._bury(delivery, "undecodable", error)
        else:
            await self._ack(delivery)

    def _context(self, delivery: Delivery, message_id: str) -> Context:
        return Context(
            consumer=self.consumer,
            message_id=message_id,
            subject=delivery.subject,
            stream=delivery.stream,
            seq=delivery.seq,
            deliveries=delivery.deliveries,
            time=delivery.time,
        )

    async def _failed(self, delivery: Delivery, error: Exception) -> None:
        """The handler raised: what becomes of the message depends on what it said."""
        if isinstance(error, Conflict):
            log.info("event.already_decided", consumer=self.consumer, subject=delivery.subject, why=str(error))
            await self._ack(delivery)
            return
        if isinstance(error, (Reject, Invalid, Forbidden)):
            await self._bury(delivery, "rejected", error)
            return
        log.warning(
            "event.failed",
            consumer=self.consumer,
            subject=delivery.subject,
            deliveries=delivery.deliveries,
            # A handler that asks for another try has nothing to show: where it asks is no news.
            **({"why": str(error)} if isinstance(error, Retry) and error.__cause__ is None else {"exc_info": error}),
        )
        if isinstance(error, Unavailable):
            # Only when draining: the next instance gets it, and this was not the message's fault.
            await self._nak(delivery, 0.0)
        elif delivery.deliveries >= self.spec.max_deliver > 0:
            await self._bury(delivery, "failed", error)
        elif isinstance(error, Retry):
            await self._nak(delivery, error.after)
        else:
            delay = self._delays[min(delivery.deliveries, len(self._delays)) - 1]
            await self._nak(delivery, delay * random.uniform(1.0, 1.1))

    async def _bury(self, delivery: Delivery, reason: str, error: Exception) -> None:
        """Dead letter first, term second: a term that fails cannot lose the message.

        Where the dead letter cannot be stored the message is held, and tried until it can: given back on its last
        try it would never come again.
        """
        message = StoredMessage(
            stream=delivery.stream,
            seq=delivery.seq,
            subject=delivery.subject,
            headers=dict(delivery.headers),
            data=delivery.data,
            time=delivery.time,
        )
        described = f"{type(error).__name__}: {error}"
        pause = self._delays[0]
        while True:
            try:
                await self._dead_letters.add(
                    message, consumer=self.consumer, deliveries=delivery.deliveries, reason=reason, error=described
                )
                break
            except Exception as failure:
                log.error("dead_letter.failed", consumer=self.consumer, subject=delivery.subject, exc_info=failure)
                self._observer.dead_letter(self.consumer, "not stored, tried again")
                if self._stopping.is_set():
                    await self._nak(delivery, 0.0)
                    return
                await first_of(self._broker.sleep(pause), self._stopping.wait())
                pause = min(pause * 2, self._delays[-1])
        self._running.pop(delivery, None)
        await delivery.term(reason)
        self._count(delivery, "termed")

    async def _ack(self, delivery: Delivery) -> None:
        self._running.pop(delivery, None)
        await delivery.ack()
        self._count(delivery, "acked")

    async def _nak(self, delivery: Delivery, delay: float) -> None:
        self._running.pop(delivery, None)
        await delivery.nak(delay)
        self._count(delivery, "naked")

    def _count(self, delivery: Delivery, outcome: str) -> None:
        self.handled += 1
        self._observer.settled(self.consumer, outcome)
        if self._audit:
            log.debug("message.settled", consumer=self.consumer, subject=delivery.subject, outcome=outcome)

    # -- the end, and what one sees from outside

    async def drain(self) -> None:
        """Stop pulling; handlers that run go on to their end."""
        self._stopping.set()
        if self._parked is not None:
            self._parked.cancel()

    async def abandon(self) -> None:
        """Cut off what still runs; its messages come again."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)

    @property
    def running(self) -> int:
        """Handlers that run at present."""
        return len(self._tasks)

    async def info(self) -> ConsumerInfo:
        """What the server says of this consumer; remembered for when it is gone."""
        self._last_info = await self._broker.consumer_info(self.stream, self.consumer)
        return self._last_info

    @property
    def idle_for(self) -> float:
        """Seconds since the server last answered a pull."""
        return self._broker.monotonic() - self._last_pull

    @property
    def blocked_by(self) -> str | None:
        """The dependency whose breaker holds this loop."""
        breaker = self._breaker
        return breaker.dependency if breaker is not None and breaker.state is not BreakerState.CLOSED else None
