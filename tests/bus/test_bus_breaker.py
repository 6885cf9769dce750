"""A dependency that does not answer burns no tries: the loop pauses, one goes ahead, the rest follow (K11)."""

import asyncio
from typing import Any

import pytest

from nebengjek.bus.breaker import Breaker, BreakerState
from nebengjek.bus.handling import Context
from nebengjek.errors import NotFound, Unavailable
from nebengjek.module import Module, on, on_batch
from tests.bus.stage import Ear, Seen, Stage, Thing, within
from tests.lateness import at_most


class Dependency:
    """Answers, or not; counts who asks at the same time."""

    def __init__(self) -> None:
        self.up = False
        self.asked = 0
        self.asking = 0
        self.most = 0
        self.order: list[int] = []

    async def ask(self, n: int) -> None:
        self.asked += 1
        self.asking += 1
        self.most = max(self.most, self.asking)
        try:
            await asyncio.sleep(0.01)
            if not self.up:
                raise Unavailable("gateway")
            self.order.append(n)
        finally:
            self.asking -= 1


async def test_an_outage_burns_no_tries_and_ends_with_one(stage: Stage) -> None:
    gateway, seen = Dependency(), Seen()

    async def handle(event: Any, context: Context) -> None:
        await gateway.ask(event.n)

    ear = Ear(handle)
    bus = await stage.process(
        Module(name="m", hears=[on(Thing, ear, concurrency=4, max_deliver=2, ack_wait=0.25)]), seen=seen
    )
    for n in range(30):
        await bus.publish(Thing(n=n))
    await ear.hears(4)
    # Longer than two ack waits: what is held is kept, what waits behind the breaker is not pulled.
    await stage.harness.advance(0.7)
    [health] = (await bus.health()).consumers
    assert (health.blocked_by, health.moving) == ("gateway", False)
    assert (await bus.health()).breakers["gateway"] != BreakerState.CLOSED
    assert len({event.n for event in ear.heard}) <= 12
    assert gateway.asked <= 12, "only one asks at a time, and ever later"
    assert (seen.counts["naked"], seen.counts["acked"]) == (0, 0)
    gateway.up, gateway.most = True, 0
    await seen.comes_to("acked", 30)
    assert set(ear.deliveries) == {1}
    assert sorted(gateway.order) == list(range(30))
    assert await bus.dead_letters.count() == 0
    assert (await bus.health()).consumers[0].moving


async def test_a_batch_waits_too(stage: Stage) -> None:
    gateway, seen = Dependency(), Seen()

    async def handle(events: Any) -> None:
        await gateway.ask(len(events))

    bus = await stage.process(Module(name="m", hears=[on_batch(Thing, handle, size=8, max_deliver=2)]), seen=seen)
    for n in range(20):
        await bus.publish(Thing(n=n))
    await stage.harness.advance(0.3)
    gateway.up = True
    await seen.comes_to("acked", 20)
    assert sum(gateway.order) == 20
    assert (seen.counts["naked"], seen.counts["redelivered"]) == (0, 0)


async def test_drain_does_not_wait_for_a_dependency(stage: Stage) -> None:
    gateway, seen, ear = Dependency(), Seen(), Ear()
    in_hand: set[int] = set()
    all_there = asyncio.Event()

    async def handle(event: Any, context: Context) -> None:
        # After the first refusal nothing is pulled any more.
        in_hand.add(event.n)
        if len(in_hand) == 5:
            all_there.set()
        await all_there.wait()
        await gateway.ask(event.n)

    bus = await stage.process(Module(name="m", hears=[on(Thing, handle)]), seen=seen)
    for n in range(5):
        await bus.publish(Thing(n=n))
    await within(_asked(gateway, 5))
    async with at_most(1.0):
        report = await stage.end(bus, 5.0)
    assert (report.abandoned, report.finished) == (0, 5)
    if bus.broker.durable:
        await stage.process(Module(name="m", hears=[on(Thing, ear)]))
        await ear.hears(5)


