"""An event is published after its transaction commits, and never without it; handled twice, effect once (K8, K9)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, ClassVar

import msgspec
import pytest
from msgspec import structs
from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.bus import tables
from nebengjek.bus.errors import InvalidHeader, NotPermitted
from nebengjek.bus.handling import Context
from nebengjek.bus.inbox import KEEP_SECONDS
from nebengjek.bus.messages import CoreMessage
from nebengjek.bus.messaging import MessageBus
from nebengjek.bus.outbox import LEASE_SECONDS, WAKE
from nebengjek.contracts.message import Event, InvalidSubject
from nebengjek.database import Database
from nebengjek.errors import Unavailable
from nebengjek.module import Module, on
from tests.bus.stage import ADVISORIES, AUDIT, DEAD, THINGS, Counted, Ear, Lost, News, Noted, Seen, Stage, Thing, within
from tests.servers import PostgresServer


async def say(bus: MessageBus, stage: Stage, *events: Event) -> None:
    async with stage.database.begin() as tx:
        await bus.outbox.add(tx, *events)


async def relayed(*buses: MessageBus) -> None:
    """Wait until nothing is left in the table."""
    async with asyncio.timeout(8):
        while any([await bus.outbox.size() for bus in buses]):  # noqa: ASYNC110 - only the table knows
            await asyncio.sleep(0.01)


class Effect(Ear):
    """Counts in the database, once per message, then does as it is told."""

    def __init__(self, stage: Stage, act: Any = None) -> None:
        super().__init__(self._count)
        self._stage = stage
        self._then = act
        self.bus: MessageBus
        self.effects: list[Any] = []

    async def _count(self, event: Any, context: Context) -> None:
        async with self._stage.database.begin() as tx:
            if await self.bus.inbox.first(tx, context):
                self.effects.append(event)
        if self._then is not None:
            await self._then(event, context)


# -- the inbox


async def test_a_handler_that_fails_after_its_effect_has_it_once(stage: Stage) -> None:
    async def fail(event: Any, context: Context) -> None:
        if context.deliveries < 3:
            raise ValueError("after the commit")

    effect, seen = Effect(stage, fail), Seen()
    effect.bus = bus = await stage.process(Module(name="m", hears=[on(Thing, effect)]), seen=seen)
    await bus.publish(Thing(n=1))
    await seen.comes_to("acked", 1)
    assert effect.deliveries == [1, 2, 3]
    assert effect.effects == [Thing(n=1)]


async def test_an_effect_that_was_rolled_back_is_had_by_the_next_try(stage: Stage) -> None:
    seen = Seen()
    effects: list[int] = []

    async def handle(event: Thing, context: Context) -> None:
        async with stage.database.begin() as tx:
            if await bus.inbox.first(tx, context):
                effects.append(context.deliveries)
            if context.deliveries == 1:
                raise ValueError("before the commit")

    bus = await stage.process(Module(name="m", hears=[on(Thing, handle)]), seen=seen)
    await bus.publish(Thing())
    await seen.comes_to("acked", 1)
    assert effects == [1, 2]


async def test_a_replayed_dead_letter_has_no_second_effect(stage: Stage) -> None:
    async def fail(event: Any, context: Context) -> None:
        if len(effect.heard) == 1:
            raise ValueError("after the commit")

    effect, seen = Effect(stage, fail), Seen()
    module = Module(name="m", hears=[on(Thing, effect, max_deliver=1)])
    effect.bus = bus = await stage.process(module, seen=seen)
    await bus.publish(Thing())
    await seen.comes_to("termed", 1)
    [dead] = await bus.dead_letters.list()
    await bus.dead_letters.replay(dead.seq)
    await seen.comes_to("acked", 1)
    assert len(effect.heard) == 2
    assert len(effect.effects) == 1


async def test_two_consumers_have_their_effect_each(stage: Stage) -> None:
    one, two, seen = Effect(stage), Effect(stage), Seen()
    bus = await stage.process(
        Module(name="a", hears=[on(Thing, one)]), Module(name="b", hears=[on(Thing, two)]), seen=seen
    )
    one.bus = two.bus = bus
    await bus.publish(Thing())
    await seen.comes_to("acked", 2)
    assert (len(one.effects), len(two.effects)) == (1, 1)


async def test_what_was_handled_is_remembered_longer_than_anything_can_come_again(memory_stage: Stage) -> None:
    stage = memory_stage
    bus = stage.new_bus()
    context = Context(
        consumer="c", message_id="1", subject="s", stream="S", seq=1, deliveries=1, time=stage.clock.now()
    )
    async with stage.database.begin() as tx:
        assert await bus.inbox.first(tx, context)
    stage.clock.advance(timedelta(days=14).total_seconds())
    async with stage.database.begin() as tx:
        assert await bus.inbox.forget_old(tx) == 0
        assert not await bus.inbox.first(tx, context)
    stage.clock.advance(KEEP_SECONDS)
    async with stage.database.begin() as tx:
        assert await bus.inbox.forget_old(tx) == 1
        assert await bus.inbox.first(tx, context)


# -- the outbox


async def test_a_rollback_says_nothing_and_a_commit_says_it_once(stage: Stage) -> None:
    seen = Seen()
    bus = await stage.process(seen=seen)

    async def change_the_mind() -> None:
        async with stage.database.begin() as tx:
            await bus.outbox.add(tx, Noted(n=1))
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await change_the_mind()
    await say(bus, stage, Noted(n=2), Noted(n=3))
    await relayed(bus)
    assert [event.n async for event in bus.replay(Noted)] == [2, 3]
    assert seen.counts["published AUDIT"] == 2


class Called(Event, frozen=True, kw_only=True, tag="audit.called"):
    """Its number is what somebody has called it."""

    thing_id: str = "t"
    name: str
    key: ClassVar[str] = "thing_id"
    number: ClassVar[str | None] = "name"


async def test_an_event_that_cannot_be_published_is_refused_before_the_commit(memory_stage: Stage) -> None:
    bus = memory_stage.new_bus()
    with pytest.raises(InvalidSubject):
        await say(bus, memory_stage, Noted(thing_id="a.b"))
    for name in ("a\n", "a\r\nNats-Rollup: all", "\u0661", "\x00"):
        with pytest.raises(InvalidHeader):
            await say(bus, memory_stage, Called(name=name))
    assert await bus.outbox.size() == 0


async def test_what_was_committed_before_a_crash_is_said_at_the_next_start(stage: Stage) -> None:
    dying = stage.new_bus()
    await say(dying, stage, Noted(n=1))
    bus = await stage.process()
    await relayed(bus)
    assert [event.n async for event in bus.replay(Noted)] == [1]


async def test_a_relay_that_dies_between_publish_and_mark_says_the_same_again(stage: Stage) -> None:
    dying = stage.new_bus()
    await say(dying, stage, Noted(n=1))
    async with stage.database.read() as tx:
        row = (await tx.execute(select(tables.outbox))).one()
    first = await stage.process(pod_id="first")
    await within(first.broker.submit(row.subject, row.data, msgspec.json.decode(row.headers)))
    await relayed(first)
    assert [event.n async for event in first.replay(Noted)] == [1]


async def test_an_event_whose_handler_had_not_finished_comes_again_after_a_restart(stage: Stage) -> None:
    async def hang(event: Any, context: Context) -> None:
        await asyncio.Event().wait()

    # On a server the dead process keeps the message for its ack wait.
    stuck, ear, seen = Ear(hang), Ear(), Seen()
    bus = await stage.process(Module(name="m", hears=[on(Thing, stuck, ack_wait=1.0)]))
    await say(bus, stage, Thing(n=5))
    await stuck.hears(1)
    await stage.die(bus)
    reborn = await stage.process(Module(name="m", hears=[on(Thing, ear, ack_wait=1.0)]), seen=seen)
    await ear.hears(1)
    await seen.comes_to("acked", 1)
    assert ear.heard == [Thing(n=5)]
    assert ear.contexts[0].message_id == stuck.contexts[0].message_id
    await relayed(reborn)


async def test_in_one_process_a_row_goes_when_every_consumer_has_settled_it(memory_stage: Stage) -> None:
    stage, go, seen = memory_stage, asyncio.Event(), Seen()

    async def wait(event: Any, context: Context) -> None:
        await go.wait()

    slow, quick = Ear(wait), Ear()
    bus = await stage.process(
        Module(name="slow", hears=[on(Thing, slow)]), Module(name="quick", hears=[on(Thing, quick)]), seen=seen
    )
    await say(bus, stage, Thing())
    await seen.comes_to("acked thing_happened_quick", 1)
    assert await bus.outbox.size() == 1
    go.set()
    await relayed(bus)
    assert slow.deliveries == [1]


async def test_a_row_is_not_forgotten_when_the_connection_breaks(stage: Stage) -> None:
    go, seen = asyncio.Event(), Seen()

    async def wait(event: Any, context: Context) -> None:
        await go.wait()

    ear = Ear(wait)
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear)]), seen=seen)
    await say(bus, stage, Thing())
    await ear.hears(1)
    await stage.harness.cut_connection(bus.broker)
    await within(bus.broker.wait_connected())
    go.set()
    await seen.comes_to("acked", 1)
    await relayed(bus)


async def test_two_relays_neither_double_nor_reorder(stage: Stage) -> None:
    buses = [await stage.process(pod_id="a"), await stage.process(pod_id="b")]
    for n in range(60):
        await say(buses[n % 2], stage, Noted(thing_id=f"e{n % 3}", n=n))
        if n % 20 == 10:
            # The lease changes hands in the middle of it.
            stage.clock.advance(LEASE_SECONDS)
    await relayed(*buses)
    said = [event async for event in buses[0].replay(Noted)]
    assert len(said) == 60
    for entity in ("e0", "e1", "e2"):
        numbers = [event.n for event in said if event.thing_id == entity]
        assert numbers == sorted(numbers)


@pytest.mark.real
async def test_two_processes_on_postgresql_neither_double_nor_reorder(
    nats_stage: Stage, postgres: PostgresServer
) -> None:
    stage = nats_stage
    url = await asyncio.to_thread(postgres.new_database)
    databases = [Database(url), Database(url)]
    async with databases[0].begin() as tx:
        mine = [tables.outbox, tables.outbox_lease, tables.inbox, tables.dead_letters]
        await tx.run_sync(lambda connection: tables.outbox.metadata.create_all(connection, tables=mine))
    buses = [await stage.process(pod_id=f"p{i}", database=database) for i, database in enumerate(databases)]

    async def speak(i: int) -> None:
        for n in range(40):
            async with databases[i].begin() as tx:
                await buses[i].outbox.add(tx, Noted(thing_id=f"p{i}", n=n))

    await asyncio.gather(speak(0), speak(1))
    await relayed(*buses)
    said = [event async for event in buses[0].replay(Noted)]
    for i in (0, 1):
        assert [event.n for event in said if event.thing_id == f"p{i}"] == list(range(40))
    for bus in buses:
        await stage.end(bus)
    for database in databases:
        await database.close()


async def test_the_lease_of_a_dead_relay_ends(stage: Stage) -> None:
    async with stage.database.begin() as tx:
        until = stage.clock.seconds() + LEASE_SECONDS
        await tx.execute(insert(tables.outbox_lease).values(module="", holder="dead", until=until))
    bus = await stage.process()
    await say(bus, stage, Noted(n=1))
    if bus.broker.durable:
        # Somebody else may live: his lease is his until it ends.
        await stage.harness.advance(0.2)
        assert [event async for event in bus.replay(Noted)] == []
        stage.clock.advance(LEASE_SECONDS + 0.1)
        bus.outbox.woken()
    await relayed(bus)
    assert [event.n async for event in bus.replay(Noted)] == [1]


async def test_a_relay_that_ends_lets_go_of_its_lease(stage: Stage) -> None:
    """The clock does not move here: a lease that was kept would never end."""
    first = await stage.process(pod_id="first")
    await say(first, stage, Noted(n=1))
    await relayed(first)
    report = await stage.end(first)
    assert report.unpublished == 0
    second = await stage.process(pod_id="second")
    await say(second, stage, Noted(n=2))
    await relayed(second)
    assert [event.n async for event in second.replay(Noted)] == [1, 2]


async def test_a_word_to_the_relay_does_not_go_round_for_ever(stage: Stage) -> None:
    words, news = [], News()

    async def heard(message: CoreMessage) -> None:
        words.append(message)
        news.tell()

    listener = await stage.harness.make_broker()
    await listener.subscribe(WAKE, heard)
    buses = [await stage.process(pod_id="a"), await stage.process(pod_id="b")]
    stage.clock.advance(LEASE_SECONDS / 2 + 0.1)
    for n, bus in enumerate(buses):
        await say(bus, stage, Noted(n=n))
    await relayed(*buses)
    await stage.harness.advance(0.3)
    assert len(words) <= 4, "each commit rings once, and is not answered"


async def test_an_event_that_is_refused_holds_up_only_its_own_entity(stage: Stage) -> None:
    seen = Seen()
    bus = await stage.process(seen=seen)
    async with stage.database.begin() as tx:
        await bus.outbox.add(tx, Lost(thing_id="x"), Noted(thing_id="x", n=100))
        # One that no server would take, and that is there all the same.
        bad = {"subject": "audit.noted.z", "headers": '{"Nats-Msg-Id":"a\\n"}', "data": b"{}", "created_at": 0.0}
        await tx.execute(insert(tables.outbox).values(bad | {"module": ""}))
        for n in range(600):
            await bus.outbox.add(tx, Noted(thing_id=f"y{n % 7}", n=n))
    await seen.comes_to("published AUDIT", 600)
    assert seen.counts["publish failed"] <= 3, "it is tried again later, not in a loop"
    assert 100 not in [event.n async for event in bus.replay(Noted) if event.thing_id == "x"]
    assert await bus.outbox.size() == 3


async def test_the_relay_outlives_a_database_that_goes_away(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nebengjek.bus.outbox.POLL_SECONDS", 0.1)
    errors = [Unavailable("database"), OperationalError("", {}, Exception("gone"))]

    @asynccontextmanager
    async def begin() -> AsyncIterator[AsyncConnection]:
        task = asyncio.current_task()
        assert task is not None
        if errors and task.get_name() == "outbox relay":
            raise errors.pop(0)
        async with stage.database.begin() as tx:
            yield tx

    database = stage.new_database()
    database.begin = begin  # type: ignore[method-assign]
    bus = await stage.process(database=database)
    await say(bus, stage, Noted(n=1))
    await relayed(bus)
    assert errors == []
    assert [event.n async for event in bus.replay(Noted)] == [1]


async def test_the_outbox_is_asked_in_the_order_of_commits_not_of_ids(stage: Stage) -> None:
    """A row with a lower id that commits later is not passed over."""
    bus = await stage.process()
    await say(bus, stage, Noted(n=1))
    await relayed(bus)
    async with stage.database.begin() as tx:
        await bus.outbox.add(tx, Noted(n=2))
        await tx.execute(update(tables.outbox).values(id=-7))
    await relayed(bus)
    assert [event.n async for event in bus.replay(Noted)] == [1, 2]
    async with stage.database.read() as tx:
        assert (await tx.execute(select(func.count()).select_from(tables.outbox))).scalar() == 0


async def test_a_modules_events_are_relayed_by_a_pod_that_runs_it(stage: Stage) -> None:
    """Another may not be permitted to say them; where both run it, one does."""
    seen = {"things": Seen(), "notes": Seen()}
    says: dict[str, list[type[Event]]] = {"things": [Counted], "notes": [Noted]}

    def pod(running: str) -> MessageBus:
        bus = stage.new_bus(pod_id=running, seen=seen[running])
        for module, events in says.items():
            bus.wire(module, [], [], [], says=events, running=module == running)
        return bus

    things, notes = pod("things"), pod("notes")
    await things.start()
    for n in range(5):
        await say(notes, stage, Noted(n=n))
        await say(things, stage, Counted(n=n))
    await relayed(things)
    assert await notes.outbox.size() == 5
    assert seen["things"].counts["published THINGS"] == 5
    assert seen["things"].counts["published AUDIT"] == 0
    await notes.start()
    await relayed(things, notes)
    assert (seen["notes"].counts["published AUDIT"], seen["notes"].counts["published THINGS"]) == (5, 0)
    assert [event.n async for event in notes.replay(Noted)] == list(range(5))
    with pytest.raises(NotPermitted, match=r"audit\.noted is notes's to say, which this pod does not run"):
        await say(things, stage, Noted(n=5))


async def test_rows_of_a_module_that_there_is_no_more_go_too(stage: Stage) -> None:
    before = stage.new_bus()
    before.wire("gone", [], [], [], says=[Noted], running=True)
    await say(before, stage, Noted(n=1))
    bus = await stage.process()
    await relayed(bus)
    assert [event.n async for event in bus.replay(Noted)] == [1]


async def test_two_modules_cannot_say_one_event(memory_stage: Stage) -> None:
    bus = memory_stage.new_bus()
    bus.wire("one", [], [], [], says=[Noted])
    with pytest.raises(ValueError, match=r"audit\.noted is said by one and two"):
        bus.wire("two", [], [], [], says=[Noted])


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_clock_that_jumps_silences_no_relay(stage: Stage, hours: int) -> None:
    """Not the one that holds the lease, and not the one that takes over from it."""
    buses = [await stage.process(pod_id="a"), await stage.process(pod_id="b")]
    await say(buses[0], stage, Noted(n=0))
    await relayed(*buses)
    stage.clock.advance(hours * 3600)
    for n in (1, 2):
        await say(buses[n - 1], stage, Noted(n=n))
    await within(relayed(*buses))
    for holder in buses:
        async with stage.database.begin() as tx:
            # As a pod left it that died before the jump.
            until = stage.clock.seconds() - hours * 3600 + LEASE_SECONDS
            await tx.execute(update(tables.outbox_lease).values(holder="dead", until=until))
        stage.clock.advance(LEASE_SECONDS)
        await say(holder, stage, Noted(n=3 + buses.index(holder)))
        await within(relayed(*buses))
    assert [event.n async for event in buses[0].replay(Noted)] == [0, 1, 2, 3, 4]


@pytest.mark.real
async def test_pods_that_come_and_die_on_postgresql_keep_one_entitys_events_in_order(
    nats_stage: Stage, postgres: PostgresServer
) -> None:
    """Each entity's events are said by all pods in turn, while the relay is killed and its lease ends."""
    stage = nats_stage
    url = await asyncio.to_thread(postgres.new_database)
    databases = [Database(url) for _ in range(4)]
    async with databases[0].begin() as tx:
        mine = [tables.outbox, tables.outbox_lease, tables.inbox, tables.dead_letters]
        await tx.run_sync(lambda connection: tables.outbox.metadata.create_all(connection, tables=mine))
    effects = [Ear() for _ in databases]
    buses = [
        await stage.process(Module(name="m", hears=[on(Noted, effects[i])]), pod_id=f"p{i}", database=database)
        for i, database in enumerate(databases)
    ]

    async def speak(entity: int) -> None:
        for n in range(40):
            i = (entity + n) % 4
            async with databases[i].begin() as tx:
                # Also a pod whose connection is gone writes: its row is relayed by another.
                await buses[i].outbox.add(tx, Noted(thing_id=f"e{entity}", n=n))
            if entity == 0 and n in (10, 25):
                await stage.die(buses[n % 3])
                stage.clock.advance(LEASE_SECONDS + 0.1)

    await asyncio.gather(*(speak(entity) for entity in range(5)))
    stage.clock.advance(LEASE_SECONDS + 0.1)
    await relayed(buses[3])
    said = [event async for event in buses[3].replay(Noted)]
    for entity in range(5):
        assert [event.n for event in said if event.thing_id == f"e{entity}"] == list(range(40))
    for bus in buses:
        await stage.end(bus, 1.0)
    for database in databases:
        await database.close()


async def test_an_event_that_lies_in_the_stream_twice_has_its_effect_once(stage: Stage) -> None:
    """Published again when the stream had forgotten its id, as by a relay that slept."""
    short = structs.replace(THINGS, duplicate_window=0.1)
    effect, seen = Effect(stage), Seen()
    effect.bus = bus = await stage.process(
        Module(name="m", hears=[on(Thing, effect)]), seen=seen, specs=(short, AUDIT, DEAD, ADVISORIES)
    )
    dying = stage.new_bus()
    await say(dying, stage, Thing(n=1))
    async with stage.database.read() as tx:
        row = (await tx.execute(select(tables.outbox))).one()
    bus.outbox.ring()
    await seen.comes_to("acked", 1)
    await stage.harness.advance(0.3)
    again = await within(bus.broker.submit(row.subject, row.data, msgspec.json.decode(row.headers)))
    assert not again.duplicate
    await seen.comes_to("acked", 2)
    assert (len(effect.heard), effect.effects) == (2, [Thing(n=1)])
