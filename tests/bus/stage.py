"""What the tests of the bus share: events, a server of either kind, processes that come and go, and an observer."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.bus import tables
from nebengjek.bus.handling import Context
from nebengjek.bus.interface import Allowance, Broker
from nebengjek.bus.memory.broker import MemoryBroker
from nebengjek.bus.memory.server import MemoryServer
from nebengjek.bus.messaging import MessageBus
from nebengjek.bus.specs import Retention, StreamSpec
from nebengjek.clock import ManualClock
from nebengjek.contracts.message import Event, Query
from nebengjek.database import Database, metadata
from nebengjek.module import Module
from nebengjek.streams import STREAMS
from tests.conformance.harness import Harness, MemoryHarness, NatsHarness

WAIT = 30.0
"""Seconds after which what a test waits for is taken not to happen."""
DELAYS = (0.05, 0.1)

T = TypeVar("T")


class Thing(Event, frozen=True, kw_only=True, tag="thing.happened"):
    thing_id: str = "t"
    n: int = 0
    key: ClassVar[str] = "thing_id"
    number: ClassVar[str | None] = None


class Counted(Event, frozen=True, kw_only=True, tag="thing.counted"):
    """Its message id is made of the count."""

    thing_id: str = "t"
    n: int = 0
    key: ClassVar[str] = "thing_id"
    number: ClassVar[str | None] = "n"


class Noted(Event, frozen=True, kw_only=True, tag="audit.noted"):
    """On a stream that keeps everything."""

    thing_id: str = "t"
    n: int = 0
    key: ClassVar[str] = "thing_id"
    number: ClassVar[str | None] = None


class Lost(Event, frozen=True, kw_only=True, tag="lost.thing"):
    """No stream takes it."""

    thing_id: str = "t"
    key: ClassVar[str] = "thing_id"
    number: ClassVar[str | None] = None


class Double(Query[int], frozen=True, kw_only=True, tag="maths.double"):
    n: int


DEAD = next(spec for spec in STREAMS if spec.name == "DEAD_LETTER_STREAM")
THINGS = StreamSpec(name="THINGS", subjects=("thing.>",), retention=Retention.INTEREST)
AUDIT = StreamSpec(name="AUDIT", subjects=("audit.>",))
ADVISORIES = next(spec for spec in STREAMS if spec.name == "ADVISORY_STREAM")
SPECS = (THINGS, AUDIT, DEAD, ADVISORIES)


async def within(awaitable: Awaitable[T], seconds: float = WAIT) -> T:
    return await asyncio.wait_for(awaitable, seconds)


class News:
    """Something that changes, and somebody who waits until it is as he wants it."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def tell(self) -> None:
        self._changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async def wait() -> None:
            while not holds():
                self._changed.clear()
                await self._changed.wait()

        try:
            await within(wait())
        except TimeoutError:
            raise AssertionError(f"it did not come so far: {self!r}") from None