async def _asked(gateway: Dependency, count: int) -> None:
    while gateway.asked < count:  # noqa: ASYNC110 - a fake counts, it does not tell
        await asyncio.sleep(0.005)


# -- the breaker by itself


class Sleeper:
    """Remembers how long somebody wanted to sleep; wakes when told."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self._asleep = asyncio.Event()
        self._awake = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._asleep.set()
        await self._awake.wait()
        self._awake.clear()

    async def wake(self) -> None:
        await self._asleep.wait()
        self._asleep.clear()
        self._awake.set()


async def attempt(breaker: Breaker, error: Exception | None = None, stopping: asyncio.Event | None = None) -> str:
    async with breaker.turn(stopping or asyncio.Event()):
        if error is not None:
            raise error
        return "done"


async def test_the_pause_grows_with_each_failure_and_is_bounded() -> None:
    sleeper = Sleeper()
    breaker = Breaker("x", sleeper, first=1.0, longest=5.0)
    breaker.trip()
    for _ in range(4):
        waiting = asyncio.create_task(attempt(breaker, Unavailable("x")))
        await sleeper.wake()
        with pytest.raises(Unavailable):
            await waiting
    assert sleeper.slept == [1.0, 2.0, 4.0, 5.0]
    last = asyncio.create_task(attempt(breaker))
    await sleeper.wake()
    assert await last == "done"
    assert breaker.state is BreakerState.CLOSED
    breaker.trip()
    again = asyncio.create_task(attempt(breaker))
    await sleeper.wake()
    await again
    assert sleeper.slept[-1] == 1.0


async def test_exactly_one_goes_ahead() -> None:
    sleeper, inside = Sleeper(), 0
    breaker = Breaker("x", sleeper)
    breaker.trip()
    proceed = asyncio.Event()

    async def go() -> None:
        nonlocal inside
        async with breaker.turn(asyncio.Event()):
            inside += 1
            await proceed.wait()

    tasks = [asyncio.create_task(go()) for _ in range(5)]
    await sleeper.wake()
    for _ in range(20):
        await asyncio.sleep(0)
    assert (inside, breaker.state) == (1, BreakerState.HALF_OPEN)
    proceed.set()
    await within(asyncio.gather(*tasks))
    assert inside == 5
    assert len(sleeper.slept) == 1


@pytest.mark.parametrize("error", [NotFound("x"), Unavailable("other"), ValueError("x")])
async def test_another_failure_says_that_the_dependency_answers(error: Exception) -> None:
    sleeper = Sleeper()
    breaker = Breaker("x", sleeper)
    breaker.trip()
    waiting = asyncio.create_task(attempt(breaker, error))
    await sleeper.wake()
    with pytest.raises(type(error)):
        await waiting
    assert breaker.state is BreakerState.CLOSED


async def test_one_that_is_cut_off_leaves_its_turn_to_another() -> None:
    sleeper = Sleeper()
    breaker = Breaker("x", sleeper)
    breaker.trip()

    inside = asyncio.Event()

    async def stuck() -> None:
        async with breaker.turn(asyncio.Event()):
            inside.set()
            await asyncio.Event().wait()

    first = asyncio.create_task(stuck())
    await sleeper.wake()
    await inside.wait()
    second = asyncio.create_task(attempt(breaker))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait((first,))
    await sleeper.wake()
    assert await within(second) == "done"


async def test_who_is_told_to_stop_does_not_wait_for_his_turn() -> None:
    breaker, stopping = Breaker("x", Sleeper()), asyncio.Event()
    breaker.trip()
    tasks = [asyncio.create_task(attempt(breaker, stopping=stopping)) for _ in range(3)]
    await asyncio.sleep(0)
    stopping.set()
    results = await within(asyncio.gather(*tasks, return_exceptions=True))
    assert [type(result) for result in results] == [Unavailable] * 3
