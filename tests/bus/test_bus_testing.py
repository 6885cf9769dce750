"""The test kit sees behind the outbox, waits until nothing passes, and its shuffling finds what needs an order."""

import ast
import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from nebengjek.bus.handling import Context, Reject
from nebengjek.bus.messaging import MessageBus
from nebengjek.bus.payloads import Payloads
from nebengjek.bus.testing import BusProbe
from nebengjek.contracts.message import Event
from nebengjek.module import Module, answer, on, on_batch
from tests.bus.stage import DELAYS, SPECS, Counted, Double, Ear, Noted, Stage, Thing, within

ROOT = Path(__file__).resolve().parents[2]


@asynccontextmanager
async def playing(
    stage: Stage, *modules: Module, shuffle: bool = False, seed: int = 1, **options: Any
) -> AsyncIterator[tuple[BusProbe, MessageBus]]:
    probe = BusProbe(stage.harness.new_broker, shuffle=shuffle, seed=seed)
    bus = probe.bus(SPECS, stage.database, clock=stage.clock, **({"retry_delays": DELAYS} | options))
    async with probe.playing(bus, *modules):
        yield probe, bus


async def say(stage: Stage, bus: MessageBus, *events: Event) -> None:
    async with stage.database.begin() as tx:
        await bus.outbox.add(tx, *events)