class Seen(News):
    """An observer of the bus."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __repr__(self) -> str:
        return repr(dict(self.counts))

    def _count(self, *names: str, n: int = 1) -> None:
        for name in names:
            self.counts[name] += n
        self.tell()

    def published(self, stream: str, event_type: str, n: int = 1) -> None:
        self._count("published", f"published {stream}", n=n)

    def publish_failed(self, code: str) -> None:
        self._count("publish failed", f"publish failed {code}")

    def delivered(self, stream: str, consumer: str, n: int, redelivered: int) -> None:
        self._count("delivered", f"delivered {consumer}", n=n)
        self._count("redelivered", n=redelivered)

    def settled(self, consumer: str, outcome: str, n: int = 1) -> None:
        self._count(outcome, f"{outcome} {consumer}", n=n)

    def handled(self, consumer: str, seconds: float) -> None:
        self._count(f"handled {consumer}")

    def dead_letter(self, consumer: str, reason: str) -> None:
        self._count("dead", f"dead {reason}")

    async def comes_to(self, name: str, count: int) -> None:
        await self.until(lambda: self.counts[name] >= count)


class Ear(News):
    """A handler that notes what it heard, then does as it is told."""

    def __init__(self, act: Callable[[Any, Context], Awaitable[None]] | None = None) -> None:
        super().__init__()
        self.heard: list[Any] = []
        self.contexts: list[Context] = []
        self.moments: list[float] = []
        self._act = act

    def __repr__(self) -> str:
        return repr(self.heard)

    async def __call__(self, event: Any, context: Context) -> None:
        self.heard.append(event)
        self.contexts.append(context)
        self.moments.append(asyncio.get_running_loop().time())
        self.tell()
        if self._act is not None:
            await self._act(event, context)

    @property
    def deliveries(self) -> list[int]:
        return [context.deliveries for context in self.contexts]

    async def hears(self, count: int) -> list[Any]:
        await self.until(lambda: len(self.heard) >= count)
        return self.heard


class LoopHarness(MemoryHarness):
    """The broker in memory, in real time."""

    def __init__(self) -> None:
        Harness.__init__(self)
        self.server = MemoryServer()

    def _make(self) -> Broker:
        return MemoryBroker(self.server)

    async def limit(self, allowed: Allowance) -> None:
        self.server = MemoryServer(allowed=allowed)

    async def advance(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def stop(self) -> None:
        self.server.stop()

    async def start(self) -> None:
        self.server.start()


class Stage:
    """A server and a database; ``process`` starts a bus on them, which is drained with the test."""

    def __init__(self, harness: Harness, path: Path) -> None:
        self.harness = harness
        self.path = path
        self.clock = ManualClock()
        self._databases: list[Database] = []
        self._buses: list[MessageBus] = []
        self._drained: set[int] = set()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Stage":
        await self._stack.enter_async_context(self.harness)
        self.database = self.new_database()
        async with self.database.begin() as tx:
            mine = [tables.outbox, tables.outbox_lease, tables.inbox, tables.dead_letters]
            await tx.run_sync(lambda connection: metadata.create_all(connection, tables=mine))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for bus in self._buses:
            if id(bus) not in self._drained:
                await bus.drain(0.3)
        for database in self._databases:
            await database.close()
        await self._stack.aclose()

    @property
    def is_memory(self) -> bool:
        return isinstance(self.harness, LoopHarness)

    def new_database(self) -> Database:
        """Another process's view of the same file."""
        database = Database(f"sqlite:///{self.path}")
        self._databases.append(database)
        return database

    def new_bus(
        self,
        *modules: Module,
        seen: Seen | None = None,
        database: Database | None = None,
        specs: Sequence[StreamSpec] = SPECS,
        running: bool = True,
        **options: Any,
    ) -> MessageBus:
        """A bus that was not started."""
        database = database or self.database
        begin: Callable[[], AbstractAsyncContextManager[AsyncConnection]] = database.begin
        given: dict[str, Any] = {"pod_id": f"pod-{len(self._buses)}", "clock": self.clock, "retry_delays": DELAYS}
        bus = MessageBus(self.harness.new_broker(), specs, begin, observer=seen, **(given | options))
        database.on_commit(bus.outbox.committed)
        for module in modules:
            bus.wire(module.name, module.hears, module.watches, module.answers, running=running)
        self._buses.append(bus)
        return bus

    async def process(self, *modules: Module, **options: Any) -> MessageBus:
        """A bus that listens."""
        bus = self.new_bus(*modules, **options)
        await within(bus.start())
        return bus

    async def end(self, bus: MessageBus, timeout: float = WAIT) -> Any:
        self._drained.add(id(bus))
        return await within(bus.drain(timeout), timeout + WAIT)

    async def die(self, bus: MessageBus) -> None:
        """The process is killed: nothing it holds is settled. A broker in the process is gone with it."""
        if isinstance(self.harness, LoopHarness):
            self.harness.server = MemoryServer()
        else:
            await bus.broker.close()

    async def publish_raw(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        """As ``nats pub`` would."""
        broker = await self.harness.make_broker()
        await within(broker.submit(subject, data, headers or {}))


def make_stage(kind: str, path: Path, nats: Callable[[], Any]) -> Stage:
    harness: Harness = LoopHarness() if kind == "memory" else NatsHarness(nats())
    return Stage(harness, path)
