"""B: streams, and what a publish is answered."""

import asyncio
import time
from typing import Any

import pytest
from msgspec import structs

from nebengjek.bus.errors import ApiError, MaxPayload, NoStream, PublishRefused
from nebengjek.bus.messages import MAX_PAYLOAD, PubAck, header_block_size
from nebengjek.bus.specs import Discard, Retention, Storage, StreamSpec
from tests.conformance.harness import (
    LATE,
    Ear,
    Harness,
    T,
    consumer,
    here,
    nothing_comes,
    publish,
    seqs,
    stream,
    submit,
)


async def refused(broker: Any, subject: str, data: bytes = b"x", headers: dict[str, str] | None = None) -> int:
    with pytest.raises(PublishRefused) as error:
        await submit(broker, subject, data, headers)
    return error.value.code


async def test_b1_sequences_begin_at_one(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    assert [await submit(broker, "s.a") for _ in range(3)] == [PubAck("S", seq) for seq in (1, 2, 3)]
    info = await broker.stream_info("S")
    assert (info.messages, info.first_seq, info.last_seq) == (3, 1, 3)


async def test_b1_many_in_flight_are_stored_in_order(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    acks = await asyncio.gather(*(broker.submit(f"s.{n}", b"", {}) for n in range(500)))
    assert [ack.seq for ack in acks] == list(range(1, 501))
    assert (await broker.get_message("S", 500)).subject == "s.499"


async def test_b2_creating_again_is_idempotent_and_updating_changes(harness: Harness) -> None:
    broker = await harness.make_broker()
    spec = await stream(broker, description="first")
    first = await broker.stream_info("S")
    assert first.spec == spec
    assert await broker.create_stream(spec) == first
    other = structs.replace(spec, max_msgs=7)
    with pytest.raises(ApiError) as error:
        await broker.create_stream(other)
    assert error.value.code == 10058
    assert (await broker.ensure_stream(other)).spec == other
    assert (await broker.stream_info("S")).spec.max_msgs == 7


async def test_b2_what_is_not_there_is_10059(harness: Harness) -> None:
    broker = await harness.make_broker()
    for call in (
        broker.stream_info("S"),
        broker.update_stream(StreamSpec(name="S", subjects=("s",))),
        broker.delete_stream("S"),
        broker.purge_stream("S"),
        broker.get_message("S", 1),
        broker.delete_message("S", 1),
        broker.consumers("S"),
    ):
        with pytest.raises(ApiError) as error:
            await call
        assert (error.value.code, error.value.status) == (10059, 404)
    await stream(broker, "B")
    await stream(broker, "A")
    assert [info.spec.name for info in await broker.streams()] == ["A", "B"]
    await broker.delete_stream("A")
    assert [info.spec.name for info in await broker.streams()] == ["B"]


@pytest.mark.parametrize(
    "change",
    [{"storage": Storage.MEMORY}, {"retention": Retention.WORKQUEUE}, {"retention": Retention.INTEREST}],
)
async def test_b3_some_things_cannot_be_changed(harness: Harness, change: dict[str, Any]) -> None:
    broker = await harness.make_broker()
    spec = await stream(broker)
    with pytest.raises(ApiError) as error:
        await broker.ensure_stream(structs.replace(spec, **change))
    assert error.value.code == 10052
    assert (await broker.stream_info("S")).spec == spec


async def test_b4_a_publish_that_no_stream_takes(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    began = time.monotonic()
    with pytest.raises(NoStream):
        await harness.until(broker.submit("nowhere.a", b"", {}))
    assert time.monotonic() - began < 1


async def test_b6_discard_old_keeps_the_newest(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, max_msgs=2)
    await publish(broker, *["s.a"] * 5)
    info = await broker.stream_info("S")
    assert (info.messages, info.first_seq, info.last_seq) == (2, 4, 5)


async def test_b6_what_was_evicted_is_not_delivered(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, max_msgs=3)
    await consumer(broker)
    await publish(broker, *["s.a"] * 2)
    taken = await here(broker, 1)
    await publish(broker, *["s.a"] * 4)
    assert (await broker.consumer_info("S", "c")).num_ack_pending == 0
    assert seqs(await here(broker)) == [4, 5, 6]
    await taken.messages[0].ack()


async def test_b7_discard_new_refuses(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, max_msgs=2, discard=Discard.NEW)
    await publish(broker, "s.a", "s.a")
    assert await refused(broker, "s.a", headers={"Nats-Msg-Id": "x"}) == 10077
    assert (await broker.stream_info("S")).last_seq == 2
    await broker.purge_stream("S", keep=1)
    # A refused id is not remembered.
    assert await submit(broker, "s.a", headers={"Nats-Msg-Id": "x"}) == PubAck("S", 3)


async def test_b7_a_subject_at_its_limit_replaces_its_oldest(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, max_msgs=2, max_msgs_per_subject=1, discard=Discard.NEW)
    await publish(broker, "s.a", "s.b", "s.a")
    assert await refused(broker, "s.c") == 10077
    info = await broker.stream_info("S")
    assert (info.messages, info.first_seq, info.last_seq) == (2, 2, 3)


async def test_b7_or_is_refused_when_that_is_wanted(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, max_msgs_per_subject=1, discard=Discard.NEW, discard_new_per_subject=True)
    await publish(broker, "s.a", "s.b")
    assert await refused(broker, "s.a") == 10077


async def test_b8_a_limit_per_subject_drops_the_oldest_of_that_subject(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, max_msgs_per_subject=2)
    await publish(broker, "s.a", "s.b", "s.a", "s.a")
    info = await broker.stream_info("S")
    assert (info.messages, info.first_seq, info.deleted) == (3, 2, 0)
    await publish(broker, "s.a")
    assert (await broker.stream_info("S")).deleted == 1


@pytest.mark.parametrize(("storage", "overhead"), [(Storage.MEMORY, 16), (Storage.FILE, 30)])
async def test_b9_bytes_are_counted_as_the_server_does(harness: Harness, storage: Storage, overhead: int) -> None:
    broker = await harness.make_broker()
    await stream(broker, storage=storage)
    headers = {"Event-Type": "a.b", "k": "Légian"}
    await publish(broker, "s.plain", data=b"12345")
    await publish(broker, "s.headers", data=b"1234567", headers=headers)
    plain = len("s.plain") + 5 + overhead
    block = len("s.headers") + 7 + overhead + header_block_size(headers) + (4 if storage is Storage.FILE else 0)
    assert (await broker.stream_info("S")).bytes == plain + block
    await broker.delete_message("S", 1)
    assert (await broker.stream_info("S")).bytes == block


async def test_b10_max_bytes(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, storage=Storage.MEMORY, max_bytes=300)
    await publish(broker, *["s.a"] * 3, data=b"x" * 100)
    info = await broker.stream_info("S")
    assert (info.messages, info.first_seq) == (2, 2)
    assert await submit(broker, "s.a", b"x" * 400) == PubAck("S", 4)
    info = await broker.stream_info("S")
    assert (info.messages, info.first_seq, info.last_seq) == (0, 5, 4)


async def test_b11_a_message_may_be_too_big_for_a_stream(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, max_msg_size=10)
    assert await refused(broker, "s.a", b"x" * 11) == 10054
    assert await refused(broker, "s.a", b"x" * 5, {"k": "x" * 4}) == 10054
    assert await submit(broker, "s.a", b"x" * 10) == PubAck("S", 1)


async def test_b12_expected_sequences(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await publish(broker, *["s.a"] * 5)
    assert await refused(broker, "s.a", headers={"Nats-Expected-Last-Sequence": "4"}) == 10071
    assert await refused(broker, "s.a", headers={"Nats-Expected-Last-Subject-Sequence": "0"}) == 10071
    fresh = await submit(broker, "s.b", headers={"Nats-Expected-Last-Subject-Sequence": "0"})
    assert fresh == PubAck("S", 6)
    both = {"Nats-Expected-Last-Sequence": "6", "Nats-Expected-Last-Subject-Sequence": "5", "Nats-Msg-Id": "x"}
    assert await submit(broker, "s.a", headers=both) == PubAck("S", 7)
    assert await refused(broker, "s.a", headers={"Nats-Expected-Last-Msg-Id": "y"}) == 10070
    assert await submit(broker, "s.a", headers={"Nats-Expected-Last-Msg-Id": "x"}) == PubAck("S", 8)


async def test_b13_expected_stream(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    assert await refused(broker, "s.a", headers={"Nats-Expected-Stream": "X"}) == 10060
    assert await submit(broker, "s.a", headers={"Nats-Expected-Stream": "S"}) == PubAck("S", 1)


async def test_b14_purge(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await publish(broker, "s.a", "s.b", "s.a", "s.b", "s.a", "s.b")

    async def state() -> tuple[int, int, int]:
        info = await broker.stream_info("S")
        return info.messages, info.first_seq, info.last_seq

    assert await broker.purge_stream("S", subject="s.a", keep=1) == 2
    assert await state() == (4, 2, 6)
    assert await broker.purge_stream("S", up_to=4) == 1
    assert await state() == (3, 4, 6)
    assert await broker.purge_stream("S", keep=2) == 1
    assert await state() == (2, 5, 6)
    with pytest.raises(ApiError) as error:
        await broker.purge_stream("S", keep=1, up_to=5)
    assert error.value.code == 10003
    assert await broker.purge_stream("S", subject="s.nobody") == 0
    assert await broker.purge_stream("S") == 2
    assert await state() == (0, 7, 6)
    assert await submit(broker, "s.a") == PubAck("S", 7)


async def test_b14_purge_takes_from_consumers_without_an_advisory(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    ear = await Ear(harness).listen(broker, "$JS.EVENT.ADVISORY.CONSUMER.>")
    await publish(broker, *["s.a"] * 4)
    await here(broker, 2)
    await broker.purge_stream("S")
    info = await broker.consumer_info("S", "c")
    assert (info.num_pending, info.num_ack_pending, info.ack_floor.stream) == (0, 0, 4)
    await publish(broker, "s.a")
    assert seqs(await here(broker)) == [5]
    assert not [one for one in ear.messages if "MSG_TERMINATED" in one.subject]


async def test_b15_delete_a_message(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await publish(broker, *["s.a"] * 3)
    await broker.delete_message("S", 2)
    info = await broker.stream_info("S")
    assert (info.messages, info.deleted, info.first_seq, info.last_seq) == (2, 1, 1, 3)
    with pytest.raises(ApiError) as error:
        await broker.get_message("S", 2)
    assert error.value.code == 10037
    with pytest.raises(ApiError) as error:
        await broker.delete_message("S", 2)
    assert error.value.code == 10043


@pytest.mark.parametrize(("storage", "outside"), [(Storage.MEMORY, 10043), (Storage.FILE, 10057)])
async def test_b15_what_cannot_be_deleted(harness: Harness, storage: Storage, outside: int) -> None:
    broker = await harness.make_broker()
    await stream(broker, storage=storage)

    async def code(seq: int) -> int:
        with pytest.raises(ApiError) as error:
            await broker.delete_message("S", seq)
        return error.value.code

    assert [await code(seq) for seq in (0, 1)] == [outside, outside]
    await publish(broker, *["s.a"] * 4)
    await broker.delete_message("S", 1)
    await broker.delete_message("S", 3)
    assert [await code(seq) for seq in (1, 3, 5)] == [outside, 10043, outside]
    await broker.purge_stream("S")
    assert await code(4) == outside


async def test_b15_a_deleted_message_leaves_its_consumers(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    ear = await Ear(harness).listen(broker, "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.S.c")
    await publish(broker, *["s.a"] * 3)
    await here(broker, 1)
    await broker.delete_message("S", 1)
    await broker.delete_message("S", 3)
    await ear.hears(1)
    info = await broker.consumer_info("S", "c")
    assert (info.num_pending, info.num_ack_pending) == (1, 0)
    assert seqs(await here(broker)) == [2]
    await nothing_comes(harness, broker, within=T)


async def test_b15_the_last_of_a_subject(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await publish(broker, "s.a", "s.b", "s.a", "s.b")
    assert (await broker.get_message("S", last_by_subject="s.a")).seq == 3
    assert (await broker.get_message("S", last_by_subject="s.*")).seq == 4
    with pytest.raises(ApiError) as error:
        await broker.get_message("S", last_by_subject="s.c")
    assert error.value.code == 10037


async def test_b16_messages_end_with_their_age(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, max_age=T, duplicate_window=T)
    await publish(broker, "s.a", "s.a")
    await harness.advance(T / 2)
    assert (await broker.stream_info("S")).messages == 2
    await harness.advance(T / 2 + LATE)
    info = await broker.stream_info("S")
    assert (info.messages, info.first_seq, info.last_seq) == (0, 3, 2)
    assert await submit(broker, "s.a") == PubAck("S", 3)


@pytest.mark.parametrize(
    "options",
    [
        {"max_age": 10.0, "duplicate_window": 11.0},
        {"max_age": 0.05, "duplicate_window": 0.0},
        {"duplicate_window": 0.05},
        {"discard_new_per_subject": True},
        {"discard_new_per_subject": True, "discard": Discard.NEW},
    ],
)
async def test_b17_a_config_that_cannot_be(harness: Harness, options: dict[str, Any]) -> None:
    broker = await harness.make_broker()
    with pytest.raises(ApiError) as error:
        await stream(broker, **options)
    assert error.value.code == 10052
    assert await broker.streams() == []


async def test_b18_a_payload_beyond_the_limit(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    with pytest.raises(MaxPayload):
        await broker.submit("s.a", b"x" * (MAX_PAYLOAD + 1), {})
    with pytest.raises(MaxPayload):
        await broker.submit("s.a", b"x" * (MAX_PAYLOAD - 10), {"k": "v"})
    with pytest.raises(MaxPayload):
        await broker.core_publish("s.a", b"x" * (MAX_PAYLOAD + 1))
    with pytest.raises(MaxPayload):
        await broker.request("s.a", b"x" * (MAX_PAYLOAD + 1), timeout=1)
    assert await submit(broker, "s.a", b"x" * MAX_PAYLOAD) == PubAck("S", 1)
