"""The server there, away, or unwilling; consumers that vanish under a running loop; health (L1, L8, M3, M4)."""

import asyncio
from typing import Any

import pytest
from msgspec import structs
from structlog.typing import EventDict

from nebengjek.bus.deliveries import Batch, Consumption, PullStatus
from nebengjek.bus.errors import ApiError
from nebengjek.bus.handling import Context
from nebengjek.bus.interface import ConnectionStatus
from nebengjek.bus.memory.broker import MemoryBroker
from nebengjek.bus.memory.clock import VirtualClock
from nebengjek.bus.memory.server import MemoryServer
from nebengjek.bus.messaging import MessageBus
from nebengjek.bus.runner import PULL_EXPIRES
from nebengjek.bus.specs import ConsumerSpec, Deliver, Retention, Storage, StreamSpec
from nebengjek.module import Module, on
from tests.bus.stage import AUDIT, DEAD, SPECS, THINGS, Counted, Ear, Noted, Seen, Stage, Thing, within

# -- start


async def test_started_means_listening(stage: Stage) -> None:
    ear = Ear()
    bus = stage.new_bus(Module(name="m", hears=[on(Thing, ear), on(Noted, Ear())]))
    assert not (await bus.health()).ready
    await bus.start()
    health = await bus.health()
    assert health.ready
    assert {(one.stream, one.consumer) for one in health.consumers} == {
        ("THINGS", "thing_happened_m"),
        ("AUDIT", "audit_noted_m"),
    }
    await bus.publish(Thing())
    await ear.hears(1)


async def test_streams_and_consumers_are_made_as_they_were_asked_for(stage: Stage) -> None:
    hears = [on(Thing, Ear(), ack_wait=11.0, max_deliver=4, max_ack_pending=7), on(Noted, Ear())]
    bus = await stage.process(Module(name="m", hears=hears))
    assert {info.spec.name for info in await bus.broker.streams()} == {spec.name for spec in SPECS}
    spec = (await bus.broker.consumer_info("THINGS", "thing_happened_m")).spec
    assert (spec.filters, spec.deliver, spec.backoff) == (("thing.happened.*",), Deliver.ALL, ())
    assert (spec.ack_wait, spec.max_deliver, spec.max_ack_pending) == (11.0, 4, 7)
    # Days of an audit trail are not for phones and locks.
    assert (await bus.broker.consumer_info("AUDIT", "audit_noted_m")).spec.deliver is Deliver.NEW


async def test_an_older_consumer_is_brought_up_to_date(stage: Stage) -> None:
    first = await stage.process(Module(name="m", hears=[on(Thing, Ear(), ack_wait=11.0)]))
    await stage.end(first)
    second = await stage.process(Module(name="m", hears=[on(Thing, Ear(), ack_wait=22.0)]))
    assert (await second.broker.consumer_info("THINGS", "thing_happened_m")).spec.ack_wait == 22.0


async def test_with_the_server_away_it_starts_and_catches_up_behind(stage: Stage) -> None:
    ear = Ear()
    await stage.harness.stop()
    bus = stage.new_bus(Module(name="m", hears=[on(Thing, ear)]))
    await within(bus.start())
    health = await bus.health()
    assert (health.ready, health.established) == (False, False)
    assert [one.moving for one in health.consumers] == [False]
    publishing = asyncio.create_task(bus.publish(Thing(n=1)))
    await stage.harness.start()
    await within(publishing)
    await ear.hears(1)
    assert (await bus.health()).ready


async def test_a_stream_that_the_server_refuses_stops_the_start(stage: Stage) -> None:
    bus = await stage.process()
    await stage.end(bus)
    other = structs.replace(AUDIT, retention=Retention.INTEREST)
    with pytest.raises(ApiError) as refused:
        await stage.process(specs=(THINGS, other, DEAD))
    assert refused.value.code == 10052


def noted_twice() -> list[Module]:
    return [Module(name="m", hears=[on(Thing, Ear())]), Module(name="m", hears=[on(Thing, Ear())])]


async def test_two_consumers_of_one_name_are_refused(memory_stage: Stage) -> None:
    with pytest.raises(ValueError, match="thing_happened_m"):
        memory_stage.new_bus(*noted_twice())


async def test_an_event_that_no_stream_takes_cannot_be_heard(memory_stage: Stage) -> None:
    with pytest.raises(ValueError, match=r"no stream takes thing\.happened"):
        memory_stage.new_bus(Module(name="m", hears=[on(Thing, Ear())]), specs=(AUDIT, DEAD))


# -- consumers that vanish


