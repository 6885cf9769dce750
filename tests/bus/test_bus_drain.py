"""The end of a process: what runs comes to its end, what does not comes again (L4, L5, L6, L10)."""

import asyncio
from typing import Any

from nebengjek.bus.handling import Context
from nebengjek.bus.interface import ConnectionStatus
from nebengjek.module import Module, on, on_batch
from tests.bus.stage import Ear, Noted, Seen, Stage, Thing
from tests.lateness import at_most


async def test_handlers_that_run_come_to_their_end_and_nothing_new_begins(stage: Stage) -> None:
    go = asyncio.Event()

    async def wait(event: Any, context: Context) -> None:
        await go.wait()

    ear, seen = Ear(wait), Seen()
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear, concurrency=3)]), seen=seen)
    for n in range(10):
        await bus.publish(Thing(n=n))
    await ear.hears(3)
    ending = asyncio.create_task(stage.end(bus))
    await asyncio.sleep(0.05)
    assert not ending.done()
    go.set()
    report = await ending
    assert (report.finished, report.abandoned) == (3, 0)
    assert len(ear.heard) == 3
    assert seen.counts["acked"] == 3
    assert bus.broker.status is ConnectionStatus.CLOSED
    rest = Ear()
    await stage.process(Module(name="m", hears=[on(Thing, rest)]))
    await rest.hears(7)
    assert sorted(event.n for event in rest.heard + ear.heard) == list(range(10))


async def test_a_stuck_handler_is_abandoned_and_its_message_comes_again(stage: Stage) -> None:
    cut_off = []

    async def stuck(event: Any, context: Context) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cut_off.append(event.n)
            raise

    ear, seen = Ear(stuck), Seen()
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear)]), seen=seen)
    await bus.publish(Thing(n=4))
    await ear.hears(1)
    before = asyncio.get_running_loop().time()
    async with at_most(1.5):
        report = await stage.end(bus, 0.2)
    assert asyncio.get_running_loop().time() - before >= 0.2
    assert (report.finished, report.abandoned) == (0, 1)
    assert cut_off == [4]
    again = Ear()
    await stage.process(Module(name="m", hears=[on(Thing, again)]))
    # At once, not after the ack wait of half a minute.
    await again.hears(1)
    assert again.deliveries == [2]


async def test_a_batch_that_is_stuck_comes_again_too(stage: Stage) -> None:
    begun = asyncio.Event()

    async def stuck(events: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    bus = await stage.process(Module(name="m", hears=[on_batch(Thing, stuck, size=8)]))
    for n in range(3):
        await bus.publish(Thing(n=n))
    await begun.wait()
    assert (await stage.end(bus, 0.1)).abandoned >= 1
    again = Ear()
    await stage.process(Module(name="m", hears=[on(Thing, again)]))
    await again.hears(3)


async def test_idle_loops_end_at_once(stage: Stage) -> None:
    modules = [Module(name=f"m{n}", hears=[on(Thing, Ear()), on(Noted, Ear())]) for n in range(5)]
    bus = await stage.process(*modules)
    async with at_most(1.0):
        report = await stage.end(bus)
    assert (report.finished, report.abandoned, report.unpublished) == (0, 0, 0)


async def test_what_handlers_say_at_the_end_is_still_published(stage: Stage) -> None:
    go = asyncio.Event()

    async def speak(event: Any, context: Context) -> None:
        await go.wait()
        async with stage.database.begin() as tx:
            await bus.outbox.add(tx, Noted(n=1))
        await bus.publish(Noted(n=2))
        await bus.publish_soon(Noted(n=3))

    ear = Ear(speak)
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear)]))
    await bus.publish(Thing())
    await ear.hears(1)
    ending = asyncio.create_task(stage.end(bus))
    await asyncio.sleep(0)
    go.set()
    assert (await ending).finished == 1
    after = await stage.process()
    async with asyncio.timeout(8):
        while len(said := [event.n async for event in after.replay(Noted)]) < 3:  # noqa: ASYNC110 - asks the server
            await asyncio.sleep(0.02)
    assert sorted(said) == [1, 2, 3]


async def left_over(before: set[asyncio.Task[Any]]) -> set[str]:
    """Tasks that the test's own relay to the server did not make."""
    for _ in range(20):
        await asyncio.sleep(0)
    names = {str(task.get_coro()) for task in asyncio.all_tasks() - before if not task.done()}
    return {name for name in names if "Relay." not in name}


async def test_no_task_is_left_behind(stage: Stage) -> None:
    async def stuck(event: Any, context: Context) -> None:
        await asyncio.Event().wait()

    before = asyncio.all_tasks()
    ear = Ear(stuck)
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear), on(Noted, Ear())]))
    await bus.publish(Thing())
    await ear.hears(1)
    await stage.end(bus, 0.1)
    assert await left_over(before) == set()


async def test_a_start_that_is_given_up_leaves_no_task_behind(stage: Stage) -> None:
    before = asyncio.all_tasks()
    await stage.harness.stop()
    bus = stage.new_bus(Module(name="m", hears=[on(Thing, Ear())]))
    starting = asyncio.create_task(bus.start())
    await stage.harness.advance(0.05)
    starting.cancel()
    await asyncio.wait((starting,))
    await stage.end(bus, 0.2)
    await stage.harness.start()
    assert await left_over(before) == set()
