"""(d) The bus against its peers, each figure of one run: messages per second, latency, memory, and how refusals pass.

In memory: a typed handler, acknowledged, against FastStream's TestNatsBroker and a bare asyncio.Queue. On a real
nats-server: against FastStream's pull and push subscribers and nats-py used by hand. Ours and the peers' run in turn,
round after round; a rate is the median of them, and a ratio the median of the ratios within each round, so that a busy
machine hits both sides alike. Exits non-zero below a goal.
"""

import argparse
import asyncio
import contextlib
import gc
import logging
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import structlog
import uvloop
from nats.aio.client import Client
from nats.js.api import StreamConfig
from rich.console import Console
from rich.table import Table

from benchmarks import bus_peers
from benchmarks.bus_peers import Countdown
from benchmarks.people import percentile
from nebengjek.bus import tables
from nebengjek.bus.interface import Broker
from nebengjek.bus.jetstream.broker import JetStreamBroker
from nebengjek.bus.memory.broker import MemoryBroker
from nebengjek.bus.memory.server import MemoryServer
from nebengjek.bus.messaging import MessageBus
from nebengjek.bus.specs import Retention, StreamSpec
from nebengjek.clock import SystemClock
from nebengjek.contracts.message import Event, uuid7
from nebengjek.database import Database, metadata
from nebengjek.module import Module, on
from nebengjek.streams import STREAMS
from tests.servers import nats_server

THINGS = StreamSpec(name="THINGS", subjects=("thing.>",), retention=Retention.LIMITS, max_msgs=2_000_000)
DEAD = next(spec for spec in STREAMS if spec.name == "DEAD_LETTER_STREAM")
TABLES = [tables.outbox, tables.outbox_lease, tables.inbox, tables.dead_letters]
TEXT = "x" * 100
CONSUMER = "thing_happened_bench"


class Thing(Event, frozen=True, kw_only=True, tag="thing.happened"):
    thing_id: str = "t"
    n: int = 0
    text: str = TEXT
    key: ClassVar[str] = "thing_id"
    number: ClassVar[str | None] = None


class Stand:
    """Buses on one server, each on a database of its own."""

    def __init__(self, broker: Callable[[], Broker], folder: Path) -> None:
        self.broker = broker
        self._folder = folder

    @contextlib.asynccontextmanager
    async def bus(
        self, handler: Callable[..., Coroutine[Any, Any, None]] | None = None, *, running: bool = True, **options: Any
    ) -> AsyncIterator[MessageBus]:
        """A bus with one consumer of ``Thing``; without a handler only its consumer is made."""
        database = Database(f"sqlite:///{self._folder / uuid7()}.sqlite3")
        async with database.begin() as tx:
            await tx.run_sync(metadata.create_all, tables=TABLES)
        bus = MessageBus(
            self.broker(), (THINGS, DEAD), database.begin, pod_id="bench", clock=SystemClock(), retry_delays=(0.01,)
        )
        database.on_commit(bus.outbox.committed)
        module = Module(name="bench", hears=[on(Thing, handler or _nothing, max_ack_pending=2000, **options)])
        bus.wire(module.name, module.hears, (), (), running=handler is not None and running)
        await bus.start()
        try:
            yield bus
        finally:
            await bus.drain(10.0)
            await database.close()


async def _nothing(event: Thing) -> None: ...


async def handled(stand: Stand, count: int) -> float:
    """Messages per second from the stream through a typed handler to the ack; they lie there when it begins."""
    async with stand.bus() as bus:
        await bus.broker.purge_stream("THINGS")
        for number in range(count):
            await bus.publish_soon(Thing(n=number))
        await bus.flush()
        arriving = Countdown(count)

        async def handle(event: Thing) -> None:
            arriving.one()

        async with stand.bus(handle, concurrency=256) as handling:
            rate = await arriving.rate()
            while (await handling.broker.consumer_info("THINGS", CONSUMER)).num_ack_pending:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0)
        return rate