async def test_a_consumer_that_was_deleted_is_made_again_and_nothing_is_lost(
    stage: Stage, logged: list[EventDict]
) -> None:
    """On a stream that keeps everything it goes on where it was; what was not acked comes again."""
    go = asyncio.Event()

    async def wait(event: Any, context: Context) -> None:
        if event.n == 2:
            await go.wait()

    ear, seen = Ear(wait), Seen()
    bus = await stage.process(Module(name="m", hears=[on(Noted, ear)]), seen=seen)
    for n in range(4):
        await bus.publish(Noted(n=n))
    await seen.comes_to("acked", 3)
    await bus.health()
    await bus.broker.delete_consumer("AUDIT", "audit_noted_m")
    await bus.publish(Noted(n=4))
    await bus.publish(Noted(n=5))
    await ear.until(lambda: {event.n for event in ear.heard} == set(range(6)))
    go.set()
    await seen.until(lambda: seen.counts["acked"] >= 6)
    # 0 and 1 were acked below the one that was not.
    assert [event.n for event in ear.heard].count(0) == 1
    assert len([entry for entry in logged if entry["event"] == "consumer.gone"]) == 1
    assert (await bus.health()).ready
    assert await bus.dead_letters.count() == 0


async def test_a_consumer_that_vanishes_before_it_has_acked_anything_begins_at_the_beginning(stage: Stage) -> None:
    """A new consumer of such a stream begins with what is new: this one is not new."""
    ear = Ear()
    bus = await stage.process(Module(name="m", hears=[on(Noted, ear)]))
    await bus.health()
    await bus.broker.delete_consumer("AUDIT", "audit_noted_m")
    for n in range(3):
        await bus.publish(Noted(n=n))
    await ear.hears(3)
    assert sorted(event.n for event in ear.heard) == [0, 1, 2]


async def test_a_stream_that_vanishes_is_made_again_with_its_consumers(stage: Stage) -> None:
    ear, seen = Ear(), Seen()
    bus = await stage.process(Module(name="m", hears=[on(Noted, ear), on(Thing, ear)]), seen=seen)
    for n in range(5):
        await bus.publish(Noted(n=n))
    await seen.comes_to("acked", 5)
    await bus.health()
    await bus.broker.delete_stream("AUDIT")
    # Its sequences begin at 1 again, below what was acked.
    await _published_after_a_while(bus, Noted(n=100))
    await ear.until(lambda: 100 in [event.n for event in ear.heard])
    await bus.publish(Thing(n=200))
    await ear.until(lambda: 200 in [event.n for event in ear.heard])


async def _published_after_a_while(bus: MessageBus, event: Noted) -> None:
    """Publish as soon as there is a stream again."""
    async with asyncio.timeout(8):
        while "AUDIT" not in {info.spec.name for info in await bus.broker.streams()}:  # noqa: ASYNC110 - asks the server
            await asyncio.sleep(0.02)
    await bus.publish(event)


async def test_a_server_that_restarts_loses_nothing(stage: Stage) -> None:
    memory = StreamSpec(name="THINGS", subjects=("thing.>",), retention=Retention.INTEREST, storage=Storage.MEMORY)
    ear, seen = Ear(), Seen()
    bus = await stage.process(
        Module(name="m", hears=[on(Noted, ear), on(Thing, ear)]), seen=seen, specs=(memory, AUDIT, DEAD)
    )
    await bus.publish(Noted(n=1))
    await ear.hears(1)
    await stage.harness.restart()
    await within(bus.broker.wait_connected())
    await within(bus.publish(Noted(n=2)))
    await ear.until(lambda: 2 in [event.n for event in ear.heard])
    # The memory stream is gone with its consumers, until the loop has made them again.
    await _again(bus, Thing(n=3), ear)


async def _again(bus: MessageBus, event: Thing, ear: Ear) -> None:
    async with asyncio.timeout(8):
        while not {(info.name) for info in await _consumers(bus, "THINGS")}:  # noqa: ASYNC110 - asks the server
            await asyncio.sleep(0.02)
    await within(bus.publish(event))
    await ear.until(lambda: event.n in [one.n for one in ear.heard])


async def _consumers(bus: MessageBus, stream: str) -> list[Any]:
    try:
        return list(await bus.broker.consumers(stream))
    except ApiError:
        return []


async def test_another_pod_may_have_been_first_to_make_it_again(stage: Stage) -> None:
    ear, seen = Ear(), Seen()
    module = Module(name="m", hears=[on(Noted, ear)])
    buses = [await stage.process(module, seen=seen), await stage.process(module, seen=seen)]
    await buses[0].publish(Noted(n=0))
    await seen.comes_to("acked", 1)
    # The two know of different floors.
    await buses[0].health()
    await buses[0].broker.delete_consumer("AUDIT", "audit_noted_m")
    for n in range(1, 20):
        await buses[n % 2].publish(Noted(n=n))
    await ear.until(lambda: {event.n for event in ear.heard} == set(range(20)))
    for bus in buses:
        await stage.harness.until(_ready(bus))


async def _ready(bus: MessageBus) -> None:
    while not (await bus.health()).ready:  # noqa: ASYNC110 - health is asked for
        await asyncio.sleep(0.02)


# -- health


