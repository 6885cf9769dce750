"""What the conformance suite needs of a broker's world: connections, time, and a server that can fail."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, TypeVar

import pytest

from nebengjek.bus.deliveries import Batch, PullStatus
from nebengjek.bus.interface import Allowance, Broker, ConnectionStatus
from nebengjek.bus.jetstream.broker import JetStreamBroker
from nebengjek.bus.memory.broker import MemoryBroker
from nebengjek.bus.memory.clock import VirtualClock
from nebengjek.bus.memory.server import MemoryServer
from nebengjek.bus.messages import CoreMessage, PubAck
from nebengjek.bus.specs import ConsumerSpec, StreamSpec
from tests.lateness import Lateness
from tests.servers import NatsServer, nats_server

R = TypeVar("R")

T = 0.2
"""The unit of time of the scenarios, in seconds: long enough for a real server, short enough for many tests."""
LATE = 0.25
"""How much later than promised a server may be. Nothing may be early."""
TRIES = 5
"""How often a scenario is played where the machine was too late for its times."""


class Harness(ABC):
    """A server, and connections to it that are closed with the test.

    ``jitter``: seconds by which two moments that we see may be nearer to each other than they were at the server.
    """

    jitter: float = 0.02
    reconnect_wait = 0.05
    """Seconds between two tries of the connections that are made next, where trying takes time."""

    def __init__(self) -> None:
        self._brokers: list[Broker] = []

    async def __aenter__(self) -> "Harness":
        """May be entered again after it was left: with nothing in it of the time before."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._brokers:
            await self._brokers.pop().close()

    @property
    def was_late(self) -> bool:
        """Did this machine keep us or the server from doing what was due? Then a failure may be its doing."""
        return False

    async def make_broker(self) -> Broker:
        """A connection that is up."""
        broker = self.new_broker()
        await broker.connect()
        await asyncio.wait_for(broker.wait_connected(), 5)
        return broker

    def new_broker(self) -> Broker:
        """A connection that was not made yet."""
        broker = self._make()
        self._brokers.append(broker)
        return broker

    @abstractmethod
    def _make(self) -> Broker: ...

    @abstractmethod
    async def limit(self, allowed: Allowance) -> None:
        """The connections that are made from now on belong to an account that may use no more than this."""

    @abstractmethod
    async def advance(self, seconds: float) -> None:
        """Let time pass."""

    async def until(self, awaitable: Awaitable[R], within: float = 10.0) -> R:
        """Let time pass until it is done, and return what it returned; fails after ``within`` seconds."""
        task = asyncio.ensure_future(awaitable)
        passed = 0.0
        while not task.done() and passed < within:
            await self.advance(0.01)
            passed += 0.01
        if not task.done():
            task.cancel()
            raise AssertionError(f"not done within {within} s")
        return task.result()

    @abstractmethod
    async def stop(self) -> None:
        """The server goes away."""

    @abstractmethod
    async def start(self) -> None:
        """It comes back at the same place."""

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def back(self, *brokers: Broker) -> None:
        """Wait until the connections are up again."""
        for broker in brokers:
            await self.until(broker.wait_connected(), 5)

    @abstractmethod
    async def cut_connection(self, broker: Broker) -> None:
        """Break one connection; it returns by itself."""


