"""Bad moments: the server goes in each phase, connections break, consumers vanish, streams are purged (L1-L3, M4).

Each counts what was handled and acked, how soon loops go on, and how often they ask while there is nothing to ask.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from structlog.typing import EventDict

from nebengjek.bus.deliveries import Batch, Consumption, PullStatus
from nebengjek.bus.handling import Context
from nebengjek.bus.interface import Broker, ConnectionStatus
from nebengjek.bus.memory.broker import MemoryBroker
from nebengjek.bus.memory.clock import VirtualClock
from nebengjek.bus.memory.server import MemoryServer
from nebengjek.bus.messaging import MessageBus
from nebengjek.bus.specs import StreamSpec
from nebengjek.module import Module, on, on_batch
from tests.bus.stage import SPECS, Ear, News, Noted, Seen, Stage, Thing, within
from tests.conformance.harness import NatsHarness
from tests.lateness import at_most

SOON = 2.0
"""Seconds after the server's return in which loops must have gone on."""


class Asked(News):
    """How often the loops of a bus ask for messages, and make consumers."""

    def __init__(self, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.pulls = self.creates = 0
        consume, create = broker.consume, broker.create_consumer

        async def counted_consume(*given: Any, **named: Any) -> Consumption:
            source = await consume(*given, **named)
            ask = source.next

            async def counted(limit: int) -> Batch:
                self.pulls += 1
                self.tell()
                return await ask(limit)

            monkeypatch.setattr(source, "next", counted)
            return source

        async def counted_create(*given: Any) -> Any:
            self.creates += 1
            self.tell()
            return await create(*given)

        monkeypatch.setattr(broker, "consume", counted_consume)
        monkeypatch.setattr(broker, "create_consumer", counted_create)

    def __repr__(self) -> str:
        return f"{self.pulls} pulls, {self.creates} creates"


async def until_settled(bus: MessageBus, stream: str, consumer: str) -> None:
    """Wait until nothing is pending and nothing waits for its ack."""

    async def settled() -> None:
        info = await bus.broker.consumer_info(stream, consumer)
        while info.num_pending or info.num_ack_pending:
            await asyncio.sleep(0.02)
            info = await bus.broker.consumer_info(stream, consumer)

    await within(settled())


async def ready(*buses: MessageBus) -> None:
    async def all_ready() -> None:
        while not all([(await bus.health()).ready for bus in buses]):  # noqa: ASYNC110 - health is asked for
            await asyncio.sleep(0.02)

    await within(all_ready())


def now() -> float:
    return asyncio.get_running_loop().time()


# -- the server goes and returns


async def test_while_loops_wait_for_messages(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    ear, seen = Ear(), Seen()
    bus = stage.new_bus(Module(name="m", hears=[on(Noted, ear), on(Thing, ear)]), seen=seen)
    asked = Asked(bus.broker, monkeypatch)
    await within(bus.start())
    for away in (0.3, 0.0):
        await stage.harness.stop()
        assert not (await bus.health()).ready
        before = asked.pulls
        await stage.harness.advance(away)
        # Each loop learns of it and asks again, which waits until the server is back.
        assert asked.pulls - before <= 6
        await stage.harness.start()
        async with at_most(SOON):
            await stage.harness.back(bus.broker)
            heard = len(ear.heard)
            await within(asyncio.gather(bus.publish(Noted()), bus.publish(Thing())))
            await ear.hears(heard + 2)
        await ready(bus)
    await seen.comes_to("acked", 4)
    assert ear.deliveries == [1, 1, 1, 1]


@pytest.mark.real
async def test_with_the_pauses_of_production_they_go_on_as_soon(nats_stage: Stage) -> None:
    assert isinstance(nats_stage.harness, NatsHarness)
    nats_stage.harness.reconnect_wait = 2.0
    ear = Ear()
    bus = await nats_stage.process(Module(name="m", hears=[on(Noted, ear)]))
    await nats_stage.harness.stop()
    await nats_stage.harness.start()
    async with at_most(SOON):
        publishing = asyncio.create_task(bus.publish(Noted()))
        await ear.hears(1)
    await publishing


async def test_while_much_is_published(stage: Stage) -> None:
    """Each is stored once, each is handled, whatever of it the server had taken when it went."""
    seen = Seen()
    ear = Ear()
    # What was on its way to us when the server went comes again when its ack wait is over.
    bus = await stage.process(Module(name="m", hears=[on(Noted, ear, ack_wait=2.0)]), seen=seen)
    answers: list[Any] = []
    waiting = [asyncio.create_task(bus.publish(Noted(n=n))) for n in range(100)]
    for n in range(100, 200):
        await bus.publish_soon(Noted(n=n), lambda _, answer: answers.append(answer))
    async with stage.database.begin() as tx:
        await bus.outbox.add(tx, *(Noted(thing_id=f"e{n % 5}", n=n) for n in range(200, 300)))
    await seen.comes_to("published AUDIT", 1)
    await stage.harness.stop()
    waiting += [asyncio.create_task(bus.publish(Noted(n=n))) for n in range(300, 320)]
    await stage.harness.start()
    await within(asyncio.gather(*waiting))
    await within(bus.flush())
    await ear.until(lambda: {event.n for event in ear.heard} == set(range(320)))
    said = [event.n async for event in bus.replay(Noted)]
    assert sorted(said) == list(range(320))
    assert len(answers) == 100
    # One entity's events stay in their order.
    for entity in range(5):
        numbers = [n for n in said if 200 <= n < 300 and n % 5 == entity]
        assert numbers == sorted(numbers)
    await until_settled(bus, "AUDIT", "audit_noted_m")


@pytest.mark.parametrize("batch", [False, True], ids=["single", "batch"])
async def test_while_handlers_run_and_are_done_before_it_is_back(stage: Stage, batch: bool) -> None:
    """What they settle meanwhile is kept, and sent: nothing comes twice."""
    go, handled, news = asyncio.Event(), [], News()

    async def one(event: Noted) -> None:
        await go.wait()
        handled.append(event.n)
        news.tell()

    async def many(events: Sequence[Noted]) -> None:
        begun.set()
        await go.wait()
        handled.extend(event.n for event in events)
        news.tell()

    begun, seen = asyncio.Event(), Seen()
    hears = on_batch(Noted, many, size=8) if batch else on(Noted, one, concurrency=8)
    bus = await stage.process(Module(name="m", hears=[hears]), seen=seen)
    for n in range(8):
        await bus.publish(Noted(n=n))
    await seen.comes_to("delivered", 8 if not batch else 1)
    await stage.harness.stop()
    go.set()
    await news.until(lambda: len(handled) >= (8 if not batch else 1))
    await stage.harness.start()
    await stage.harness.back(bus.broker)
    await within(bus.publish(Noted(n=8)))
    await news.until(lambda: 8 in handled)
    await until_settled(bus, "AUDIT", "audit_noted_m")
    assert sorted(handled) == list(range(9))
    assert (await bus.broker.consumer_info("AUDIT", "audit_noted_m")).num_redelivered == 0


@pytest.mark.parametrize("batch", [False, True], ids=["single", "batch"])
async def test_a_connection_that_breaks_again_and_again_under_load_loses_nothing(stage: Stage, batch: bool) -> None:
    handled: list[int] = []
    news = News()

    async def one(event: Noted) -> None:
        await asyncio.sleep(0)
        handled.append(event.n)
        news.tell()

    async def many(events: Sequence[Noted]) -> None:
        await asyncio.sleep(0)
        handled.extend(event.n for event in events)
        news.tell()

    # What was on its way when the connection broke comes again when its ack wait is over.
    options: dict[str, Any] = {"ack_wait": 0.5, "max_deliver": 20}
    hears = on_batch(Noted, many, size=16, **options) if batch else on(Noted, one, concurrency=4, **options)
    bus = await stage.process(Module(name="m", hears=[hears]))
    publisher = await stage.process()
    publishing = asyncio.gather(*(publisher.publish(Noted(n=n)) for n in range(300)))
    for share in (10, 100, 200):
        await news.until(lambda share=share: len(handled) >= share)  # type: ignore[misc]
        await stage.harness.cut_connection(bus.broker)
    await within(publishing)
    await news.until(lambda: set(handled) == set(range(300)))
    await until_settled(bus, "AUDIT", "audit_noted_m")
    assert await bus.dead_letters.count() == 0
    await ready(bus)


# -- what vanishes under a running loop


async def test_a_consumer_that_cannot_be_made_again_is_tried_in_growing_pauses(
    stage: Stage, logged: list[EventDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else's stream is in its place. Health says who is deaf; when it is mended the loop goes on."""
    ear = Ear()
    module = Module(name="m", hears=[on(Noted, ear), on(Thing, ear)])
    bus = stage.new_bus(module)
    asked = Asked(bus.broker, monkeypatch)
    await within(bus.start())
    ensure, taken = bus.broker.ensure_stream, asyncio.Event()

    async def late(spec: StreamSpec) -> Any:
        await taken.wait()
        return await ensure(spec)

    monkeypatch.setattr(bus.broker, "ensure_stream", late)
    await bus.broker.delete_stream("AUDIT")
    await bus.broker.create_stream(StreamSpec(name="THEIRS", subjects=("audit.>",)))
    taken.set()
    started, pulls = now(), asked.pulls
    refused = [entry for entry in logged if entry["event"] == "consumer.not_created"]
    while len(refused) < 3:
        await asyncio.sleep(0.05)
        refused = [entry for entry in logged if entry["event"] == "consumer.not_created"]
        assert now() - started < 40
    # After 0, 0.25 and 0.75 s.
    assert now() - started >= 0.7
    assert asked.pulls - pulls <= 8
    assert len([entry for entry in logged if entry["event"] == "consumer.gone"]) == 1
    moving = {one.consumer: one.moving for one in (await bus.health()).consumers}
    assert moving == {"audit_noted_m": False, "thing_happened_m": True}
    await bus.broker.delete_stream("THEIRS")
    async with at_most(SOON):
        await ready(bus)
    await bus.publish(Noted(n=7))
    await ear.until(lambda: [event.n for event in ear.heard] == [7])


class Ghosts(MemoryBroker):
    """As a server that has lost a consumer and did not notice: pulls come to their end, and bring nothing."""

    async def consume(self, stream: str, consumer: str, *, prefetch: int, expires: float = 5.0) -> Consumption:
        source = await super().consume(stream, consumer, prefetch=prefetch, expires=expires)
        ask = source.next

        async def next(limit: int) -> Batch:
            batch = await ask(limit)
            if batch.status in (PullStatus.NO_CONSUMER, PullStatus.CONSUMER_DELETED):
                await self.sleep(expires)
                batch = Batch([], PullStatus.TIMEOUT)
            return batch

        source.next = next  # type: ignore[method-assign]
        return source


async def test_a_consumer_that_the_server_does_not_miss_is_missed_by_its_loop(memory_stage: Stage) -> None:
    """Seen with nats-server 2.14: a consumer made at the moment in which its stream was deleted."""
    clock, ear = VirtualClock(), Ear()
    broker = Ghosts(MemoryServer(clock))
    bus = MessageBus(broker, SPECS, memory_stage.database.begin, pod_id="p", clock=memory_stage.clock)
    bus.wire("m", [on(Noted, ear)], [], [])
    await bus.start()
    await broker.delete_consumer("AUDIT", "audit_noted_m")
    assert not (await bus.health()).ready
    await bus.publish(Noted(n=1))
    await clock.advance(20.0)
    assert (await bus.health()).ready
    await ear.hears(1)
    await bus.drain(0.1)


async def test_a_batch_consumer_that_is_deleted_is_made_again(stage: Stage) -> None:
    handled: list[int] = []
    news = News()

    async def many(events: Sequence[Thing]) -> None:
        handled.extend(event.n for event in events)
        news.tell()

    bus = await stage.process(Module(name="m", hears=[on_batch(Thing, many)]))
    await bus.publish(Thing(n=1))
    await news.until(lambda: handled == [1])
    await bus.broker.delete_consumer("THINGS", "thing_happened_m")
    await ready(bus)
    await bus.publish(Thing(n=2))
    await news.until(lambda: handled == [1, 2])


async def test_a_purge_under_load_leaves_nobody_stuck(stage: Stage) -> None:
    """What is purged is gone, what is handled at that moment is handled, what comes later comes."""

    async def work(event: Any, context: Context) -> None:
        await asyncio.sleep(0.001)

    ear, seen = Ear(work), Seen()
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear, concurrency=4, ack_wait=0.5)]), seen=seen)

    async def publish(beginning: int) -> None:
        for n in range(beginning, beginning + 100):
            await bus.publish(Thing(n=n))

    publishing = asyncio.gather(publish(0), publish(100))
    async with stage.database.begin() as tx:
        await bus.outbox.add(tx, *(Thing(thing_id=f"o{n}", n=n) for n in range(200, 300)))
    purged = 0
    for count in (20, 60, 120):
        await seen.comes_to("published THINGS", count)
        purged += await bus.broker.purge_stream("THINGS")
    await within(publishing)
    await bus.publish(Thing(n=1000))
    await ear.until(lambda: 1000 in [event.n for event in ear.heard])
    await until_settled(bus, "THINGS", "thing_happened_m")
    handled = {event.n for event in ear.heard}
    assert len(handled) + purged >= 301

    async def empty() -> None:
        while await bus.outbox.size():  # noqa: ASYNC110 - only the table knows
            await asyncio.sleep(0.02)

    await within(empty())
    assert (await bus.broker.stream_info("THINGS")).messages == 0
    assert await bus.dead_letters.count() == 0
    await ready(bus)


