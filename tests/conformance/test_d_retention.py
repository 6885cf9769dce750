"""D: how long a message is kept, and for whom."""

import pytest
from msgspec import structs

from nebengjek.bus.errors import ApiError
from nebengjek.bus.interface import Broker
from nebengjek.bus.messages import PubAck
from nebengjek.bus.specs import Ack, ConsumerSpec, Deliver, Retention
from tests.conformance.harness import (
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
    submit,
)


async def messages(broker: object) -> int:
    return int((await broker.stream_info("S")).messages)  # type: ignore[attr-defined]


async def test_d1_without_interest_nothing_is_kept(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, retention=Retention.INTEREST)
    assert await submit(broker, "s.a") == PubAck("S", 1)
    info = await broker.stream_info("S")
    assert (info.messages, info.first_seq, info.last_seq) == (0, 2, 1)
    assert await submit(broker, "s.a") == PubAck("S", 2)


async def test_d2_kept_until_all_that_match_have_acked(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, retention=Retention.INTEREST)
    await consumer(broker, "c1", "S", "s.a")
    await consumer(broker, "c2", "S", "s.a")
    await consumer(broker, "c3", "S", "s.b")
    await publish(broker, "s.a")
    await (await here(broker, name="c1")).messages[0].ack_sync()
    assert await messages(broker) == 1
    await (await here(broker, name="c2")).messages[0].ack_sync()
    assert await messages(broker) == 0
    assert (await broker.stream_info("S")).first_seq == 2


async def test_d3_a_consumer_that_is_deleted_wants_nothing(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, retention=Retention.INTEREST)
    await consumer(broker, "c1", "S", "s.a")
    await consumer(broker, "c2", "S", "s.a")
    await publish(broker, "s.a", "s.a")
    for message in (await here(broker, name="c1")).messages:
        await message.ack_sync()
    await here(broker, 1, name="c2")
    await broker.delete_consumer("S", "c2")
    assert await messages(broker) == 0
    await publish(broker, "s.a")
    assert await messages(broker) == 1
    await broker.delete_consumer("S", "c1")
    assert await messages(broker) == 0


async def test_d4_a_later_consumer_sees_what_is_kept_and_keeps_it(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, retention=Retention.INTEREST)
    await consumer(broker, "c1")
    await publish(broker, "s.a", "s.a", "s.a")
    first, second, _ = (await here(broker, name="c1")).messages
    await first.ack_sync()
    await consumer(broker, "c2")
    assert seqs(await here(broker, name="c2")) == [2, 3]
    await second.ack_sync()
    assert await messages(broker) == 2


async def test_d5_interest_ends_with_settling_whatever_the_order(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, retention=Retention.INTEREST)
    await consumer(broker)
    await publish(broker, *["s.a"] * 5)
    batch = await here(broker)
    for index in (3, 0, 4):
        await batch.messages[index].ack_sync()
    info = await broker.stream_info("S")
    assert (info.messages, info.first_seq, info.last_seq, info.deleted) == (2, 2, 5, 2)
    await batch.messages[1].term("enough")
    await batch.messages[2].ack_sync()
    info = await broker.stream_info("S")
    assert (info.messages, info.first_seq) == (0, 6)


async def test_d6_a_work_queue_keeps_until_done(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, retention=Retention.WORKQUEUE)
    await publish(broker, "s.a", "s.a", "s.a")
    assert await messages(broker) == 3
    await consumer(broker)
    first, second, third = (await here(broker)).messages
    await first.ack_sync()
    assert await messages(broker) == 2
    await second.term("no")
    await third.ack_sync()
    assert await messages(broker) == 0


async def test_d6_deleting_the_consumer_of_a_work_queue_loses_nothing(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, retention=Retention.WORKQUEUE)
    await consumer(broker)
    await publish(broker, "s.a", "s.a")
    await here(broker, 1)
    await broker.delete_consumer("S", "c")
    assert await messages(broker) == 2
    await consumer(broker)
    batch = await here(broker)
    assert (seqs(batch), counts(batch)) == ([1, 2], [1, 1])


