"""I and H6: where a consumer begins, and what of a message it wants."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nebengjek.bus.specs import Ack, ConsumerSpec, Deliver
from tests.conformance.harness import Harness, T, consumer, counts, here, publish, pull, seqs, stream

ABABA = ("s.a", "s.b", "s.a", "s.b", "s.a")


@pytest.mark.parametrize(
    ("options", "stored", "later"),
    [
        ({"deliver": Deliver.ALL}, [1, 2, 3, 4, 5], [6, 7]),
        ({"deliver": Deliver.ALL, "filters": ("s.b",)}, [2, 4], [7]),
        ({"deliver": Deliver.LAST}, [5], [6, 7]),
        ({"deliver": Deliver.LAST, "filters": ("s.b",)}, [4], [7]),
        ({"deliver": Deliver.NEW}, [], [6, 7]),
        ({"deliver": Deliver.BY_SEQ, "start_seq": 3}, [3, 4, 5], [6, 7]),
        ({"deliver": Deliver.BY_SEQ, "start_seq": 3, "filters": ("s.b",)}, [4], [7]),
        ({"deliver": Deliver.BY_SEQ, "start_seq": 7}, [], [7]),
        ({"deliver": Deliver.LAST_PER_SUBJECT, "filters": ("s.*",)}, [4, 5], [6, 7]),
        ({"deliver": Deliver.LAST_PER_SUBJECT, "filters": ("s.a",)}, [5], [6]),
    ],
)
async def test_i1_where_a_consumer_begins(
    harness: Harness, options: dict[str, Any], stored: list[int], later: list[int]
) -> None:
    """I1-I3, I5: all, last, last of a subject, new, from a sequence on, the last of each; then what is new."""
    broker = await harness.make_broker()
    await stream(broker)
    await publish(broker, *ABABA)
    info = await broker.create_consumer("S", ConsumerSpec(name="c", **options))
    assert info.num_pending == len(stored)
    batch = await here(broker)
    assert seqs(batch) == stored
    assert [message.pending for message in batch.messages] == list(range(len(stored) - 1, -1, -1))
    await publish(broker, "s.a", "s.b")
    assert seqs(await here(broker)) == later


async def test_i4_by_time(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await publish(broker, "s.a", "s.b")
    await harness.advance(T)
    await publish(broker, "s.a", "s.b")
    third = (await broker.get_message("S", 3)).time
    await consumer(broker, "at", deliver=Deliver.BY_TIME, start_time=third - timedelta(milliseconds=50))
    assert seqs(await here(broker, name="at")) == [3, 4]
    await consumer(broker, "early", deliver=Deliver.BY_TIME, start_time=datetime(2020, 1, 1, tzinfo=UTC))
    assert seqs(await here(broker, name="early")) == [1, 2, 3, 4]
    await consumer(broker, "future", deliver=Deliver.BY_TIME, start_time=third + timedelta(hours=1))
    assert seqs(await here(broker, name="future")) == []
    await publish(broker, "s.a")
    assert seqs(await here(broker, name="future")) == [5]


async def test_i6_after_a_purge(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await publish(broker, *ABABA)
    await broker.purge_stream("S", up_to=4)
    await consumer(broker)
    assert seqs(await here(broker)) == [4, 5]


async def test_i7_reading_again_disturbs_nobody(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    await publish(broker, *ABABA)
    await (await here(broker, 2)).messages[0].ack_sync()
    before = await broker.consumer_info("S", "c")
    reader = await broker.create_consumer("S", ConsumerSpec(ack=Ack.NONE, max_deliver=-1))
    assert seqs(await here(broker, name=reader.name)) == [1, 2, 3, 4, 5]
    assert await broker.consumer_info("S", "c") == before


async def test_h6_headers_only(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, headers_only=True)
    await publish(broker, "s.a", data=b"12345", headers={"k": "v"})
    (message,) = (await here(broker)).messages
    assert (message.data, dict(message.headers)) == (b"", {"k": "v", "Nats-Msg-Size": "5"})
    await message.nak()
    batch = await pull(harness, broker)
    assert (counts(batch), batch.messages[0].data) == ([2], b"")


async def test_f22_a_stream_of_several_subjects_and_consumers(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, "S", "x.>", "y.*", "z")
    await consumer(broker, "xy", "S", "x.1.*", "y.*")
    await consumer(broker, "z", "S", "z")
    await publish(broker, "x.1.a", "x.2.a", "y.b", "z", "x.1.b")
    assert seqs(await here(broker, name="xy")) == [1, 3, 5]
    assert seqs(await here(broker, name="z")) == [4]