# -- several at once


async def test_pods_that_start_at_one_moment_make_one_of_everything(stage: Stage) -> None:
    ears, seen = [Ear() for _ in range(4)], Seen()
    buses = [stage.new_bus(Module(name="m", hears=[on(Thing, ear), on(Noted, ear)]), seen=seen) for ear in ears]
    await within(asyncio.gather(*(bus.start() for bus in buses)))
    for n in range(40):
        await buses[n % 4].publish(Thing(n=n))
        await buses[n % 4].publish(Noted(n=n))
    await seen.comes_to("acked", 80)
    heard = sorted((type(event).__name__, event.n) for ear in ears for event in ear.heard)
    assert heard == sorted([(name, n) for name in ("Thing", "Noted") for n in range(40)])
    assert [info.name for info in await buses[0].broker.consumers("THINGS")] == ["thing_happened_m"]
    await ready(*buses)


async def test_pods_that_start_at_one_moment_after_a_change_of_settings(stage: Stage) -> None:
    """The old and the new one, in whatever order: both listen, nothing is lost."""
    old = await stage.process(Module(name="m", hears=[on(Thing, Ear(), ack_wait=11.0)]), running=False)
    for n in range(20):
        await old.publish(Thing(n=n))
    ears, seen = [Ear() for _ in range(3)], Seen()
    buses = [
        stage.new_bus(Module(name="m", hears=[on(Thing, ear, ack_wait=20.0 + wait)]), seen=seen)
        for wait, ear in enumerate(ears)
    ]
    await within(asyncio.gather(*(bus.start() for bus in buses)))
    await seen.comes_to("acked", 20)
    assert sorted(event.n for ear in ears for event in ear.heard) == list(range(20))
    spec = (await buses[0].broker.consumer_info("THINGS", "thing_happened_m")).spec
    assert spec.ack_wait in (20.0, 21.0, 22.0)
    await ready(*buses)


