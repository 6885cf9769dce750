"""In order where it is asked for, many at once where it is not; batches (K12)."""

import asyncio
from collections.abc import Sequence
from typing import Any

from nebengjek.bus.handling import Context, Reject, Retry
from nebengjek.errors import Conflict
from nebengjek.module import Module, on, on_batch
from tests.bus.stage import Ear, News, Seen, Stage, Thing
from tests.lateness import at_most


async def test_what_has_the_same_key_is_handled_one_after_the_other_and_keys_in_parallel(stage: Stage) -> None:
    running: dict[str, int] = {}
    worst, parallel, seen = 0, 0, Seen()

    async def handle(event: Thing, context: Context) -> None:
        nonlocal worst, parallel
        running[event.thing_id] = running.get(event.thing_id, 0) + 1
        worst = max(worst, running[event.thing_id])
        parallel = max(parallel, sum(running.values()))
        await asyncio.sleep(0.005)
        running[event.thing_id] -= 1

    ear = Ear(handle)
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear, ordered_by="thing_id")]), seen=seen)
    for n in range(30):
        await bus.publish_soon(Thing(thing_id="abc"[n % 3], n=n))
    await seen.comes_to("acked", 30)
    assert (worst, parallel) == (1, 3)
    for key in "abc":
        numbers = [event.n for event in ear.heard if event.thing_id == key]
        assert numbers == sorted(numbers)


async def test_one_that_fails_lets_the_next_of_its_key_go_on(stage: Stage) -> None:
    async def handle(event: Thing, context: Context) -> None:
        if event.n == 0 and context.deliveries == 1:
            raise ValueError("not now")

    ear, seen = Ear(handle), Seen()
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear, ordered_by="thing_id")]), seen=seen)
    for n in range(3):
        await bus.publish(Thing(n=n))
    await seen.comes_to("acked", 3)
    assert sorted(event.n for event in ear.heard) == [0, 0, 1, 2]


class Batches(News):
    """A batch handler that notes what it was given, and what fails."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[int]] = []
        self.failing: set[int] = set()
        self.poison: dict[int, Exception] = {}

    async def __call__(self, events: Sequence[Any]) -> Sequence[Any]:
        self.batches.append([event.n for event in events])
        self.tell()
        for event in events:
            if event.n in self.poison:
                raise self.poison[event.n]
        return [event for event in events if event.n in self.failing]

    def times(self, n: int) -> int:
        return sum(batch.count(n) for batch in self.batches)


async def fill(stage: Stage, handler: Batches, seen: Seen, count: int = 6, **options: Any) -> Any:
    """A bus whose first batch holds everything: what is said before its loop runs."""
    module = Module(name="m", hears=[on_batch(Thing, handler, size=64, **options)])
    before = await stage.process(module, running=False)
    for n in range(count):
        await before.publish(Thing(n=n))
    return await stage.process(module, seen=seen)


async def test_many_come_at_once(stage: Stage) -> None:
    handler, seen = Batches(), Seen()
    await fill(stage, handler, seen, 50)
    await seen.comes_to("acked", 50)
    assert sorted(n for batch in handler.batches for n in batch) == list(range(50))
    assert max(len(batch) for batch in handler.batches) > 1
    assert max(len(batch) for batch in handler.batches) <= 64


async def test_of_a_batch_those_that_failed_come_again_and_no_others(stage: Stage) -> None:
    handler, seen = Batches(), Seen()
    handler.failing = {1, 4}
    bus = await fill(stage, handler, seen)
    await seen.comes_to("acked", 4)
    await seen.comes_to("naked", 2)
    handler.failing = set()
    await seen.comes_to("acked", 6)
    assert all(handler.times(n) == 1 for n in (0, 2, 3, 5))
    assert all(handler.times(n) == 2 for n in (1, 4))
    assert await bus.dead_letters.count() == 0


async def test_a_poison_message_does_not_take_the_others_along(stage: Stage) -> None:
    handler, seen = Batches(), Seen()
    handler.poison = {3: ValueError("poison")}
    bus = await fill(stage, handler, seen, max_deliver=3)
    await seen.comes_to("termed", 1)
    await seen.comes_to("acked", 5)
    [dead] = await bus.dead_letters.list()
    assert (dead.reason, dead.error, dead.deliveries) == ("failed", "ValueError: poison", 3)
    assert dead.data.endswith('"n":3}')


async def test_what_a_handler_says_of_one_it_says_of_one_of_a_batch(stage: Stage) -> None:
    handler, seen = Batches(), Seen()
    handler.poison = {1: Reject("bad"), 2: Conflict("decided"), 3: Retry(after=0.01)}
    bus = await fill(stage, handler, seen, 5, max_deliver=2)
    await seen.comes_to("termed", 2)
    await seen.comes_to("acked", 3)
    found = {dead.data[-2]: (dead.reason, dead.deliveries) for dead in await bus.dead_letters.list()}
    assert found == {"1": ("rejected", 1), "3": ("failed", 2)}


async def test_what_of_a_batch_cannot_be_decoded_is_a_dead_letter_and_the_rest_is_handled(stage: Stage) -> None:
    handler, seen = Batches(), Seen()
    module = Module(name="m", hears=[on_batch(Thing, handler, size=64)])
    before = await stage.process(module, running=False)
    await before.publish(Thing(n=0))
    await stage.publish_raw("thing.happened.x", b"?")
    await before.publish(Thing(n=1))
    bus = await stage.process(module, seen=seen)
    await seen.comes_to("acked", 2)
    await seen.comes_to("termed", 1)
    assert [dead.reason for dead in await bus.dead_letters.list()] == ["undecodable"]
    assert sorted(n for batch in handler.batches for n in batch) == [0, 1]


async def test_idle_a_batch_does_not_wait_to_be_full(stage: Stage) -> None:
    handler, seen = Batches(), Seen()
    bus = await stage.process(Module(name="m", hears=[on_batch(Thing, handler, size=256, linger=0.02)]), seen=seen)
    async with at_most(0.5):
        await bus.publish(Thing(n=1))
        await seen.comes_to("acked", 1)