async def through(stand: Stand, count: int) -> float:
    """Messages per second from ``publish_soon`` through the handler to the ack, both in this process."""
    arriving = Countdown(count)

    async def handle(event: Thing) -> None:
        arriving.one()

    async with stand.bus(handle, concurrency=256) as bus:
        began = time.perf_counter()
        for number in range(count):
            await bus.publish_soon(Thing(n=number))
        await arriving.rate()
        return count / (time.perf_counter() - began)


async def publish_awaited(stand: Stand, count: int) -> float:
    async with stand.bus() as bus:
        began = time.perf_counter()
        for number in range(count):
            await bus.publish(Thing(n=number))
        return count / (time.perf_counter() - began)


async def publish_in_a_window(stand: Stand, count: int) -> float:
    async with stand.bus() as bus:
        began = time.perf_counter()
        for number in range(count):
            await bus.publish_soon(Thing(n=number))
        await bus.flush()
        return count / (time.perf_counter() - began)


async def latency(stand: Stand, count: int) -> tuple[float, float]:
    """Milliseconds from publish to the handler, one at a time: p50 and p99."""
    times: list[float] = []
    arrived = asyncio.Event()

    async def handle(event: Thing) -> None:
        times.append((time.perf_counter() - began) * 1000)
        arrived.set()

    async with stand.bus(handle) as bus:
        for number in range(count):
            arrived.clear()
            began = time.perf_counter()
            await bus.publish(Thing(n=number))
            await arrived.wait()
    return percentile(times, 0.5), percentile(times, 0.99)


async def bytes_per_pending(stand: Stand, count: int) -> float:
    """Memory of a message of 130 bytes that waits in the memory broker, with its headers and its duplicate's id."""
    async with stand.bus() as bus:
        await bus.publish(Thing())
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(count):
            await bus.publish_soon(Thing(n=number))
        await bus.flush()
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        return taken / count


async def refused_and_replayed(stand: Stand, count: int) -> float:
    """Seconds in which ``count`` messages fail twice, become dead letters, are replayed, and are handled."""
    refused = True
    arriving = Countdown(count)

    async def handle(event: Thing) -> None:
        if refused:
            raise ValueError("not now")
        arriving.one()

    async with stand.bus(handle, concurrency=256, max_deliver=2) as bus:
        began = time.perf_counter()
        for number in range(count):
            await bus.publish_soon(Thing(n=number))
        while await bus.dead_letters.count() < count:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.05)
        refused = False
        for letter in await bus.dead_letters.list(limit=count):
            await bus.dead_letters.replay(letter.seq)
        await arriving.rate()
        return time.perf_counter() - began


class Report:
    """The table, and whether every goal was met."""

    def __init__(self) -> None:
        self.met = True
        self._table = Table("figure", "ours", "peer", "ratio", "goal")

    def ratio(self, name: str, ours: Sequence[float], peer: Sequence[float], goal: float | None) -> None:
        ratio = median(mine / theirs for mine, theirs in zip(ours, peer, strict=True))
        if goal is not None and ratio < goal:
            self.met = False
        wanted = f"{goal:g}" if goal is not None else ""
        self._table.add_row(name, f"{median(ours):,.0f}/s", f"{median(peer):,.0f}/s", f"{ratio:.2f}", wanted)

    def fact(self, name: str, value: str) -> None:
        self._table.add_row(name, value, "", "", "")

    def show(self) -> None:
        Console(width=110).print(self._table)


async def in_turn(rounds: int, *runs: Callable[[], Coroutine[Any, Any, float]]) -> list[list[float]]:
    """What each gave in each round; every other round goes backwards."""
    found: list[list[float]] = [[] for _ in runs]
    for number in range(rounds):
        for results, run in list(zip(found, runs, strict=True))[:: -1 if number % 2 else 1]:
            gc.collect()
            results.append(await run())
    return found