# -- the end


async def test_loops_end_at_once_after_many_empty_pulls(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    bus = stage.new_bus(Module(name="m", hears=[on(Thing, Ear(), ack_wait=0.03), on(Noted, Ear(), ack_wait=0.03)]))
    asked = Asked(bus.broker, monkeypatch)
    await within(bus.start())
    await asked.until(lambda: asked.pulls >= 30)
    async with at_most(1.0):
        report = await stage.end(bus)
    assert (report.finished, report.abandoned) == (0, 0)


async def test_a_drain_that_is_cut_off_leaves_nothing_behind(stage: Stage) -> None:
    async def stuck(event: Any, context: Context) -> None:
        await asyncio.Event().wait()

    before = asyncio.all_tasks()
    ear = Ear(stuck)
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear), on(Noted, Ear())]))
    await bus.publish(Thing(n=3))
    await ear.hears(1)
    draining = asyncio.create_task(stage.end(bus, 60))
    await asyncio.sleep(0.05)
    draining.cancel()
    await within(asyncio.wait((draining,)))
    assert draining.cancelled()
    assert bus.broker.status is ConnectionStatus.CLOSED
    for _ in range(20):
        await asyncio.sleep(0)
    left = {str(task.get_coro()) for task in asyncio.all_tasks() - before if not task.done()}
    assert {name for name in left if "Relay." not in name} == set()
    # What it was working on comes again to the next.
    again = Ear()
    await stage.process(Module(name="m", hears=[on(Thing, again)]))
    await again.hears(1)
    assert again.deliveries == [2]
