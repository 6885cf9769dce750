"""F: what becomes of a delivery."""

import asyncio
from itertools import pairwise

import msgspec
import pytest

from nebengjek.bus.deliveries import Batch, PullStatus
from nebengjek.bus.errors import AckTimeout, AlreadySettled, ApiError
from nebengjek.bus.specs import Ack, Retention
from tests.conformance.harness import (
    LATE,
    Ear,
    Harness,
    T,
    consumer,
    counts,
    here,
    nothing_comes,
    publish,
    pull,
    seqs,
    stream,
    timed_pull,
)


async def floors(broker: object, name: str = "c") -> tuple[int, int]:
    info = await broker.consumer_info("S", name)  # type: ignore[attr-defined]
    return info.ack_floor.consumer, info.ack_floor.stream


async def test_f1_what_is_not_acked_comes_again_each_ack_wait(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, ack_wait=T, max_deliver=-1)
    await publish(broker, "s.a")
    last = 0.0
    for expected in (1, 2, 3):
        batch, now = await timed_pull(harness, broker)
        assert (seqs(batch), counts(batch)) == ([1], [expected])
        if expected > 1:
            assert T - harness.jitter <= now - last <= T + LATE
        last = now
    message = (await pull(harness, broker)).messages[0]
    assert (message.deliveries, message.consumer_seq) == (4, 4)
    await message.ack_sync()
    await nothing_comes(harness, broker, within=2 * T)


async def test_f2_max_deliver_is_exact_and_told_once(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, ack_wait=T, max_deliver=3)
    ear = await Ear(harness).listen(broker, "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.S.c")
    await publish(broker, "s.a")
    for expected in (1, 2, 3):
        assert counts(await pull(harness, broker)) == [expected]
    await nothing_comes(harness, broker, within=4 * T)
    await nothing_comes(harness, broker, within=2 * T)
    (advisory,) = [msgspec.json.decode(one.data) for one in ear.messages]
    assert advisory["type"] == "io.nats.jetstream.advisory.v1.max_deliver"
    assert (advisory["stream"], advisory["consumer"]) == ("S", "c")
    assert (advisory["stream_seq"], advisory["deliveries"]) == (1, 3)
    assert (await broker.get_message("S", 1)).subject == "s.a"
    assert (await broker.consumer_info("S", "c")).num_ack_pending == 0


