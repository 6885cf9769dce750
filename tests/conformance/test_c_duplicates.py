"""C: the same id, again."""

import asyncio

from nebengjek.bus.messages import PubAck
from nebengjek.bus.specs import Retention
from tests.conformance.harness import LATE, Harness, T, consumer, here, stream, submit

X = {"Nats-Msg-Id": "x"}


async def test_c1_the_same_id_is_stored_once(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    assert await submit(broker, "s.a", headers=X) == PubAck("S", 1)
    await submit(broker, "s.b")
    assert await submit(broker, "s.a", headers=X) == PubAck("S", 1, True)
    # The id counts, not the subject.
    assert await submit(broker, "s.b", headers=X) == PubAck("S", 1, True)
    info = await broker.stream_info("S")
    assert (info.messages, info.last_seq) == (2, 2)


async def test_c2_the_window_ends_and_duplicates_do_not_prolong_it(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, duplicate_window=2 * T)
    await submit(broker, "s.a", headers=X)
    await harness.advance(T)
    assert (await submit(broker, "s.a", headers=X)).duplicate
    await harness.advance(T + LATE)
    assert await submit(broker, "s.a", headers=X) == PubAck("S", 2)


async def test_c4_an_id_survives_its_message(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await submit(broker, "s.a", headers=X)
    await broker.delete_message("S", 1)
    assert (await submit(broker, "s.a", headers=X)).duplicate
    await broker.purge_stream("S")
    assert (await submit(broker, "s.a", headers=X)).duplicate
    await submit(broker, "s.a", headers={"Nats-Msg-Id": "y"})
    await broker.purge_stream("S")
    assert await submit(broker, "s.a", headers={"Nats-Msg-Id": "y"}) == PubAck("S", 2, True)


async def test_c5_an_id_survives_the_ack(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, retention=Retention.WORKQUEUE)
    await consumer(broker)
    await submit(broker, "s.a", headers=X)
    await (await here(broker)).messages[0].ack_sync()
    assert await submit(broker, "s.a", headers=X) == PubAck("S", 1, True)


async def test_c6_an_id_of_a_message_that_nobody_wanted(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, retention=Retention.INTEREST)
    assert await submit(broker, "s.a", headers=X) == PubAck("S", 1)
    assert await submit(broker, "s.a", headers=X) == PubAck("S", 1, True)


async def test_c7_no_id_or_one_of_another_case_is_no_id(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    for headers in ({"Nats-Msg-Id": ""}, {"nats-msg-id": "x"}, {}):
        assert not (await submit(broker, "s.a", headers=headers)).duplicate
        assert not (await submit(broker, "s.a", headers=headers)).duplicate


async def test_c8_each_stream_has_ids_of_its_own(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, "S")
    await stream(broker, "U")
    assert await submit(broker, "s.a", headers=X) == PubAck("S", 1)
    assert await submit(broker, "u.a", headers=X) == PubAck("U", 1)


async def test_c9_fifty_at_once_are_one(harness: Harness) -> None:
    broker = await harness.make_broker()
    other = await harness.make_broker()
    await stream(broker)
    acks = await asyncio.gather(*(one.submit("s.a", b"", X) for _ in range(25) for one in (broker, other)))
    assert {ack.seq for ack in acks} == {1}
    assert sum(not ack.duplicate for ack in acks) == 1
    assert (await broker.stream_info("S")).messages == 1