async def in_memory(report: Report, folder: Path, scale: int, rounds: int) -> None:
    def fresh() -> Stand:
        server = MemoryServer()
        return Stand(lambda: MemoryBroker(server), folder)

    count = 20_000 * scale
    ours, both, peer, queue = await in_turn(
        rounds,
        lambda: handled(fresh(), count),
        lambda: through(fresh(), count),
        lambda: bus_peers.faststream_in_memory(count // 10),
        lambda: bus_peers.queue(count),
    )
    report.ratio("memory: handled and acked / FastStream TestNatsBroker", ours, peer, 10)
    report.ratio("memory: published, handled and acked / TestNatsBroker", both, peer, None)
    report.ratio("memory: published, handled and acked / asyncio.Queue", both, queue, None)
    p50, p99 = await latency(fresh(), 1000 * scale)
    report.fact("memory: publish to handler", f"p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    report.fact("memory: a pending message", f"{await bytes_per_pending(fresh(), 10_000):.0f} bytes")
    spent = await refused_and_replayed(fresh(), 10_000)
    report.fact("memory: 10,000 through retry, dead letter, replay", f"{spent:.1f} s")


async def on_a_server(report: Report, folder: Path, url: str, scale: int, rounds: int) -> None:
    stand = Stand(lambda: JetStreamBroker(url, name="bench"), folder)
    count = 10_000 * scale
    peers = Client()
    await peers.connect(url)
    context = peers.jetstream()
    names = iter(range(1000))

    async def filled() -> tuple[str, str]:
        """A stream of its own with what is to be consumed in it."""
        name = f"PEER{next(names)}"
        await context.add_stream(StreamConfig(name=name, subjects=[f"{name}.>"]))
        await bus_peers.publish_in_a_window(url, f"{name}.thing", count)
        return name, f"{name}.thing"

    async def faststream(*, pull: bool) -> float:
        return await bus_peers.faststream(url, *await filled(), count, pull=pull)

    async def raw() -> float:
        return await bus_peers.fetch_and_ack(url, *await filled(), count)

    async def ours() -> float:
        return await handled(stand, count)

    handling, pull, push, by_hand = await in_turn(
        rounds, ours, lambda: faststream(pull=True), lambda: faststream(pull=False), raw
    )
    report.ratio("JetStream: handled and acked / FastStream pull", handling, pull, 2)
    report.ratio("JetStream: handled and acked / FastStream push", handling, push, None)
    report.ratio("JetStream: handled and acked / nats-py fetch and ack", handling, by_hand, 0.5)
    # Into the same stream, on a subject that its consumer does not hear.
    awaited, awaited_raw = await in_turn(
        3 * rounds,
        lambda: publish_awaited(stand, count // 20),
        lambda: bus_peers.publish_awaited(url, "thing.raw", count // 20),
    )
    window, window_raw = await in_turn(
        rounds,
        lambda: publish_in_a_window(stand, count),
        lambda: bus_peers.publish_in_a_window(url, "thing.raw", count),
    )
    report.ratio("JetStream: publish awaited / nats-py awaited", awaited, awaited_raw, 0.9)
    report.ratio("JetStream: publish_soon / nats-py publish_async", window, window_raw, 0.7)
    p50, p99 = await latency(stand, 500 * scale)
    report.fact("JetStream: publish to handler", f"p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    spent = await refused_and_replayed(stand, 10_000)
    report.fact("JetStream: 10,000 through retry, dead letter, replay", f"{spent:.1f} s")
    await peers.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller, under a minute")
    options = parser.parse_args()
    scale, rounds = (1, 2) if options.quick else (3, 5)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    report = Report()
    with tempfile.TemporaryDirectory() as folder, nats_server() as server:
        uvloop.run(in_memory(report, Path(folder), scale, rounds))
        uvloop.run(on_a_server(report, Path(folder), server.url, scale, rounds))
    report.show()
    return 0 if report.met else 1


if __name__ == "__main__":
    raise SystemExit(main())