async def test_d7_consumers_of_a_work_queue_do_not_overlap(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, "S", "w.>", retention=Retention.WORKQUEUE)

    async def code(name: str, *filters: str) -> int:
        with pytest.raises(ApiError) as error:
            await consumer(broker, name, "S", *filters)
        return error.value.code

    await consumer(broker, "a", "S", "w.a.*")
    assert await code("b", "w.*.b") == 10100
    assert await code("b") == 10099
    await consumer(broker, "b", "S", "w.b.*")
    with pytest.raises(ApiError) as error:
        await broker.update_consumer("S", ConsumerSpec(name="b", filters=("w.*.c",)))
    assert error.value.code == 10100
    await broker.delete_consumer("S", "a")
    await broker.delete_consumer("S", "b")
    await consumer(broker, "all")
    assert await code("second") == 10099
    assert await code("part", "w.a.*") == 10100


@pytest.mark.parametrize(
    ("options", "code"),
    [({"ack": Ack.NONE, "max_deliver": -1}, 10084), ({"ack": Ack.ALL}, 10098), ({"deliver": Deliver.NEW}, 10101)],
)
async def test_d8_what_a_work_queue_does_not_offer(harness: Harness, options: dict[str, object], code: int) -> None:
    broker = await harness.make_broker()
    await stream(broker, retention=Retention.WORKQUEUE)
    with pytest.raises(ApiError) as error:
        await consumer(broker, **options)  # type: ignore[arg-type]
    assert error.value.code == code


async def test_d9_an_exhausted_message_of_a_work_queue_waits_for_the_next_consumer(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, retention=Retention.WORKQUEUE)
    await consumer(broker, ack_wait=T, max_deliver=2)
    await publish(broker, "s.a")
    assert counts(await pull(harness, broker)) == [1]
    assert counts(await pull(harness, broker)) == [2]
    await nothing_comes(harness, broker, within=3 * T)
    assert await messages(broker) == 1
    await broker.delete_consumer("S", "c")
    await consumer(broker)
    assert counts(await here(broker)) == [1]


async def test_d9_an_exhausted_message_is_kept_until_somebody_says_so(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, retention=Retention.INTEREST)
    await consumer(broker, ack_wait=T, max_deliver=1)
    await publish(broker, "s.a", "s.a")
    first, second = (await here(broker)).messages
    await nothing_comes(harness, broker, within=3 * T)
    assert await messages(broker) == 2
    # Late, but said.
    await first.ack_sync()
    await second.term("late")
    await harness.until(gone(broker))


async def gone(broker: object) -> None:
    while await messages(broker):
        await broker.sleep(0.01)  # type: ignore[attr-defined]