async def test_f3_the_advisory_can_be_captured_by_a_stream(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await stream(broker, "ADVISORIES", "$JS.EVENT.ADVISORY.CONSUMER.*.>")
    await consumer(broker, ack_wait=T, max_deliver=1)
    await publish(broker, "s.a")
    await here(broker)
    await nothing_comes(harness, broker, within=3 * T)
    subject = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.S.c"
    assert (await broker.get_message("ADVISORIES", last_by_subject=subject)).data


async def test_f4_nak_is_at_once(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, ack_wait=30.0)
    await publish(broker, "s.a", "s.a", "s.a")
    first, second, third = (await here(broker)).messages
    for message in (third, first, second):
        await message.nak()
    # In the order of the naks. A server takes them a little later than it is told: something new might overtake them.
    batch = await pull(harness, broker, 3)
    assert (seqs(batch), counts(batch)) == ([3, 1, 2], [2, 2, 2])
    await publish(broker, "s.a")
    batch = await pull(harness, broker, 1)
    assert (seqs(batch), counts(batch)) == ([4], [1])


async def test_f5_nak_with_a_delay(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, ack_wait=T)
    await publish(broker, "s.a")
    began = broker.monotonic()
    await (await here(broker)).messages[0].nak(3 * T)
    batch = await pull(harness, broker)
    assert counts(batch) == [2]
    assert 3 * T <= broker.monotonic() - began <= 3 * T + LATE
    await batch.messages[0].ack()


async def test_f6_a_short_delay_is_earlier_than_the_ack_wait(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, ack_wait=30.0)
    await publish(broker, "s.a", "s.b")
    first, _ = (await here(broker)).messages
    began = broker.monotonic()
    await first.nak(T)
    assert seqs(await pull(harness, broker)) == [1]
    assert T <= broker.monotonic() - began <= T + LATE


async def test_f7_backoff(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, backoff=(T, 2 * T, 4 * T), max_deliver=5)
    await publish(broker, "s.a")
    moments = []
    for expected in range(1, 6):
        batch, now = await timed_pull(harness, broker, 8 * T)
        assert counts(batch) == [expected]
        moments.append(now)
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    for gap, wanted in zip(gaps, (T, 2 * T, 4 * T, 4 * T), strict=True):
        assert wanted - harness.jitter <= gap <= wanted + LATE


async def test_f8_a_plain_nak_does_not_wait_for_the_backoff(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, backoff=(20.0, 30.0), max_deliver=5)
    await publish(broker, "s.a")
    await (await here(broker)).messages[0].nak()
    assert counts(await pull(harness, broker)) == [2]


async def test_f10_what_expired_comes_in_order_and_before_the_new(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, ack_wait=T)
    await publish(broker, *["s.a"] * 3)
    await here(broker, 3)
    await publish(broker, *["s.a"] * 2)
    await harness.advance(T + LATE)
    batch = await here(broker)
    assert (seqs(batch), counts(batch)) == ([1, 2, 3, 4, 5], [2, 2, 2, 1, 1])


async def test_f11_in_progress_begins_the_ack_wait_anew(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, ack_wait=2 * T)
    await publish(broker, "s.a")
    (message,) = (await here(broker)).messages
    waiting = asyncio.ensure_future(broker.pull("S", "c", expires=20 * T))
    for _ in range(6):
        await harness.advance(T)
        assert not waiting.done()
        await message.in_progress()
    began = broker.monotonic()
    again = await harness.until(waiting)
    assert counts(again) == [2]
    assert broker.monotonic() - began >= 2 * T - harness.jitter


async def test_f12_term_is_the_end(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, ack_wait=T)
    ear = await Ear(harness).listen(broker, "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.S.c")
    await publish(broker, "s.a", "s.a")
    first, second = (await here(broker)).messages
    await first.term("no such ride")
    await second.term()
    heard = [msgspec.json.decode(one.data) for one in await ear.hears(2)]
    assert [(one["stream_seq"], one["deliveries"], one.get("reason", "")) for one in heard] == [
        (1, 1, "no such ride"),
        (2, 1, ""),
    ]
    await nothing_comes(harness, broker, within=2 * T)
    assert await floors(broker) == (2, 2)


async def test_f13_a_nak_is_told(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    ear = await Ear(harness).listen(broker, "$JS.EVENT.ADVISORY.CONSUMER.MSG_NAKED.S.c")
    await publish(broker, "s.a")
    await (await here(broker)).messages[0].nak()
    (advisory,) = [msgspec.json.decode(one.data) for one in await ear.hears(1)]
    assert (advisory["stream_seq"], advisory["deliveries"]) == (1, 1)


async def test_f14_a_delivery_is_settled_once(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, ack_wait=T)
    await publish(broker, "s.a")
    (message,) = (await here(broker)).messages
    await message.ack()
    for again in (message.ack, message.nak, message.term, message.in_progress, message.ack_sync):
        with pytest.raises(AlreadySettled):
            await again()
    await nothing_comes(harness, broker, within=2 * T)


async def test_f14_an_old_delivery_settles_the_message(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, ack_wait=T, max_deliver=5)
    await publish(broker, "s.a", "s.b")
    old = (await here(broker)).messages
    new = (await pull(harness, broker, 2)).messages
    assert [message.deliveries for message in new] == [2, 2]
    await old[0].ack_sync()
    # An old nak counts as much.
    await old[1].nak()
    batch = await pull(harness, broker)
    assert (seqs(batch), counts(batch)) == ([2], [3])
    await new[0].nak()
    await batch.messages[0].ack_sync()
    await nothing_comes(harness, broker, within=2 * T)
    info = await broker.consumer_info("S", "c")
    assert (info.num_ack_pending, info.num_redelivered) == (0, 0)


async def test_f15_anyone_may_settle(harness: Harness) -> None:
    broker, other = await harness.make_broker(), await harness.make_broker()
    await stream(broker)
    await consumer(broker, ack_wait=T)
    await publish(broker, "s.a")
    (message,) = (await here(other)).messages
    assert (message.stream, message.consumer, message.subject, message.data) == ("S", "c", "s.a", b"x")
    assert (
        message.time == (await broker.get_message("S", 1)).time
        or abs((message.time - (await broker.get_message("S", 1)).time).total_seconds()) < 0.001
    )
    await message.ack_sync()
    await nothing_comes(harness, broker, within=2 * T)


async def test_f16_the_ack_floor(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    await publish(broker, *["s.a"] * 5)
    batch = await here(broker)
    seen = []
    for seq in (2, 3, 5, 1, 4):
        await batch.messages[seq - 1].ack_sync()
        seen.append(await floors(broker))
    assert seen == [(0, 0), (0, 0), (0, 0), (3, 3), (5, 5)]


async def test_f16_the_ack_floor_jumps_over_foreign_messages(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, "c", "S", "s.a")
    await publish(broker, "s.a", "s.b", "s.b", "s.a", "s.b", "s.a")
    first, second, third = (await here(broker, 3)).messages
    await first.ack_sync()
    assert await floors(broker) == (1, 3)
    await third.ack_sync()
    assert await floors(broker) == (1, 3)
    await second.ack_sync()
    assert await floors(broker) == (3, 6)


async def test_f17_max_ack_pending(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, max_ack_pending=2)
    await publish(broker, *["s.a"] * 4)
    batch = await pull(harness, broker, 4, expires=T)
    assert (seqs(batch), batch.status) == ([1, 2], PullStatus.TIMEOUT)
    waiting = asyncio.ensure_future(broker.pull("S", "c", batch=4, expires=T))
    await harness.advance(T / 4)
    await batch.messages[0].ack()
    batch = await harness.until(waiting)
    assert (seqs(batch), batch.status) == ([3], PullStatus.TIMEOUT)


async def test_f18_what_comes_again_passes_a_stalled_consumer(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, max_ack_pending=2, ack_wait=30.0)
    await publish(broker, *["s.a"] * 4)
    _, second = (await pull(harness, broker, 2)).messages
    await second.nak()
    batch = await pull(harness, broker, 4, expires=T)
    assert (seqs(batch), counts(batch)) == ([2], [2])


async def test_f19_a_delayed_nak_takes_its_place(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, max_ack_pending=1, ack_wait=30.0)
    await publish(broker, "s.a", "s.b")
    began = broker.monotonic()
    await (await here(broker, 1)).messages[0].nak(4 * T)
    batch = await pull(harness, broker, 1, expires=8 * T)
    assert (seqs(batch), counts(batch)) == ([1], [2])
    assert broker.monotonic() - began >= 4 * T


async def test_f20_ack_all(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, ack=Ack.ALL, ack_wait=T)
    await publish(broker, *["s.a"] * 4)
    batch = await here(broker)
    await batch.messages[2].ack_sync()
    assert await floors(broker) == (3, 3)
    again = await pull(harness, broker, expires=3 * T)
    assert (seqs(again), counts(again)) == ([4], [2])


async def test_f20_ack_none(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, ack=Ack.NONE, max_deliver=-1)
    await publish(broker, *["s.a"] * 3)
    assert seqs(await here(broker)) == [1, 2, 3]
    await nothing_comes(harness, broker, within=T)
    assert await floors(broker) == (3, 3)


async def test_f21_a_confirmed_ack(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, ack_wait=2 * T)
    await publish(broker, "s.a", "s.b")
    first, second = (await here(broker)).messages
    await first.ack_sync()
    assert await floors(broker) == (1, 1)
    await harness.stop()
    with pytest.raises(AckTimeout):
        await harness.until(second.ack_sync(timeout=T))
    await harness.start()
    await harness.back(broker)
    batch = await pull(harness, broker, expires=2 * T + 1)
    assert (seqs(batch), counts(batch)) == ([2], [2])


async def test_f23_deleting_a_consumer_forgets_what_it_knew(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    await publish(broker, "s.a")
    (message,) = (await here(broker)).messages
    await broker.delete_consumer("S", "c")
    with pytest.raises(ApiError):
        await broker.consumer_info("S", "c")
    await message.ack()
    await consumer(broker)
    assert counts(await here(broker)) == [1]


async def test_f24_acking_twice_is_harmless(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, ack_wait=T, max_deliver=5)
    await publish(broker, "s.a", "s.b")
    first = (await here(broker, 1)).messages[0]
    again = (await pull(harness, broker, 2)).messages
    assert sorted((one.seq, one.deliveries) for one in again) == [(1, 2), (2, 1)]
    await first.ack_sync()
    for one in again:
        # Also what was acked before is confirmed.
        await one.ack_sync()
    assert await floors(broker) == (3, 2)
    await nothing_comes(harness, broker, within=2 * T)


async def test_f24_a_nak_after_the_ack_is_nothing(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, ack_wait=T, max_deliver=5)
    await publish(broker, "s.a")
    (old,) = (await here(broker)).messages
    (new,) = (await pull(harness, broker)).messages
    await new.ack_sync()
    await old.nak()
    await nothing_comes(harness, broker, within=2 * T)


async def test_f25_two_naks_are_one(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, ack_wait=2 * T, max_deliver=9)
    await publish(broker, "s.a")
    (old,) = (await here(broker)).messages
    (new,) = (await pull(harness, broker)).messages
    assert new.deliveries == 2
    await old.nak()
    await new.nak()
    batch = await pull(harness, broker, 2, expires=T)
    assert (seqs(batch), counts(batch)) == ([1], [3])


async def test_f25_a_plain_nak_overrides_a_delay(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, ack_wait=2 * T, max_deliver=9)
    await publish(broker, "s.a")
    (old,) = (await here(broker)).messages
    (new,) = (await pull(harness, broker)).messages
    await new.nak(30.0)
    await old.nak()
    assert counts(await pull(harness, broker, expires=T)) == [3]


async def test_f25_a_delay_calls_back_what_was_to_come_at_once(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, ack_wait=T, max_deliver=9)
    await publish(broker, "s.a", "s.b")
    (overdue,) = (await here(broker, 1)).messages
    await harness.advance(T + LATE)
    began = broker.monotonic()
    await overdue.nak(2 * T)
    await harness.advance(T / 4)
    (other,) = (await here(broker, 2)).messages
    assert other.seq == 2
    await other.ack()
    (again,) = (await pull(harness, broker)).messages
    assert (again.seq, again.deliveries) == (1, 2)
    assert 2 * T <= broker.monotonic() - began <= 2 * T + LATE
    await again.nak()
    # By the reply of its first delivery.
    await broker.core_publish("$JS.ACK.S.c.1.1.1.0.0", b'-NAK {"delay": 400000000}')
    await harness.advance(T / 4)
    assert seqs(await here(broker)) == []
    assert counts(await pull(harness, broker)) == [3]


async def test_f26_an_old_delivery_ends_the_message_too(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, ack_wait=2 * T, max_deliver=9)
    await publish(broker, "s.a")
    (old,) = (await here(broker)).messages
    (new,) = (await pull(harness, broker)).messages
    ear = await Ear(harness).listen(broker, "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.S.c")
    await old.term("old")
    await ear.hears(1)
    await nothing_comes(harness, broker, within=3 * T)
    # Whoever terms is heard, even when there is nothing left to end.
    await new.term("new")
    said = [msgspec.json.decode(one.data) for one in await ear.hears(2)]
    assert [(one["deliveries"], one["consumer_seq"], one["reason"]) for one in said] == [(1, 1, "old"), (2, 2, "new")]


async def test_f27_ack_and_the_next(harness: Harness) -> None:
    """F3: one message acks and pulls."""
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, max_ack_pending=1)
    await publish(broker, "s.a", "s.b", "s.c")
    (message,) = (await here(broker, 1)).messages
    for expected in (2, 3):
        batch = await harness.until(broker.pull("S", "c", expires=5 * T, acking=message))
        assert (seqs(batch), counts(batch)) == ([expected], [1])
        with pytest.raises(AlreadySettled):
            await broker.pull("S", "c", expires=T, acking=message)
        message = batch.messages[0]
    batch = await harness.until(broker.pull("S", "c", expires=T, acking=message))
    assert batch == Batch([], PullStatus.TIMEOUT)
    assert await floors(broker) == (3, 3)


async def test_f28_giving_up(harness: Harness) -> None:
    """R4: what had its last delivery blocks an interest stream until somebody says that it is over."""
    broker = await harness.make_broker()
    await stream(broker, retention=Retention.INTEREST)
    await consumer(broker, ack_wait=T, max_deliver=1)
    await consumer(broker, "other")
    ear = await Ear(harness).listen(broker, "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.S.c")
    await publish(broker, "s.a", "s.b")
    await here(broker, 2)
    for message in (await here(broker, 2, name="other")).messages:
        await message.ack_sync()
    await nothing_comes(harness, broker, within=3 * T)
    assert (await broker.stream_info("S")).messages == 2
    await broker.give_up("S", "c", 1, "dead")
    (said,) = [msgspec.json.decode(one.data) for one in await ear.hears(1)]
    assert (said["stream_seq"], said["reason"]) == (1, "dead")
    assert (await broker.stream_info("S")).first_seq == 2
    await broker.give_up("S", "c", 2)
    assert (await broker.stream_info("S")).messages == 0
    for consumer_name, seq, code in (("nobody", 1, 10014), ("c", 3, 10037)):
        with pytest.raises(ApiError) as error:
            await broker.give_up("S", consumer_name, seq)
        assert (error.value.code, error.value.status) == (code, 404)


async def test_f29_what_is_removed_ends_its_delivery(harness: Harness) -> None:
    """R5: age, limits and single deletes tell it, whoever has it in hand."""
    broker = await harness.make_broker()
    await stream(broker, max_age=4 * T, duplicate_window=4 * T, max_msgs=3)
    await consumer(broker, ack_wait=30.0)
    ear = await Ear(harness).listen(broker, "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.S.c")
    await publish(broker, "s.a", "s.a", "s.a")
    await here(broker, 3)
    await publish(broker, "s.a")
    await broker.delete_message("S", 2)
    await ear.hears(2)
    await harness.advance(4 * T + LATE)
    said = [msgspec.json.decode(one.data) for one in await ear.hears(3)]
    assert sorted(one["stream_seq"] for one in said) == [1, 2, 3]
    assert {one["reason"] for one in said} == {"Unacknowledged message was deleted"}
    info = await broker.consumer_info("S", "c")
    assert (info.num_ack_pending, info.num_pending) == (0, 0)
    assert info.ack_floor.consumer == 3