def played(harness: Harness, scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run it in a loop of its own, in ``harness``; again where it failed on a machine that was late itself."""

    async def run() -> None:
        async with harness:
            await scenario()

    for left in reversed(range(TRIES)):
        try:
            with asyncio.Runner() as runner:
                runner.run(run())
            return
        except (Exception, pytest.fail.Exception):
            if not left or not harness.was_late:
                raise


class MemoryHarness(Harness):
    jitter = 1e-6

    def __init__(self) -> None:
        super().__init__()
        self._clock = VirtualClock()
        self._server = MemoryServer(self._clock)

    def _make(self) -> Broker:
        return MemoryBroker(self._server)

    async def limit(self, allowed: Allowance) -> None:
        self._server = MemoryServer(self._clock, allowed)

    async def advance(self, seconds: float) -> None:
        await self._clock.advance(seconds)

    async def stop(self) -> None:
        self._server.stop()

    async def start(self) -> None:
        self._server.start()

    async def cut_connection(self, broker: Broker) -> None:
        assert isinstance(broker, MemoryBroker)
        broker.lost()
        broker.found()


class NatsHarness(Harness):
    """Connections go through a relay of our own, which can break them.

    Each harness has an account of the server for itself. ``ping_interval``: of the connections that are made next.
    """

    ping_interval = 5.0

    def __init__(self, server: NatsServer) -> None:
        super().__init__()
        self._server = server
        self._stopped = False
        self._lateness = Lateness()
        self._limited = ExitStack()

    async def __aenter__(self) -> Harness:
        self.account, self._port = self._server.fresh_account(), self._server.port
        self._relay = Relay(self._server.port)
        self._lateness = Lateness()
        await self._lateness.__aenter__()
        await self._relay.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        await self._lateness.__aexit__(kind, error, trace)
        await self._relay.close()
        if self._stopped:
            self._stopped = False
            await asyncio.to_thread(self._server.start)
        # What streams reserve of the server's memory and disk is given back.
        sweeper = JetStreamBroker(self.account, name="sweeper")
        await sweeper.connect()
        for info in await sweeper.streams():
            await sweeper.delete_stream(info.spec.name)
        await sweeper.close()
        await asyncio.to_thread(self._limited.close)

    async def limit(self, allowed: Allowance) -> None:
        limits = {"max_mem": allowed.memory, "max_file": allowed.storage, "max_streams": allowed.streams}
        said = ", ".join(f"{name}: {value}" for name, value in (limits | {"max_consumers": allowed.consumers}).items())
        access = f"accounts {{ L {{ jetstream {{ {said} }}, users: [{{ user: l, password: x }}] }} }}, no_auth_user: l"
        server = await asyncio.to_thread(self._limited.enter_context, nats_server(access=access))
        await self._relay.close()
        self.account, self._port = server.url, server.port
        self._relay = Relay(server.port)
        await self._relay.open()

    @property
    def was_late(self) -> bool:
        return self._lateness.seconds > LATE / 10

    def _make(self) -> Broker:
        url = self.account.replace(str(self._port), str(self._relay.port))
        return JetStreamBroker(
            url,
            name="conformance",
            reconnect_wait=self.reconnect_wait,
            ping_interval=self.ping_interval,
            connect_timeout=1.0,
        )

    async def advance(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def stop(self) -> None:
        await self._end(self._server.stop)

    async def kill(self) -> None:
        """The server's process ends in the middle of whatever it does: kill -9."""
        await self._end(self._server.kill)

    async def _end(self, end: Callable[[], None]) -> None:
        down = [self._down(broker) for broker in self._brokers if broker.status is ConnectionStatus.UP]
        self._stopped = True
        self._relay.refuse()
        await asyncio.to_thread(end)
        for event in down:
            await asyncio.wait_for(event.wait(), 5)
        await self._relay.close()

    async def start(self) -> None:
        await asyncio.to_thread(self._server.start)
        self._stopped = False
        await self._relay.open()

    async def cut_connection(self, broker: Broker) -> None:
        down = self._down(broker)
        self._relay.cut()
        await asyncio.wait_for(down.wait(), 5)

    def fall_silent(self) -> None:
        """The connections of now stay open, and nothing passes on them any more; later ones work."""
        self._relay.fall_silent()

    def _down(self, broker: Broker) -> asyncio.Event:
        down = asyncio.Event()
        broker.on_status(lambda status: down.set() if status is ConnectionStatus.DOWN else None)
        return down


class Relay:
    """A TCP relay to the server, on a port of its own."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.port = 0
        self._listener: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._silent: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        self._writers.add(there_writer)
        for source, target in ((reader, there_writer), (there_reader, writer)):
            task = asyncio.create_task(self._copy(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65536):
                if asyncio.current_task() in self._silent:
                    return
                target.write(data)
                await target.drain()
        target.close()

    def fall_silent(self) -> None:
        """What is open stays open; nobody reads from it, nothing is written to it."""
        self._silent |= self._tasks

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def refuse(self) -> None:
        """Take no further connection."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def close(self) -> None:
        """Take no further connection, and end those that there are."""
        self.refuse()
        self.cut()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for writer in tuple(self._writers):
            with suppress(ConnectionError):
                await writer.wait_closed()
        self._writers.clear()


# -- words that the scenarios use


async def publish(broker: Broker, *subjects: str, data: bytes = b"x", headers: dict[str, str] | None = None) -> None:
    """One message for each subject, one after the other."""
    for subject in subjects:
        await submit(broker, subject, data, headers)


async def submit(broker: Broker, subject: str, data: bytes = b"x", headers: dict[str, str] | None = None) -> PubAck:
    return await asyncio.wait_for(broker.submit(subject, data, headers or {}), 5)


async def stream(broker: Broker, name: str = "S", *subjects: str, **options: Any) -> StreamSpec:
    """Create a stream on ``<name>.>`` in lower case, unless subjects are given."""
    spec = StreamSpec(name=name, subjects=subjects or (f"{name.lower()}.>",), **options)
    await broker.create_stream(spec)
    return spec


async def consumer(broker: Broker, name: str = "c", of: str = "S", *filters: str, **options: Any) -> ConsumerSpec:
    spec = ConsumerSpec(name=name, filters=filters, **options)
    await broker.create_consumer(of, spec)
    return spec


async def pull(
    harness: Harness, broker: Broker, batch: int = 1, *, name: str = "c", of: str = "S", expires: float = 5 * T
) -> Batch:
    """A pull that waits up to ``expires``."""
    return await harness.until(broker.pull(of, name, batch=batch, expires=expires), expires + 2)


async def timed_pull(harness: Harness, broker: Broker, expires: float = 5 * T) -> tuple[Batch, float]:
    """The batch, and when it came, by the broker's clock."""

    async def timed() -> tuple[Batch, float]:
        return await broker.pull("S", "c", expires=expires), broker.monotonic()

    return await harness.until(timed(), expires + 2)


async def here(broker: Broker, batch: int = 10, *, name: str = "c", of: str = "S") -> Batch:
    """A pull of what is there now."""
    found = await broker.pull(of, name, batch=batch, no_wait=True)
    missing = batch - len(found.messages)
    if not broker.durable or not missing:
        return found
    # A server acknowledges a publish before its consumers have heard of it.
    await asyncio.sleep(0.02)
    rest = await broker.pull(of, name, batch=missing, no_wait=True)
    return Batch(found.messages + rest.messages, rest.status)


def seqs(batch: Batch) -> list[int]:
    return [message.seq for message in batch.messages]


def counts(batch: Batch) -> list[int]:
    return [message.deliveries for message in batch.messages]


async def nothing_comes(harness: Harness, broker: Broker, *, name: str = "c", of: str = "S", within: float) -> None:
    batch = await pull(harness, broker, name=name, of=of, expires=within)
    assert batch == Batch([], PullStatus.TIMEOUT), seqs(batch)


class Ear:
    """Hears core messages on a subject."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self.messages: list[CoreMessage] = []
        self._heard = asyncio.Event()

    async def listen(self, broker: Broker, subject: str, queue: str | None = None) -> "Ear":
        await broker.subscribe(subject, self._hear, queue=queue)
        return self

    async def _hear(self, message: CoreMessage) -> None:
        self.messages.append(message)
        self._heard.set()

    async def hears(self, count: int) -> list[CoreMessage]:
        """Wait for so many messages in all."""

        async def enough() -> None:
            while len(self.messages) < count:
                self._heard.clear()
                await self._heard.wait()

        await self._harness.until(enough())
        return self.messages
