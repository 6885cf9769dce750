"""The test kit of module authors: a probe that sees what passes over the bus, and waits until nothing does any more.

For tests only: nothing of the application imports it. docs/bus.md has an example.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, TypeVar, cast

from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.bus.dead_letters import STREAM, DeadLetter, shown
from nebengjek.bus.handling import Answering, Hearing, Watching
from nebengjek.bus.interface import Broker, ConnectionStatus
from nebengjek.bus.memory.broker import MemoryBroker
from nebengjek.bus.memory.server import MemoryServer
from nebengjek.bus.messaging import MessageBus
from nebengjek.bus.specs import StreamSpec
from nebengjek.bus.subjects import subject_matches
from nebengjek.bus.testing_tap import Deck, Tap, Traffic
from nebengjek.clock import Clock, SystemClock
from nebengjek.contracts.message import Event, type_of

E = TypeVar("E", bound=Event)

LOOK_SECONDS = 0.01
"""How long ``idle`` waits for something to pass before it looks again: other processes say nothing to us."""


class Store(Protocol):
    """Where the outbox lies; ``nebengjek.database.Database`` is one."""

    def begin(self) -> AbstractAsyncContextManager[AsyncConnection]: ...

    def on_commit(self, callback: Callable[[AsyncConnection], None]) -> None: ...


class Part(Protocol):
    """As much of a ``nebengjek.module.Module`` as the bus plays."""

    @property
    def name(self) -> str: ...
    @property
    def hears(self) -> Sequence[Hearing]: ...
    @property
    def watches(self) -> Sequence[Watching]: ...
    @property
    def answers(self) -> Sequence[Answering]: ...
    @property
    def says(self) -> Sequence[type[Event]]: ...
    @property
    def start(self) -> Callable[[], Awaitable[None]] | None: ...


class BusProbe:
    """Sees what is stored in streams (not what only lies in an outbox), what is handled, and what cannot be.

    ``connect``: makes a connection to a broker; without it all connections are to one in memory. ``shuffle``: every
    delivery is handled twice, and in any order across subjects, consumers and pods. A message is acknowledged after
    the second time; all else (retries, inbox, outbox, dead letters) is as always. ``seed``: of the order; what the
    operating system and the network add to it does not repeat itself.
    """

    def __init__(self, connect: Callable[[], Broker] | None = None, *, shuffle: bool = False, seed: int = 0) -> None:
        server = MemoryServer()
        self._connect = connect or (lambda: MemoryBroker(server))
        self._traffic = Traffic()
        self._deck = Deck(seed) if shuffle else None
        self._buses: list[MessageBus] = []

    # -- what is looked at

    def broker(self) -> Broker:
        """A connection that this probe sees; for a ``MessageBus`` or an application that is then to be ``watch``ed."""
        return cast(Broker, Tap(self._connect(), self._traffic, self._deck))

    def watch(self, bus: MessageBus) -> None:
        """``idle`` waits for this bus too; it has a connection of this probe."""
        self._buses.append(bus)

    def bus(
        self,
        streams: Sequence[StreamSpec],
        store: Store,
        *,
        pod_id: str = "probe",
        clock: Clock | None = None,
        **options: Any,
    ) -> MessageBus:
        """A watched bus whose outbox lies in ``store``; ``options`` as of ``MessageBus``."""
        bus = MessageBus(self.broker(), streams, store.begin, pod_id=pod_id, clock=clock or SystemClock(), **options)
        store.on_commit(bus.outbox.committed)
        self.watch(bus)
        return bus

    @asynccontextmanager
    async def playing(self, bus: MessageBus, *modules: Part) -> AsyncIterator[None]:
        """The modules listen; at the end the bus is drained."""
        for module in modules:
            bus.wire(module.name, module.hears, module.watches, module.answers, says=module.says)
        for module in modules:
            if module.start is not None:
                await module.start()
        try:
            await bus.start()
            yield
        finally:
            await bus.drain(5.0)

    # -- what was seen

    def published(self, kind: type[E]) -> list[E]:
        """The events of this type that are stored in their stream, each once, in order."""
        pattern = f"{type_of(kind)}.*"
        stored = [one for one in self._traffic.stored.values() if subject_matches(pattern, one.subject)]
        return [self._buses[0].read(message, kind) for message in stored]

    @property
    def handled(self) -> Counter[str]:
        """How many messages each consumer (``ride_pickup_match``) has handled; each counts once, shuffled too."""
        return Counter({consumer: count for consumer, count in self._traffic.handled.items() if count})

    @property
    def dead(self) -> list[DeadLetter]:
        """What consumers could not handle, in order."""
        return [shown(message) for (stream, _), message in self._traffic.stored.items() if stream == STREAM]

    # -- waiting

    async def idle(self, timeout: float = 10.0) -> None:
        """Return when nothing is in an outbox, no consumer has anything pending, and no handler or answer runs.

        An event that is to come again later (a failed handler's) is waited for too. Raises AssertionError after
        ``timeout`` seconds, which says what is left.
        """
        busy: list[str] = []
        try:
            async with asyncio.timeout(timeout):
                while busy := await self._busy():
                    await self._something_passes()
        except TimeoutError:
            raise AssertionError(f"not idle after {timeout} s: {', '.join(busy)}") from None

    async def _something_passes(self) -> None:
        self._traffic.changed.clear()
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await self._traffic.changed.wait()
        except TimeoutError:
            return

    async def _busy(self) -> list[str]:
        """What is left to do, for people. One look takes its time: it counts if nothing passed meanwhile."""
        moves = self._traffic.moves
        found = [f"{stream}:{seq} for {consumer}" for stream, consumer, seq in sorted(self._traffic.owed)]
        for bus in self._buses:
            found += [text async for text in self._busy_with(bus)]
        if not found and moves != self._traffic.moves:
            found.append("something passed while looking")
        return found

    async def _busy_with(self, bus: MessageBus) -> AsyncIterator[str]:
        if bus.broker.status is not ConnectionStatus.UP:
            yield f"{bus.pod_id} is {bus.broker.status.value}"
            return
        if rows := await bus.outbox.size():
            yield f"{rows} in the outbox of {bus.pod_id}"
        for stream, consumer in sorted(self._traffic.heard):
            info = await bus.broker.consumer_info(stream, consumer)
            if info.num_pending or info.num_ack_pending:
                yield f"{info.num_pending} before and {info.num_ack_pending} in the hands of {consumer}"
        if bus.under_way:
            yield f"{bus.under_way} under way in {bus.pod_id}"