async def test_d10_limits_keep_what_was_acked(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    await publish(broker, "s.a", "s.a")
    for message in (await here(broker)).messages:
        await message.ack_sync()
    assert await messages(broker) == 2


async def test_d11_without_acks_delivered_is_done(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, retention=Retention.INTEREST)
    await consumer(broker, ack=Ack.NONE, max_deliver=-1)
    await publish(broker, "s.a", "s.a")
    assert await messages(broker) == 2
    assert seqs(await here(broker)) == [1, 2]
    await harness.until(gone(broker))
    info = await broker.consumer_info("S", "c")
    assert (info.num_ack_pending, info.num_pending) == (0, 0)


async def test_d12_settled_waits_for_all_that_had_a_claim(harness: Harness) -> None:
    """A broker in this process returns when all have settled; a durable one at once: then it is safe already."""
    broker = await harness.make_broker()
    await stream(broker, "S", "s.>", retention=Retention.INTEREST)
    await stream(broker, "L", "l.>")
    for of in "SL":
        await consumer(broker, "c1", of)
        await consumer(broker, "c2", of)
    for of, subject in (("S", "s.a"), ("L", "l.a")):
        ack = await submit(broker, subject)
        waiting = harness.until(broker.settled(ack))
        if not broker.durable:
            with pytest.raises(AssertionError):
                await harness.until(broker.settled(ack), T)
        await (await here(broker, name="c1", of=of)).messages[0].ack()
        await (await here(broker, name="c2", of=of)).messages[0].term("x")
        await waiting


async def test_d13_ack_all_settles_what_lies_below(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, retention=Retention.INTEREST)
    await consumer(broker, "c1", ack=Ack.ALL)
    await consumer(broker, "c2")
    await publish(broker, *["s.a"] * 4)
    theirs = (await here(broker, name="c2")).messages
    for message in theirs:
        await message.ack_sync()
    batch = await here(broker, name="c1")
    await batch.messages[2].ack_sync()
    info = await broker.stream_info("S")
    assert (info.messages, info.first_seq) == (1, 4)


async def test_d14_who_wants_only_what_is_new_has_no_claim_on_the_old(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, retention=Retention.INTEREST)
    await consumer(broker, "c1")
    await publish(broker, "s.a")
    await consumer(broker, "c2", deliver=Deliver.NEW)
    await (await here(broker, name="c1")).messages[0].ack_sync()
    assert await messages(broker) == 0
    await publish(broker, "s.a")
    assert seqs(await here(broker, name="c2")) == [2]


@pytest.mark.parametrize("retention", [Retention.INTEREST, Retention.WORKQUEUE])
async def test_d15_after_a_restart_only_what_is_stored_is_known(harness: Harness, retention: Retention) -> None:
    """D4."""
    broker = await harness.make_broker()
    await stream(broker, retention=retention)
    await consumer(broker)
    await submit(broker, "s.a", headers={"Nats-Msg-Id": "acked"})
    await submit(broker, "s.a", headers={"Nats-Msg-Id": "kept"})
    await (await here(broker, 1)).messages[0].ack_sync()
    await harness.restart()
    await harness.back(broker)
    assert await submit(broker, "s.a", headers={"Nats-Msg-Id": "kept"}) == PubAck("S", 2, True)
    assert await submit(broker, "s.a", headers={"Nats-Msg-Id": "acked"}) == PubAck("S", 3)


async def test_d16_a_work_queue_shares_by_filters(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, retention=Retention.WORKQUEUE)
    await consumer(broker, "a", "S", "s.a.*")
    await consumer(broker, "b", "S", "s.b.*", "s.c")
    await publish(broker, "s.a.1", "s.b.1", "s.c", "s.d")
    assert seqs(await here(broker, name="a")) == [1]
    batch = await here(broker, name="b")
    assert seqs(batch) == [2, 3]
    for message in batch.messages:
        await message.ack_sync()
    # What nobody takes waits for somebody who does.
    info = await broker.stream_info("S")
    assert (info.messages, info.first_seq, info.deleted) == (2, 1, 2)
    await consumer(broker, "d", "S", "s.d")
    await (await here(broker, name="d")).messages[0].ack_sync()
    assert await messages(broker) == 1


async def test_d17_interest_follows_the_filters(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, retention=Retention.INTEREST)
    spec = await consumer(broker, "c", "S", "s.a", "s.b")
    await publish(broker, "s.a", "s.b", "s.b", "s.a")
    await broker.update_consumer("S", structs.replace(spec, filters=("s.a",)))
    await stores(harness, broker, 2)
    batch = await here(broker)
    assert seqs(batch) == [1, 4]
    for message in batch.messages:
        await message.ack_sync()
    await publish(broker, "s.b", "s.a")
    assert [message.seq for message in (await here(broker)).messages] == [6]
    await broker.update_consumer("S", spec)
    await publish(broker, "s.b")
    assert seqs(await here(broker)) == [7]


async def stores(harness: Harness, broker: Broker, count: int) -> None:
    """A server takes its time with what nobody wants any more."""

    async def so_many() -> None:
        while await messages(broker) != count:
            await harness.advance(0.01)

    await harness.until(so_many(), 5)


@pytest.mark.parametrize("another", [False, True])
async def test_d17_what_is_in_hand_and_matches_no_more(harness: Harness, another: bool) -> None:
    """Another consumer's claim keeps it; otherwise it goes at once, and does not come again."""
    broker = await harness.make_broker()
    await stream(broker, retention=Retention.INTEREST)
    spec = await consumer(broker, "c", "S", "s.a", "s.b", ack_wait=2 * T)
    if another:
        await consumer(broker, "d", "S", "s.b")
    await publish(broker, "s.a", "s.b", "s.b")
    _, second, _ = (await here(broker)).messages
    await broker.update_consumer("S", structs.replace(spec, filters=("s.a",)))
    await stores(harness, broker, 3 if another else 1)
    assert (await broker.consumer_info("S", "c")).num_ack_pending == 3
    # Acked or not.
    await second.ack_sync()
    again = await pull(harness, broker, 3, expires=3 * T)
    assert seqs(again) == ([1, 3] if another else [1])
    assert (await broker.consumer_info("S", "c")).num_ack_pending == len(again.messages)
    for message in again.messages:
        await message.ack_sync()
    info = await broker.consumer_info("S", "c")
    assert (info.num_ack_pending, info.ack_floor.stream) == (0, 3)
    if another:
        for message in (await here(broker, name="d")).messages:
            await message.ack_sync()
    await stores(harness, broker, 0)
