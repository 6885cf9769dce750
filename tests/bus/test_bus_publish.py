"""What publishing promises: stored or an error, the same id at each try, a bounded window (K13, L7)."""

import asyncio
from typing import Any

import pytest

from nebengjek.bus.errors import NoStream, PublishTimeout
from nebengjek.bus.messages import Envelope, PubAck
from nebengjek.contracts.message import InvalidSubject
from nebengjek.errors import NebengJekError, Unavailable
from nebengjek.module import Module, on
from tests.bus.stage import Counted, Ear, Lost, Noted, Seen, Stage, Thing, within


async def test_publish_returns_when_it_is_stored(stage: Stage) -> None:
    bus = await stage.process()
    assert await bus.publish(Noted(n=1)) == PubAck("AUDIT", 1)
    assert await bus.publish(Noted(n=2)) == PubAck("AUDIT", 2)


async def test_the_same_event_published_twice_is_stored_once(stage: Stage) -> None:
    ear, seen = Ear(), Seen()
    bus = await stage.process(Module(name="m", hears=[on(Counted, ear)]), seen=seen)
    first = await bus.publish(Counted(n=1))
    again = await bus.publish(Counted(n=1))
    other = await bus.publish(Counted(n=2))
    assert (first.duplicate, again.duplicate, other.duplicate) == (False, True, False)
    await seen.comes_to("acked", 2)
    assert [event.n for event in ear.heard] == [1, 2]
    assert [context.message_id for context in ear.contexts] == ["thing.counted-t-1", "thing.counted-t-2"]


async def test_without_a_stream_it_is_refused(stage: Stage) -> None:
    seen = Seen()
    bus = await stage.process(seen=seen)
    with pytest.raises(NoStream):
        await bus.publish(Lost())
    assert seen.counts["publish failed"] == 1


@pytest.mark.parametrize("key", ["a.b", ">", "*", "", "a b", "é"])
async def test_a_key_cannot_reach_beyond_its_token(memory_stage: Stage, key: str) -> None:
    """A8."""
    bus = await memory_stage.process()
    with pytest.raises(InvalidSubject):
        await bus.publish(Noted(thing_id=key))
    with pytest.raises(InvalidSubject):
        await bus.publish_soon(Noted(thing_id=key))
    assert (await bus.broker.stream_info("AUDIT")).messages == 0


async def test_soon_everything_is_answered_once(stage: Stage) -> None:
    answers: list[tuple[str, Any]] = []

    def on_ack(envelope: Envelope, answer: PubAck | NebengJekError) -> None:
        answers.append((envelope.subject, answer))

    bus = await stage.process(window=8)
    for n in range(100):
        await bus.publish_soon(Noted(thing_id=str(n)), on_ack)
    await bus.publish_soon(Lost(), on_ack)
    await within(bus.flush())
    stored = {subject: answer for subject, answer in answers if isinstance(answer, PubAck)}
    assert len(answers) == 101
    assert len(stored) == 100
    assert {answer.seq for answer in stored.values()} == set(range(1, 101))
    [(subject, error)] = [pair for pair in answers if not isinstance(pair[1], PubAck)]
    assert (subject, type(error)) == ("lost.thing.t", NoStream)


async def test_when_the_window_is_full_the_caller_waits(stage: Stage) -> None:
    bus = await stage.process(window=3)
    # Without a connection nothing is answered.
    await stage.harness.stop()
    answers: list[PubAck | NebengJekError] = []
    waiting = [
        asyncio.create_task(bus.publish_soon(Noted(n=n), lambda _, answer: answers.append(answer))) for n in range(10)
    ]
    await stage.harness.advance(0.05)
    assert sum(task.done() for task in waiting) == 3
    assert answers == []
    await stage.harness.start()
    await within(asyncio.gather(*waiting))
    await within(bus.flush())
    assert len(answers) == 10
    assert [type(answer) for answer in answers] == [PubAck] * 10


async def test_while_the_connection_is_away_a_publish_waits_and_is_stored_once(stage: Stage) -> None:
    bus = await stage.process()
    await stage.harness.stop()
    publishing = asyncio.create_task(bus.publish(Noted(n=1)))
    await stage.harness.advance(0.2)
    assert not publishing.done()
    await stage.harness.start()
    await within(publishing)
    assert [event.n async for event in bus.replay(Noted)] == [1]


async def test_a_publish_gives_up_in_the_end(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nebengjek.bus.publishing.PUBLISH_TRIES", 2)
    monkeypatch.setattr("nebengjek.bus.publishing.PUBLISH_TIMEOUT", 0.1)
    seen = Seen()
    bus = await stage.process(seen=seen)
    await stage.harness.stop()
    with pytest.raises(PublishTimeout):
        await within(bus.publish(Noted()))
    answers: list[PubAck | NebengJekError] = []
    await bus.publish_soon(Noted(), lambda _, answer: answers.append(answer))
    await within(bus.flush())
    assert [type(answer) for answer in answers] == [PublishTimeout]
    assert seen.counts["publish failed timeout"] == 2
    await stage.harness.start()


async def test_what_is_under_way_when_the_process_ends_is_answered_too(stage: Stage) -> None:
    bus = await stage.process()
    await stage.harness.stop()
    answers: list[PubAck | NebengJekError] = []
    await bus.publish_soon(Noted(), lambda _, answer: answers.append(answer))
    await stage.end(bus, 0.2)
    assert [type(answer) for answer in answers] == [PublishTimeout]
    await stage.harness.start()


async def test_before_the_start_a_publish_waits(stage: Stage) -> None:
    bus = stage.new_bus()
    publishing = asyncio.create_task(bus.publish(Noted(n=1)))
    soon = asyncio.create_task(bus.publish_soon(Noted(n=2)))
    await asyncio.sleep(0)
    assert not publishing.done()
    await within(bus.start())
    await within(asyncio.gather(publishing, soon))
    await within(bus.flush())
    assert sorted([event.n async for event in bus.replay(Noted)]) == [1, 2]


async def test_without_a_start_it_says_so(memory_stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nebengjek.bus.publishing.PUBLISH_TIMEOUT", 0.02)
    with pytest.raises(Unavailable):
        await memory_stage.new_bus().publish(Noted())


async def test_handlers_may_publish_what_their_own_group_hears(stage: Stage) -> None:
    """A full house does not lock itself out."""
    seen = Seen()

    async def multiply(event: Thing) -> None:
        if event.n > 0:
            for _ in range(3):
                await bus.publish(Thing(n=event.n - 1))

    bus = await stage.process(Module(name="m", hears=[on(Thing, multiply, concurrency=2)]), seen=seen)
    await bus.publish(Thing(n=3))
    await seen.comes_to("acked", 1 + 3 + 9 + 27)
