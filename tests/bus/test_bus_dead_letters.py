"""Dead letters: kept, shown, replayed to the one that failed, dropped (K2, K6, K7)."""

import asyncio
from typing import Any

import pytest

from nebengjek.bus.handling import Context, Reject
from nebengjek.bus.messages import MAX_PAYLOAD
from nebengjek.bus.messaging import MessageBus
from nebengjek.errors import NotFound
from nebengjek.module import Module, on, watch
from tests.bus.stage import DEAD, Ear, Noted, Seen, Stage, Thing, within


class Picky(Ear):
    """Refuses until it is ``content``."""

    def __init__(self) -> None:
        super().__init__(self._judge)
        self.content = False
        self.complaint = "not that one"

    async def _judge(self, event: Any, context: Context) -> None:
        if not self.content:
            raise Reject(self.complaint)


class Stagehand:
    """Two modules hear the same event, one of them is picky, every pod watches it."""

    def __init__(self) -> None:
        self.picky, self.other, self.seen = Picky(), Ear(), Seen()
        self.watched: list[Thing] = []

    async def _watch(self, event: Thing) -> None:
        self.watched.append(event)

    def modules(self) -> list[Module]:
        return [
            Module(name="picky", hears=[on(Thing, self.picky)]),
            Module(name="other", hears=[on(Thing, self.other)], watches=[watch(Thing, self._watch)]),
        ]

    async def one_dead(self, stage: Stage) -> MessageBus:
        bus = await stage.process(*self.modules(), seen=self.seen)
        await bus.publish(Thing(thing_id="x", n=1))
        await self.seen.comes_to("termed", 1)
        await self.seen.comes_to("acked thing_happened_other", 1)
        return bus


async def test_a_replay_reaches_only_the_consumer_that_failed(stage: Stage) -> None:
    hand = Stagehand()
    bus = await hand.one_dead(stage)
    [dead] = await bus.dead_letters.list()
    hand.picky.content = True
    assert await bus.dead_letters.replay(dead.seq) == dead
    await hand.seen.comes_to("acked thing_happened_picky", 1)
    # The other one acks it unread, and it is on no watch.
    await hand.seen.comes_to("acked thing_happened_other", 2)
    assert hand.other.heard == [Thing(thing_id="x", n=1)]
    assert hand.picky.heard == [Thing(thing_id="x", n=1)] * 2
    assert hand.watched == [Thing(thing_id="x", n=1)]
    first, again = hand.picky.contexts
    assert again.message_id == first.message_id
    assert again.deliveries == 1
    assert await bus.dead_letters.count() == 0


async def test_a_replay_that_fails_again_is_a_dead_letter_again_and_can_be_replayed_again(stage: Stage) -> None:
    hand = Stagehand()
    bus = await hand.one_dead(stage)
    [first] = await bus.dead_letters.list()
    hand.picky.complaint = "still not"
    await bus.dead_letters.replay(first.seq)
    await hand.seen.comes_to("termed", 2)
    [second] = await bus.dead_letters.list()
    assert second.seq > first.seq
    assert (second.message_id, second.data, second.consumer) == (first.message_id, first.data, first.consumer)
    assert second.error == "Reject: still not"
    hand.picky.content = True
    await bus.dead_letters.replay(second.seq)
    await hand.seen.comes_to("acked thing_happened_picky", 1)
    await hand.seen.comes_to("acked thing_happened_other", 3)
    assert [context.message_id for context in hand.picky.contexts] == [first.message_id] * 3
    assert len(hand.other.heard) == 1


async def test_dropped_is_forgotten(stage: Stage) -> None:
    bus = await Stagehand().one_dead(stage)
    [dead] = await bus.dead_letters.list()
    assert await bus.dead_letters.show(dead.seq) == dead
    assert await bus.dead_letters.drop(dead.seq) == dead
    assert await bus.dead_letters.list() == []
    for ask in (bus.dead_letters.show, bus.dead_letters.drop, bus.dead_letters.replay):
        with pytest.raises(NotFound):
            await ask(dead.seq)


async def test_they_are_listed_a_page_at_a_time(stage: Stage) -> None:
    seen = Seen()
    bus = await stage.process(Module(name="m", hears=[on(Thing, Picky())]), seen=seen)
    for n in range(5):
        await bus.publish(Thing(n=n))
        await seen.comes_to("termed", n + 1)
    page = await bus.dead_letters.list(limit=2)
    rest = await bus.dead_letters.list(limit=10, after=page[-1].seq)
    assert [dead.data[-2] for dead in page + rest] == list("01234")
    await bus.dead_letters.drop(rest[0].seq)
    assert [dead.data[-2] for dead in await bus.dead_letters.list()] == list("0134")
    assert await bus.dead_letters.count() == 4


async def test_they_outlive_the_process(stage: Stage) -> None:
    hand = Stagehand()
    bus = await hand.one_dead(stage)
    [before] = await bus.dead_letters.list()
    await stage.die(bus)
    hand.picky.content = True
    reborn = await stage.process(*hand.modules(), seen=hand.seen)
    [after] = await reborn.dead_letters.list()
    assert (after.message_id, after.data, after.headers, after.error) == (
        before.message_id,
        before.data,
        before.headers,
        before.error,
    )
    await reborn.dead_letters.replay(after.seq)
    await hand.seen.comes_to("acked thing_happened_picky", 1)
    # Replayed is replayed, also for the process after that.
    await stage.die(reborn)
    last = await stage.process(*hand.modules())
    assert await last.dead_letters.list() == []


