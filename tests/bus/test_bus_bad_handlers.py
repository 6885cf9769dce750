"""Handlers that hang, raise what ends others, or publish into their own full queue: nothing is lost, loops go on."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec import structs
from structlog.typing import EventDict

from nebengjek.bus.errors import PublishRefused
from nebengjek.bus.handling import Context
from nebengjek.bus.queries import RemoteError
from nebengjek.bus.specs import Discard
from nebengjek.module import Module, answer, on, on_batch, watch
from tests.bus.stage import ADVISORIES, AUDIT, DEAD, THINGS, Double, Ear, News, Seen, Stage, Thing, within


class Leave(BaseException):
    """What a library of somebody's raises to get out."""


async def cancelled() -> None:
    """Wait for something that somebody else gave up."""
    waiting = asyncio.get_running_loop().create_future()
    waiting.cancel()
    await waiting


async def act(kind: str) -> None:
    if kind == "CancelledError":
        await cancelled()
    raise {"SystemExit": SystemExit(3), "Leave": Leave("now")}[kind]


KINDS = ["SystemExit", "CancelledError", "Leave"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_handler_that_would_end_its_process_is_tried_again_and_buried(stage: Stage, kind: str) -> None:
    async def handle(event: Any, context: Context) -> None:
        if event.n == 1:
            await act(kind)

    ear, seen = Ear(handle), Seen()
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear, max_deliver=3)]), seen=seen)
    await bus.publish(Thing(n=1))
    await bus.publish(Thing(n=2))
    await seen.comes_to("termed", 1)
    await seen.comes_to("acked", 1)
    [dead] = await bus.dead_letters.list()
    assert (dead.reason, dead.deliveries) == ("failed", 3)
    assert dead.error.startswith(f"Crashed: {kind}")
    assert sorted(event.n for event in ear.heard) == [1, 1, 1, 2]
    # With the delays between its tries: it does not burn them in a moment.
    moments = [moment for event, moment in zip(ear.heard, ear.moments, strict=True) if event.n == 1]
    assert moments[2] - moments[0] >= 0.15 - 2 * stage.harness.jitter
    assert (await bus.health()).ready


@pytest.mark.parametrize("kind", KINDS)
async def test_so_does_one_of_a_batch(stage: Stage, kind: str) -> None:
    handled: list[int] = []

    async def handle(events: Sequence[Thing]) -> None:
        if any(event.n == 1 for event in events):
            await act(kind)
        handled.extend(event.n for event in events)

    seen = Seen()
    bus = await stage.process(Module(name="m", hears=[on_batch(Thing, handle, size=8, max_deliver=2)]), seen=seen)
    for n in range(6):
        await bus.publish(Thing(n=n))
    await seen.comes_to("termed", 1)
    await seen.comes_to("acked", 5)
    assert sorted(handled) == [0, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", KINDS)
async def test_one_that_answers_or_watches_says_so_and_goes_on(
    stage: Stage, kind: str, logged: list[EventDict]
) -> None:
    watched: list[int] = []
    news = News()

    async def double(query: Double) -> int:
        if query.n == 1:
            await act(kind)
        return 2 * query.n

    async def look(event: Thing) -> None:
        watched.append(event.n)
        news.tell()
        if event.n == 1:
            await act(kind)

    bus = await stage.process(Module(name="m", answers=[answer(Double, double)], watches=[watch(Thing, look)]))
    with pytest.raises(RemoteError) as failed:
        # At once, not when the asker's patience is over.
        await within(bus.request(Double(n=1), timeout=60))
    assert failed.value.code == "INTERNAL"
    assert await bus.request(Double(n=2)) == 4
    await bus.publish(Thing(n=1))
    await bus.publish(Thing(n=2))
    await news.until(lambda: watched == [1, 2])
    assert [entry["event"] for entry in logged if entry["log_level"] == "error"] == ["query.failed", "watch.failed"]


async def test_a_handler_that_hangs_leaves_its_slot_and_the_others_go_on(stage: Stage) -> None:
    """One of two slots is taken; when its time is over the message is tried again, and in the end buried."""

    async def handle(event: Any, context: Context) -> None:
        if event.n == 0:
            await asyncio.Event().wait()

    ear, seen = Ear(handle), Seen()
    hears = [on(Thing, ear, concurrency=2, timeout=0.1, max_deliver=2)]
    bus = await stage.process(Module(name="m", hears=hears), seen=seen)
    for n in range(20):
        await bus.publish(Thing(n=n))
    await seen.comes_to("acked", 19)
    await seen.comes_to("termed", 1)
    assert sorted(event.n for event in ear.heard) == [0, *range(20)]
    assert [(dead.error, dead.deliveries) for dead in await bus.dead_letters.list()] == [("TimeoutError:", 2)]


async def test_a_batch_that_hangs_is_cut_off_and_handled_one_by_one(stage: Stage) -> None:
    handled: list[int] = []

    async def handle(events: Sequence[Thing]) -> None:
        if any(event.n == 0 for event in events):
            await asyncio.Event().wait()
        handled.extend(event.n for event in events)

    seen = Seen()
    hears = [on_batch(Thing, handle, size=8, timeout=0.1, max_deliver=1)]
    bus = await stage.process(Module(name="m", hears=hears), seen=seen)
    for n in range(4):
        await bus.publish(Thing(n=n))
    await seen.comes_to("acked", 3)
    await seen.comes_to("termed", 1)
    assert sorted(handled) == [1, 2, 3]


async def test_one_that_does_not_let_itself_be_cut_off_does_not_hold_up_the_end(stage: Stage) -> None:
    go, asked = asyncio.Event(), 0

    async def stubborn(event: Any, context: Context) -> None:
        nonlocal asked
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                asked += 1

    ear = Ear(stubborn)
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear)]))
    await bus.publish(Thing(n=4))
    await ear.hears(1)
    report = await within(stage.end(bus, 0.1), 5)
    assert (report.finished, report.abandoned) == (0, 1)
    assert asked >= 1
    go.set()