class Once(Ear):
    """Has an effect once per message, as handlers should."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(self._once)
        self._stage = stage
        self.bus: MessageBus
        self.effects: list[Any] = []

    async def _once(self, event: Any, context: Context) -> None:
        async with self._stage.database.begin() as tx:
            if await self.bus.inbox.first(tx, context):
                self.effects.append(event)


# -- what it sees


async def test_it_looks_behind_the_outbox(stage: Stage) -> None:
    ear = Ear()
    async with playing(stage, Module(name="m", hears=[on(Thing, ear)])) as (probe, bus):
        with suppress(ValueError):
            async with stage.database.begin() as tx:
                await bus.outbox.add(tx, Thing(n=1))
                raise ValueError("it does not commit")
        async with stage.database.begin() as tx:
            await bus.outbox.add(tx, Thing(n=2), Counted(n=3))
            assert probe.published(Thing) == []
        await probe.idle()
        assert probe.published(Thing) == ear.heard == [Thing(n=2)]
        assert probe.published(Counted) == [Counted(n=3)]
        assert probe.handled == {"thing_happened_m": 1}


async def test_what_is_said_again_with_its_id_is_published_once(stage: Stage) -> None:
    async with playing(stage) as (probe, bus):
        for _ in range(3):
            await bus.publish(Counted(n=1))
        await bus.publish_soon(Counted(n=2))
        await probe.idle()
        assert probe.published(Counted) == [Counted(n=1), Counted(n=2)]


async def test_what_is_sealed_can_be_read(stage: Stage) -> None:
    async with playing(stage, payloads=Payloads(compress_above=1)) as (probe, bus):
        await bus.publish(Thing(thing_id="a" * 100, n=1))
        assert probe.published(Thing) == [Thing(thing_id="a" * 100, n=1)]


async def test_it_lists_what_could_not_be_handled(stage: Stage) -> None:
    async def refuse(event: Thing) -> None:
        raise Reject("not this one")

    async with playing(stage, Module(name="m", hears=[on(Thing, refuse)])) as (probe, bus):
        await bus.publish(Thing(n=1))
        await probe.idle()
        (dead,) = probe.dead
        assert (dead.consumer, dead.reason, dead.error) == ("thing_happened_m", "rejected", "Reject: not this one")
        assert probe.handled == {}


# -- how it waits


async def test_it_waits_for_handlers_and_for_what_they_say(stage: Stage) -> None:
    async def pass_on(event: Thing, context: Context) -> None:
        if event.n:
            await say(stage, bus, Thing(n=event.n - 1))

    async with playing(stage, Module(name="m", hears=[on(Thing, pass_on)])) as (probe, bus):
        await say(stage, bus, Thing(n=5))
        await probe.idle()
        assert [thing.n for thing in probe.published(Thing)] == [5, 4, 3, 2, 1, 0]
        assert probe.handled == {"thing_happened_m": 6}


async def test_it_waits_for_what_comes_again(stage: Stage) -> None:
    async def fail_first(event: Thing, context: Context) -> None:
        if context.deliveries == 1:
            raise ValueError("the first time")

    async with playing(stage, Module(name="m", hears=[on(Thing, fail_first)])) as (probe, bus):
        await bus.publish(Thing(n=1))
        await probe.idle()
        assert (probe.handled, probe.dead) == ({"thing_happened_m": 1}, [])


async def test_it_says_what_it_waits_for_in_vain(stage: Stage) -> None:
    stuck = asyncio.Event()

    async def hang(event: Thing, context: Context) -> None:
        await stuck.wait()

    ear = Ear(hang)
    async with playing(stage, Module(name="m", hears=[on(Thing, ear)])) as (probe, bus):
        await bus.publish(Thing(n=1))
        await ear.hears(1)
        with pytest.raises(AssertionError, match=r"1 in the hands of thing_happened_m.*1 under way in probe"):
            await probe.idle(0.1)
        stuck.set()
        await probe.idle()


# -- shuffled


async def test_shuffled_each_event_is_handled_twice_and_counts_once(stage: Stage) -> None:
    once, often = Once(stage), Ear()
    hears = [on(Thing, once), on(Counted, often)]
    async with playing(stage, Module(name="m", hears=hears), shuffle=True) as (probe, bus):
        once.bus = bus
        for n in range(20):
            await say(stage, bus, Thing(n=n), Counted(n=n))
        await probe.idle()
        assert sorted(thing.n for thing in once.effects) == list(range(20))
        assert len(once.heard) == len(often.heard) == 40
        assert probe.handled == {"thing_happened_m": 20, "thing_counted_m": 20}
        info = await bus.broker.consumer_info("THINGS", "thing_happened_m")
        assert (info.num_pending, info.num_ack_pending, info.num_redelivered) == (0, 0, 0)


async def test_shuffled_events_overtake_each_other(stage: Stage) -> None:
    order: list[tuple[str, int]] = []

    async def note(event: Any) -> None:
        order.append((type(event).__name__, event.n))

    module = Module(name="m", hears=[on(Thing, note), on(Counted, note), on(Noted, note)])
    async with playing(stage, module, shuffle=True) as (probe, bus):
        for n in range(10):
            for event in (Thing(n=n), Counted(n=n), Noted(n=n)):
                await bus.publish_soon(event)
        await probe.idle()
    for name in ("Thing", "Counted", "Noted"):
        first = list(dict.fromkeys(n for kind, n in order if kind == name))
        assert sorted(first) == list(range(10))
        assert first != list(range(10))


async def test_a_seed_is_an_order(memory_stage: Stage) -> None:
    async def order(seed: int) -> list[int]:
        ear = Ear()
        async with playing(memory_stage, Module(name="m", hears=[on(Thing, ear)]), shuffle=True, seed=seed) as (
            probe,
            bus,
        ):
            for n in range(10):
                await bus.publish_soon(Thing(n=n))
            await probe.idle()
        return [thing.n for thing in ear.heard]

    assert await order(1) == await order(1) != await order(2)


async def test_shuffled_batches_hold_an_event_twice(stage: Stage) -> None:
    batches: list[list[int]] = []

    async def gather(events: Sequence[Thing]) -> None:
        batches.append([event.n for event in events])

    async with playing(stage, Module(name="m", hears=[on_batch(Thing, gather)]), shuffle=True) as (probe, bus):
        for n in range(10):
            await bus.publish(Thing(n=n))
        await probe.idle()
        assert sorted(n for batch in batches for n in batch) == sorted([*range(10), *range(10)])
        assert probe.handled == {"thing_happened_m": 10}


async def test_shuffled_a_handler_that_fails_is_tried_as_often_as_ever(stage: Stage) -> None:
    tries: list[int] = []

    async def fail(event: Thing, context: Context) -> None:
        tries.append(context.deliveries)
        raise ValueError("always")

    module = Module(name="m", hears=[on(Thing, fail, max_deliver=3)])
    async with playing(stage, module, shuffle=True) as (probe, bus):
        await bus.publish(Thing(n=1))
        await probe.idle()
        assert set(tries) == {1, 2, 3}
        (dead,) = probe.dead
        assert (dead.deliveries, dead.reason) == (3, "failed")


async def test_what_was_not_dealt_at_the_end_comes_to_the_next(stage: Stage) -> None:
    first, second = Ear(), Ear()
    async with playing(stage, Module(name="m", hears=[on(Thing, first)]), shuffle=True) as (probe, bus):
        for n in range(30):
            await bus.publish_soon(Thing(n=n))
        await bus.flush()
        await first.hears(3)
    if stage.is_memory:
        assert len(first.heard) < 60
    async with playing(stage, Module(name="m", hears=[on(Thing, second)])) as (probe, bus):
        await probe.idle()
    assert {thing.n for thing in (*first.heard, *second.heard)} == set(range(30))


async def test_answers_are_as_always(stage: Stage) -> None:
    async def double(query: Double) -> int:
        return query.n * 2

    async with playing(stage, Module(name="m", answers=[answer(Double, double)]), shuffle=True) as (probe, bus):
        assert await within(bus.request(Double(n=4))) == 8
        await probe.idle()


# -- its place in the house


def test_nothing_of_the_application_imports_it() -> None:
    kit = {"nebengjek/bus/testing.py", "nebengjek/bus/testing_tap.py"}
    for path in (ROOT / "nebengjek").rglob("*.py"):
        if str(path.relative_to(ROOT)) not in kit:
            assert "bus.testing" not in path.read_text(encoding="utf-8"), path


async def test_the_example_of_the_page_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "bus.md").read_text(encoding="utf-8")
    section = page.partition("## Testing a module\n")[2].partition("\n## ")[0]
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(example, "docs/bus.md", "exec"), names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert [inspect.iscoroutinefunction(test) for test in tests] == [True]
    await within(tests[0](tmp_path))
    # And it is a test: without the inbox the passenger is thanked twice.
    careless = ast.parse(example.replace("await bus.inbox.first(tx, context)", "True"))
    exec(compile(careless, "docs/bus.md", "exec"), names)
    (tmp_path / "careless").mkdir()
    with pytest.raises(AssertionError):
        await within(names[tests[0].__name__](tmp_path / "careless"))