async def test_the_same_sequence_after_a_restart_is_another_message(memory_stage: Stage) -> None:
    """A broker in the process begins at 1 again."""
    stage, seen = memory_stage, Seen()
    module = Module(name="m", hears=[on(Thing, Picky())])
    bus = await stage.process(module, seen=seen)
    await bus.publish(Thing(n=1))
    await seen.comes_to("termed", 1)
    await stage.die(bus)
    reborn = await stage.process(module, seen=seen)
    await reborn.publish(Thing(n=2))
    await seen.comes_to("termed", 2)
    assert [dead.data[-2] for dead in await reborn.dead_letters.list()] == ["1", "2"]


async def test_a_message_is_held_until_its_dead_letter_is_stored(stage: Stage) -> None:
    ear, seen = Picky(), Seen()
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear, max_deliver=1, ack_wait=1.0)]), seen=seen)
    await bus.broker.delete_stream(DEAD.name)
    await bus.publish(Thing())
    await seen.comes_to("dead not stored, tried again", 2)
    assert seen.counts["termed"] == 0
    assert (await bus.broker.consumer_info("THINGS", "thing_happened_m")).num_ack_pending == 1
    await bus.broker.create_stream(DEAD)
    await seen.comes_to("termed", 1)
    assert [dead.reason for dead in await bus.dead_letters.list()] == ["rejected"]
    assert len(ear.heard) == 1


@pytest.mark.parametrize("complaint", ["a" * 499 + " b", "line\r\nbreak\ttab", "é" * 2000, "  "])
async def test_whatever_the_error_says_it_can_be_stored(stage: Stage, complaint: str) -> None:
    ear, seen = Picky(), Seen()
    ear.complaint = complaint
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear)]), seen=seen)
    await bus.publish(Thing())
    await seen.comes_to("termed", 1)
    [dead] = await bus.dead_letters.list()
    assert dead.error.startswith("Reject:")


async def test_what_a_publisher_expected_of_its_stream_is_not_expected_of_the_dead_letters(stage: Stage) -> None:
    hand = Stagehand()
    bus = await stage.process(*hand.modules(), seen=hand.seen)
    headers = {"Nats-Expected-Stream": "THINGS", "Nats-Expected-Last-Sequence": "0", "Nats-Msg-Id": "a", "k": "v"}
    await stage.publish_raw("thing.happened.x", b'{"type":"thing.happened","thing_id":"x"}', headers)
    await hand.seen.comes_to("termed", 1)
    [dead] = await bus.dead_letters.list()
    assert (dead.message_id, dead.headers["k"]) == ("a", "v")
    hand.picky.content = True
    await bus.dead_letters.replay(dead.seq)
    await hand.seen.comes_to("acked thing_happened_picky", 1)


async def test_a_body_without_room_for_the_cause_is_cut(stage: Stage) -> None:
    seen = Seen()
    bus = await stage.process(Module(name="m", hears=[on(Thing, Ear())]), seen=seen)
    await stage.publish_raw("thing.happened.x", b"x" * MAX_PAYLOAD)
    await seen.comes_to("termed", 1)
    [dead] = await bus.dead_letters.list()
    assert dead.reason == "undecodable"
    assert MAX_PAYLOAD - 2000 < len(dead.data) < MAX_PAYLOAD


async def test_a_process_that_dies_on_the_last_try_leaves_a_dead_letter(stage: Stage) -> None:
    ear, seen = Ear(), Seen()
    # Long enough for the second process to listen: the server says it once, to whoever is there.
    module = Module(name="m", hears=[on(Thing, ear, max_deliver=1, ack_wait=1.0)])
    # Either process may be the one that the server tells.
    asleep = await stage.process(module, running=False, seen=seen)
    await asleep.publish(Thing(n=9))
    # Somebody took it and was heard of no more.
    batch = await within(asleep.broker.pull("THINGS", "thing_happened_m", expires=2.0))
    assert [delivery.deliveries for delivery in batch.messages] == [1]
    bus = await stage.process(module, seen=seen)
    await seen.comes_to("dead process died on the last try", 1)
    [dead] = await bus.dead_letters.list()
    assert (dead.consumer, dead.deliveries) == ("thing_happened_m", 1)
    assert dead.data == '{"type":"thing.happened","thing_id":"t","n":9}'
    assert ear.heard == []


async def test_a_history_does_not_show_what_was_only_said_again(stage: Stage) -> None:
    ear, seen = Picky(), Seen()
    bus = await stage.process(Module(name="m", hears=[on(Noted, ear)]), seen=seen)
    for n in range(3):
        await bus.publish(Noted(n=n))
        await seen.comes_to("termed", n + 1)
    ear.content = True
    [first, *_] = await bus.dead_letters.list()
    await bus.dead_letters.replay(first.seq)
    await seen.comes_to("acked", 1)
    await stage.publish_raw("audit.noted.x", b"not an event")
    await seen.comes_to("termed", 4)
    assert [event.n async for event in bus.replay(Noted)] == [0, 1, 2]
    assert [event.n async for event in bus.replay(Noted, since=2)] == [1, 2]
    stored = await bus.broker.get_message("AUDIT", 3)
    assert [event.n async for event in bus.replay(Noted, since=stored.time)] == [2]


async def test_two_operators_see_one_dead_letter(stage: Stage) -> None:
    """Buried twice, by the loop and by the server's word, it is there once."""
    hand = Stagehand()
    bus = await hand.one_dead(stage)
    [dead] = await bus.dead_letters.list()
    message = await bus.broker.get_message(DEAD.name, dead.seq)
    await asyncio.gather(*(bus.broker.submit(message.subject, message.data, message.headers) for _ in range(3)))
    assert await bus.dead_letters.count() == 1