# -- a queue that is full

FULL = structs.replace(THINGS, max_msgs=4, discard=Discard.NEW)


async def test_a_handler_may_publish_into_its_own_full_queue(stage: Stage) -> None:
    """It is refused, comes again, and the queue empties in the end: by those that pass, and by dead letters."""
    seen, refused = Seen(), 0

    async def multiply(event: Thing) -> None:
        nonlocal refused
        for n in range(event.n):
            try:
                await bus.publish(Thing(n=n))
            except PublishRefused as error:
                refused += error.code == 10077
                raise

    module = Module(name="m", hears=[on(Thing, multiply, max_deliver=3, concurrency=2)])
    bus = await stage.process(module, seen=seen, specs=(FULL, AUDIT, DEAD, ADVISORIES))
    await bus.publish(Thing(n=5))

    def is_over() -> bool:
        return seen.counts["acked"] + seen.counts["termed"] == seen.counts["published THINGS"]

    await seen.until(is_over)
    assert refused > 0
    # The server takes a settled message out a moment after it was told so.
    async with asyncio.timeout(30):
        while (await bus.broker.stream_info("THINGS")).messages:  # noqa: ASYNC110 - it is asked, it does not tell
            await asyncio.sleep(0.005)
    # It takes again, and it delivers again.
    acked = seen.counts["acked"]
    await bus.publish(Thing(n=0))
    await seen.comes_to("acked", acked + 1)
    assert seen.counts["dead"] == await bus.dead_letters.count() == seen.counts["termed"]
    assert (await bus.broker.stream_info("THINGS")).messages == 0
    assert (await bus.health()).ready


async def test_a_window_of_one_does_not_lock_its_handlers_out(stage: Stage) -> None:
    seen = Seen()

    async def multiply(event: Thing) -> None:
        for _ in range(event.n):
            await bus.publish_soon(Thing(n=event.n - 1))

    module = Module(name="m", hears=[on(Thing, multiply, concurrency=2)])
    bus = await stage.process(module, seen=seen, window=1)
    await bus.publish(Thing(n=3))
    await seen.comes_to("acked", 1 + 3 + 6 + 6)


async def test_who_publishes_into_a_full_stream_is_told_and_the_outbox_keeps_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost: the row waits until there is room. Nothing spins: it is tried once in a while."""
    monkeypatch.setattr("nebengjek.bus.outbox.POLL_SECONDS", 0.2)
    monkeypatch.setattr("nebengjek.bus.outbox.HOLD_SECONDS", 0.2)
    go, seen = asyncio.Event(), Seen()

    async def wait(event: Any, context: Context) -> None:
        await go.wait()

    ear = Ear(wait)
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear)]), seen=seen, specs=(FULL, AUDIT, DEAD))
    for n in range(4):
        await bus.publish(Thing(thing_id=f"t{n}", n=n))
    await ear.hears(4)
    with pytest.raises(PublishRefused):
        await bus.publish(Thing(n=100))
    answers: list[Any] = []
    await bus.publish_soon(Thing(n=101), lambda _, answer: answers.append(answer))
    await within(bus.flush())
    assert [(type(error), error.code) for error in answers] == [(PublishRefused, 10077)]
    before = seen.counts["publish failed 10077"]
    async with stage.database.begin() as tx:
        await bus.outbox.add(tx, *(Thing(thing_id="late", n=n) for n in range(10, 14)))
    await seen.comes_to("publish failed 10077", before + 2)
    assert seen.counts["publish failed 10077"] == before + 2
    assert await bus.outbox.size() == 4
    go.set()
    await ear.hears(8)
    assert [event.n for event in ear.heard if event.thing_id == "late"] == [10, 11, 12, 13]
    await seen.comes_to("acked", 8)


async def test_a_dead_letter_waits_while_their_stream_is_full(stage: Stage) -> None:
    full = structs.replace(DEAD, max_msgs=1, discard=Discard.NEW)
    seen = Seen()

    async def fail(event: Any, context: Context) -> None:
        raise ValueError("no")

    module = Module(name="m", hears=[on(Thing, fail, max_deliver=1, ack_wait=0.5)])
    bus = await stage.process(module, seen=seen, specs=(THINGS, AUDIT, full, ADVISORIES))
    await bus.publish(Thing(n=1))
    await seen.comes_to("termed", 1)
    await bus.publish(Thing(n=2))
    await seen.comes_to("dead not stored, tried again", 4)
    assert seen.counts["termed"] == 1
    [first] = await bus.dead_letters.list()
    await bus.dead_letters.drop(first.seq)
    await seen.comes_to("termed", 2)
    assert [dead.data[-2] for dead in await bus.dead_letters.list()] == ["2"]
    assert seen.counts["dead process died on the last try"] == 0