async def test_lag_is_what_was_published_and_not_delivered(stage: Stage) -> None:
    async def wait(event: Any, context: Context) -> None:
        await go.wait()

    go, ear = asyncio.Event(), Ear(wait)
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear, concurrency=1, max_ack_pending=2)]))
    for n in range(10):
        await bus.publish(Thing(n=n))
    await ear.hears(1)
    [health] = (await bus.health()).consumers
    assert health.running == 1
    assert health.ack_pending in (1, 2)
    assert health.lag == 10 - health.ack_pending
    # One that works is alive, however long it takes.
    assert health.moving
    go.set()
    await ear.hears(10)


async def test_what_nobody_wants_any_more_is_shown(stage: Stage) -> None:
    old = await stage.process(Module(name="old", hears=[on(Thing, Ear()), on(Counted, Ear())]))
    await stage.end(old)
    bus = await stage.process(
        Module(name="new", hears=[on(Thing, Ear())]), Module(name="old", hears=[on(Counted, Ear())])
    )
    # Consumers of modules that other pods run are wanted.
    assert (await bus.health()).orphans == ["THINGS/thing_happened_old"]


class DeafBroker(MemoryBroker):
    """Pulls that are never answered."""

    async def consume(self, stream: str, consumer: str, *, prefetch: int, expires: float = 5.0) -> Consumption:
        return Deaf(self.monotonic())


class Deaf(Consumption):
    def __init__(self, now: float) -> None:
        self._now = now

    async def next(self, limit: int) -> Batch:
        await asyncio.Event().wait()
        return Batch([], PullStatus.SILENT)

    async def close(self) -> None: ...

    @property
    def last_pull(self) -> float:
        return self._now


@pytest.mark.parametrize(("kind", "moving"), [(MemoryBroker, True), (DeafBroker, False)])
async def test_idle_is_not_deaf(memory_stage: Stage, kind: type[MemoryBroker], moving: bool) -> None:
    clock = VirtualClock()
    bus = MessageBus(
        kind(MemoryServer(clock)), SPECS, memory_stage.database.begin, pod_id="p", clock=memory_stage.clock
    )
    module = Module(name="m", hears=[on(Thing, Ear())])
    bus.wire(module.name, module.hears, module.watches, module.answers)
    await bus.start()
    assert (await bus.health()).ready
    await clock.advance(4 * PULL_EXPIRES)
    health = await bus.health()
    assert (health.ready, health.consumers[0].moving) == (moving, moving)
    await bus.drain(0.1)


async def test_a_loop_that_fails_begins_again(memory_stage: Stage, logged: list[EventDict]) -> None:
    class Flaky(MemoryBroker):
        failures = 2

        async def consume(self, stream: str, consumer: str, *, prefetch: int, expires: float = 5.0) -> Consumption:
            if self.failures:
                self.failures -= 1
                raise RuntimeError("what nobody thought of")
            return await super().consume(stream, consumer, prefetch=prefetch, expires=expires)

    clock, ear = VirtualClock(), Ear()
    bus = MessageBus(
        Flaky(MemoryServer(clock)), SPECS, memory_stage.database.begin, pod_id="p", clock=memory_stage.clock
    )
    bus.wire("m", [on(Thing, ear)], [], [])
    starting = asyncio.create_task(bus.start())
    while not starting.done():
        await clock.advance(0.5)
    await starting
    await bus.publish(Thing())
    await ear.hears(1)
    assert len([entry for entry in logged if entry["event"] == "consumer.loop_failed"]) == 2
    await bus.drain(0.1)


async def test_health_says_what_is_dead_and_what_waits(stage: Stage) -> None:
    async def refuse(event: Any, context: Context) -> None:
        raise ValueError("no")

    seen = Seen()
    bus = await stage.process(Module(name="m", hears=[on(Thing, refuse, max_deliver=1)]), seen=seen)
    await bus.publish(Thing())
    await seen.comes_to("termed", 1)
    health = await bus.health()
    assert (health.dead_letters, health.status, health.outbox_backlog) == (1, ConnectionStatus.UP, 0)
    assert health.where == bus.broker.where
    await stage.harness.stop()
    health = await within(bus.health())
    assert (health.ready, health.status) == (False, ConnectionStatus.DOWN)
    await stage.harness.start()


async def test_everything_is_counted(stage: Stage) -> None:
    """M2."""

    async def handle(event: Any, context: Context) -> None:
        if event.n == 1 and context.deliveries == 1:
            raise ValueError("once")
        if event.n == 2:
            raise ValueError("always")

    seen = Seen()
    bus = await stage.process(Module(name="m", hears=[on(Thing, handle, max_deliver=2)]), seen=seen)
    for n in range(3):
        await bus.publish(Thing(n=n))
    await seen.comes_to("acked", 2)
    await seen.comes_to("termed", 1)
    counts = {name: seen.counts[name] for name in ("published THINGS", "delivered", "redelivered", "naked", "dead")}
    assert counts == {"published THINGS": 3, "delivered": 5, "redelivered": 2, "naked": 2, "dead": 1}
    assert seen.counts["handled thing_happened_m"] == 5


def test_the_default_spec_of_a_consumer_is_the_references() -> None:
    spec = ConsumerSpec(name="c")
    assert (spec.ack_wait, spec.max_deliver, spec.max_ack_pending) == (30.0, 3, 1000)
