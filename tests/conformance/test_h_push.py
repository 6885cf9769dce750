"""H: consumers that deliver by themselves, groups of those who listen, and reading in order.

Over 300 lines because H is one section of the rules, and a reader in order is such a consumer made again and again.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import pytest
from msgspec import structs

from nebengjek.bus.deliveries import Batch, Consumption, PullStatus
from nebengjek.bus.errors import ApiError, Disconnected, InvalidName, NoResponders, RequestTimeout
from nebengjek.bus.interface import Broker
from nebengjek.bus.messages import StoredMessage
from nebengjek.bus.specs import Ack, ConsumerSpec, Deliver, Push, Retention, Storage
from tests.conformance.harness import (
    LATE,
    Ear,
    Harness,
    T,
    consumer,
    counts,
    publish,
    pull,
    seqs,
    stream,
)

DELIVER = Push(subject="deliver.c")
GROUP = Push(subject="deliver.c", group="workers")


async def takes(harness: Harness, source: Consumption, count: int, within: float = 5.0) -> Batch:
    """So many messages, however they arrive."""
    got: Batch = Batch([], PullStatus.COMPLETE)

    async def gather() -> None:
        while len(got.messages) < count:
            batch = await source.next(count - len(got.messages))
            assert batch.messages or batch.status in (PullStatus.TIMEOUT, PullStatus.DISCONNECTED), batch.status
            got.messages.extend(batch.messages)

    await harness.until(gather(), within)
    return got


async def quiet(harness: Harness, source: Consumption, seconds: float) -> None:
    """Nothing is delivered for so long."""
    request = asyncio.ensure_future(source.next(10))
    await harness.advance(seconds)
    assert not request.done(), request.result()
    request.cancel()
    await asyncio.wait((request,))


async def refused(broker: Broker, push: Push, **options: Any) -> int:
    with pytest.raises(ApiError) as error:
        await broker.create_consumer("S", ConsumerSpec(name="c", push=push, **options))
    return error.value.code


@pytest.mark.parametrize(
    ("push", "options", "code"),
    [
        (Push(subject="deliver.*"), {}, 10079),
        (Push(subject="deliver.>"), {}, 10079),
        (Push(subject="deliver..c"), {}, 10112),
        (Push(subject="deliver c"), {}, 10112),
        (Push(subject="s.deliver"), {}, 10081),
        (DELIVER, {"max_waiting": 7}, 10080),
        (Push(subject="deliver.c", heartbeat=0.05), {}, 10083),
        (Push(subject="deliver.c", flow_control=True), {}, 10108),
    ],
)
async def test_h0_what_a_push_consumer_cannot_be(
    harness: Harness, push: Push, options: dict[str, Any], code: int
) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    assert await refused(broker, push, **options) == code
    assert await broker.consumers("S") == []


async def test_h0_a_group_has_a_name(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    for group in ("", "a b"):
        with pytest.raises(InvalidName):
            await consumer(broker, push=structs.replace(DELIVER, group=group))


async def test_h0_a_push_consumer_is_what_was_asked_for(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    push = Push(subject="deliver.c", group="workers", heartbeat=2.0, flow_control=True)
    spec = await consumer(broker, "c", "S", "s.a", push=push, ack_wait=7.0, max_deliver=4)
    info = await broker.consumer_info("S", "c")
    assert (info.spec, info.bound, info.num_waiting) == (spec, False, 0)
    assert (await broker.create_consumer("S", spec)).spec == spec


async def test_h0_a_push_consumer_is_not_pulled_from_nor_the_other_way_round(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, "pushed", push=DELIVER)
    await consumer(broker, "pulled")
    assert (await pull(harness, broker, name="pushed")).status is PullStatus.PUSH_BASED
    source = await broker.consume("S", "pushed", prefetch=2)
    assert (await harness.until(source.next(1))).status is PullStatus.PUSH_BASED
    await source.close()
    with pytest.raises(ValueError):
        await broker.push("S", "pulled")
    with pytest.raises(ApiError) as error:
        await broker.push("S", "nobody")
    assert error.value.code == 10014


async def test_h1_a_push_consumer_delivers_to_who_listens(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, "c", "S", "s.a", push=DELIVER)
    await publish(broker, "s.a", "s.b", headers={"k": "v"})
    source = await broker.push("S", "c")
    batch = await takes(harness, source, 1)
    await publish(broker, "s.b", "s.a")
    batch = Batch(batch.messages + (await takes(harness, source, 1)).messages, PullStatus.COMPLETE)
    assert (seqs(batch), counts(batch)) == ([1, 4], [1, 1])
    first, second = batch.messages
    assert (first.stream, first.consumer, first.subject, first.data) == ("S", "c", "s.a", b"x")
    assert (dict(first.headers), dict(second.headers)) == ({"k": "v"}, {})
    assert (first.consumer_seq, second.consumer_seq, second.pending) == (1, 2, 0)
    assert abs(first.time - (await broker.get_message("S", 1)).time) < timedelta(milliseconds=1)
    assert (await broker.consumer_info("S", "c")).bound
    await first.ack()
    await second.ack_sync()
    info = await broker.consumer_info("S", "c")
    assert (info.ack_floor.consumer, info.num_ack_pending) == (2, 0)
    await source.close()


async def test_h1_what_is_pushed_is_settled_as_what_is_pulled(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, push=DELIVER, ack_wait=2 * T, max_deliver=5)
    source = await broker.push("S", "c")
    await publish(broker, *["s.a"] * 5)
    one, two, three, four, five = (await takes(harness, source, 5)).messages
    await one.ack()
    await two.nak()
    await three.nak(T)
    await four.term("no")
    again = await takes(harness, source, 1)
    assert (seqs(again), counts(again)) == ([2], [2])
    await again.messages[0].ack()
    again = await takes(harness, source, 1)
    assert (seqs(again), counts(again)) == ([3], [2])
    await again.messages[0].ack()
    await harness.advance(T / 2)
    await five.in_progress()
    await quiet(harness, source, T)
    again = await takes(harness, source, 1)
    assert (seqs(again), counts(again)) == ([5], [2])
    await again.messages[0].ack_sync()
    info = await broker.consumer_info("S", "c")
    assert (info.num_ack_pending, info.num_redelivered, info.num_pending) == (0, 0, 0)
    await source.close()


async def test_h1_max_ack_pending_holds_for_what_is_pushed(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, push=DELIVER, max_ack_pending=2)
    source = await broker.push("S", "c")
    await publish(broker, *["s.a"] * 4)
    batch = await takes(harness, source, 2)
    await quiet(harness, source, T)
    await batch.messages[0].ack()
    assert seqs(await takes(harness, source, 1)) == [3]
    await quiet(harness, source, T)
    await source.close()


async def test_h2_a_group_shares(harness: Harness) -> None:
    brokers = [await harness.make_broker() for _ in range(2)]
    await stream(brokers[0])
    await consumer(brokers[0], push=GROUP)
    await consumer(brokers[0], "everything", push=Push(subject="deliver.everything"))
    sources = [await broker.push("S", "c") for broker in brokers]
    everything = await brokers[1].push("S", "everything")
    got: list[list[int]] = [[], []]

    async def work(source: Consumption, mine: list[int]) -> None:
        while True:
            for message in (await source.next(5)).messages:
                await message.ack()
                mine.append(message.seq)

    tasks = [asyncio.create_task(work(*pair)) for pair in zip(sources, got, strict=True)]
    await publish(brokers[0], *["s.a"] * 20)

    async def all_done() -> None:
        while len(got[0]) + len(got[1]) < 20:
            await brokers[0].sleep(0.01)

    await harness.until(all_done())
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert sorted(got[0] + got[1]) == list(range(1, 21))
    assert got[0]
    assert got[1]
    assert seqs(await takes(harness, everything, 20)) == list(range(1, 21))


async def test_h2_only_its_own_group_is_an_audience(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, push=GROUP)
    alone, others = Ear(harness), Ear(harness)
    await alone.listen(broker, "deliver.c")
    await others.listen(broker, "deliver.c", "others")
    await publish(broker, "s.a")
    await harness.advance(T / 2)
    assert (alone.messages, others.messages) == ([], [])
    assert not (await broker.consumer_info("S", "c")).bound
    # With an audience everybody who listens hears it.
    source = await broker.push("S", "c")
    assert seqs(await takes(harness, source, 1)) == [1]
    for ear in (alone, others):
        (heard,) = await ear.hears(1)
        assert (heard.subject, heard.data) == ("s.a", b"x")
        assert (heard.reply or "").startswith("$JS.ACK.S.c.1.1.1.")


async def test_h3_what_was_published_before_comes_to_who_listens_later(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, push=DELIVER, ack_wait=T)
    await publish(broker, *["s.a"] * 3)
    await harness.advance(2 * T)
    info = await broker.consumer_info("S", "c")
    assert (info.num_pending, info.num_ack_pending, info.bound) == (3, 0, False)
    source = await broker.push("S", "c")
    batch = await takes(harness, source, 3)
    assert (seqs(batch), counts(batch)) == ([1, 2, 3], [1, 1, 1])
    await source.close()


async def test_h3_what_was_not_acked_comes_again_to_who_listens_next(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, push=DELIVER, ack_wait=2 * T)
    source = await broker.push("S", "c")
    await publish(broker, "s.a", "s.a")
    began = broker.monotonic()
    await takes(harness, source, 2)
    await source.close()
    await harness.advance(T)
    other = await broker.push("S", "c")
    batch = await takes(harness, other, 2)
    assert (seqs(batch), counts(batch)) == ([1, 2], [2, 2])
    assert broker.monotonic() - began >= 2 * T - harness.jitter
    await other.close()


async def test_h3_what_was_delivered_and_not_taken_goes_back_at_once(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, push=DELIVER, ack_wait=30.0)
    source = await broker.push("S", "c")
    await publish(broker, *["s.a"] * 3)
    await takes(harness, source, 1)

    async def delivered() -> None:
        while (await broker.consumer_info("S", "c")).num_ack_pending < 3:
            await broker.sleep(0.01)

    await harness.until(delivered())
    await source.close()
    await source.close()
    assert await harness.until(source.next(1)) == Batch([], PullStatus.DISCONNECTED)
    other = await broker.push("S", "c")
    batch = await takes(harness, other, 2)
    assert (seqs(batch), counts(batch)) == ([2, 3], [2, 2])
    await other.close()


async def test_h3_who_listens_already_is_alone(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    spec = await consumer(broker, push=DELIVER)
    source = await broker.push("S", "c")
    moved = structs.replace(spec, push=Push(subject="deliver.elsewhere"))
    with pytest.raises(ApiError) as error:
        await harness.until((await harness.make_broker()).push("S", "c"))
    assert error.value.code == 10013
    with pytest.raises(ApiError) as error:
        await broker.update_consumer("S", moved)
    assert error.value.code == 10013
    await source.close()
    await publish(broker, "s.a")
    assert (await harness.until(updated(broker, moved))).push == moved.push
    source = await broker.push("S", "c")
    assert seqs(await takes(harness, source, 1)) == [1]


async def updated(broker: Broker, spec: ConsumerSpec) -> ConsumerSpec:
    """Update when the server has noticed that nobody listens any more."""
    while (await broker.consumer_info("S", "c")).bound:
        await broker.sleep(0.01)
    return (await broker.update_consumer("S", spec)).spec


@pytest.mark.parametrize(
    "push",
    [None, Push(subject="deliver.c", heartbeat=1.0), Push(subject="deliver.c", heartbeat=1.0, flow_control=True)],
)
async def test_h3_how_it_pushes_cannot_be_changed(harness: Harness, push: Push | None) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    spec = await consumer(broker, push=DELIVER)
    with pytest.raises(ApiError) as error:
        await broker.ensure_consumer("S", structs.replace(spec, push=push))
    assert error.value.code == 10012
    assert (await broker.ensure_consumer("S", structs.replace(spec, push=GROUP))).spec.push == GROUP
    pulled = await consumer(broker, "pulled")
    with pytest.raises(ApiError) as error:
        await broker.ensure_consumer("S", structs.replace(pulled, push=DELIVER))
    assert error.value.code == 10012


async def test_h3_a_cut_connection_returns_to_its_source(harness: Harness) -> None:
    broker, other = await harness.make_broker(), await harness.make_broker()
    await stream(broker)
    await consumer(broker, push=DELIVER, ack_wait=2 * T)
    source = await broker.push("S", "c")
    request = asyncio.ensure_future(source.next(1))
    await harness.advance(T / 2)
    await harness.cut_connection(broker)
    assert await harness.until(request) == Batch([], PullStatus.DISCONNECTED)
    await harness.back(broker, other)
    await publish(other, "s.a")
    batch = await takes(harness, source, 1)
    await batch.messages[0].ack_sync()
    await source.close()


async def test_h3_a_push_over_a_restart(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, push=DELIVER, ack_wait=2 * T, max_deliver=9)
    source = await broker.push("S", "c")
    await publish(broker, "s.a")
    await takes(harness, source, 1)
    await harness.restart()
    await harness.back(broker)
    batch = await takes(harness, source, 1)
    assert seqs(batch) == [1]
    assert counts(batch)[0] >= 2
    await batch.messages[0].ack_sync()
    await publish(broker, "s.b")
    assert seqs(await takes(harness, source, 1)) == [2]
    await source.close()


async def test_h7_heartbeats_say_that_the_server_is_there(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, push=structs.replace(DELIVER, heartbeat=T))
    source = await broker.push("S", "c")
    began = broker.monotonic()
    for _ in range(3):
        assert await harness.until(source.next(1)) == Batch([], PullStatus.TIMEOUT)
    assert 3 * T - harness.jitter <= broker.monotonic() - began <= 3 * T + LATE
    assert source.last_pull >= began + 3 * T - harness.jitter
    ear = await Ear(harness).listen(broker, "deliver.c")
    await publish(broker, "s.a")
    message, beat, *_ = await ear.hears(2)
    assert (message.subject, beat.subject, beat.data, beat.reply) == ("s.a", "deliver.c", b"", None)
    assert beat.headers == {
        "Status": "100",
        "Description": "Idle Heartbeat",
        "Nats-Last-Consumer": "1",
        "Nats-Last-Stream": "1",
    }
    await source.close()


async def test_h7_a_consumer_that_goes_is_missed(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, push=structs.replace(DELIVER, heartbeat=T))
    source = await broker.push("S", "c")
    await publish(broker, "s.a")
    await takes(harness, source, 1)
    await broker.delete_consumer("S", "c")
    assert await harness.until(source.next(1), 5 * T + LATE) == Batch([], PullStatus.NO_CONSUMER)
    await source.close()


async def test_h8_flow_control_waits_for_who_listens(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, storage=Storage.MEMORY)
    push = Push(subject="deliver.c", heartbeat=T, flow_control=True)
    await consumer(broker, push=push, ack=Ack.NONE, max_deliver=-1)
    ear = await Ear(harness).listen(broker, "deliver.c")
    big = b"x" * 100_000
    await asyncio.gather(*(broker.submit("s.a", big, {}) for _ in range(200)))
    await harness.advance(5 * T)
    # Nobody answered: it stopped on the way, and says so.
    held = [one for one in ear.messages if one.data]
    assert 0 < len(held) < 200
    (question,) = {one.reply for one in ear.messages if one.headers.get("Description") == "FlowControl Request"}
    beats = [one for one in ear.messages if one.headers.get("Description") == "Idle Heartbeat"]
    assert {one.headers.get("Nats-Consumer-Stalled") for one in beats} == {question}
    assert question is not None

    async def answer() -> None:
        answered = 0
        while len([one for one in ear.messages if one.data]) < 200:
            asked = [one.reply for one in ear.messages if one.headers.get("Description") == "FlowControl Request"]
            for one in asked[answered:]:
                assert one is not None
                await broker.core_publish(one, b"")
            answered = len(asked)
            await broker.sleep(0.01)

    await harness.until(answer())
    assert [one.data for one in ear.messages if one.data] == [big] * 200


async def test_h8_a_source_answers_when_it_is_read(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, storage=Storage.MEMORY)
    push = Push(subject="deliver.c", heartbeat=T, flow_control=True)
    await consumer(broker, push=push, ack=Ack.NONE, max_deliver=-1)
    source = await broker.push("S", "c")
    await asyncio.gather(*(broker.submit("s.a", b"x" * 100_000, {}) for _ in range(200)))
    await harness.advance(5 * T)
    assert (await broker.consumer_info("S", "c")).num_pending > 0
    assert seqs(await takes(harness, source, 200, 20)) == list(range(1, 201))
    await source.close()


async def test_h9_whoever_has_the_reply_may_settle(harness: Harness) -> None:
    """L5: what an ack is, on the wire."""
    broker, other = await harness.make_broker(), await harness.make_broker()
    await stream(broker)
    await consumer(broker, push=DELIVER, ack_wait=2 * T, max_deliver=9)
    ear = await Ear(harness).listen(broker, "deliver.c")
    await publish(broker, *["s.a"] * 5)
    first, second, third, fourth, fifth = [one.reply or "" for one in await ear.hears(5)]

    async def said(reply: str, what: bytes) -> None:
        assert (await harness.until(other.request(reply, what, timeout=2.0))).data == b""

    await said(first, b"")
    await said(first, b"+ACK")
    await said(second, b"+OK")
    await said(third, b'-NAK {"delay": 1}')
    assert (await ear.hears(6))[5].reply.split(".")[4:6] == ["2", "3"]  # type: ignore[union-attr]
    await said(third, b"+TERM enough")
    await said(fourth, b"+WPI")
    # What the server does not know settles nothing.
    await said(fifth, b"+WHAT")
    with pytest.raises(RequestTimeout):
        await harness.until(other.request(fifth.replace("1.5.5", "1.6.6"), b"+ACK", timeout=T / 2))
    with pytest.raises(NoResponders):
        await harness.until(other.request(fifth.replace("S.c", "S.d"), b"+ACK", timeout=T))
    info = await broker.consumer_info("S", "c")
    assert info.num_ack_pending == 2
    again = [one.reply or "" for one in (await ear.hears(8))[6:]]
    assert sorted(one.split(".")[5] for one in again) == ["4", "5"]
    for reply in (fourth, fifth):
        await said(reply, b"-NAK 50ms")
        await said(reply, b"+ACK")
    assert (await broker.consumer_info("S", "c")).num_ack_pending == 0


@pytest.mark.parametrize("retention", [Retention.INTEREST, Retention.WORKQUEUE])
async def test_h10_what_is_pushed_leaves_as_what_is_pulled(harness: Harness, retention: Retention) -> None:
    broker = await harness.make_broker()
    await stream(broker, retention=retention)
    await consumer(broker, push=DELIVER)
    await publish(broker, "s.a", "s.a")
    source = await broker.push("S", "c")
    first, second = (await takes(harness, source, 2)).messages
    await first.ack_sync()
    assert (await broker.stream_info("S")).messages == 1
    await second.ack_sync()
    assert (await broker.stream_info("S")).messages == 0
    for ack in (Ack.NONE, Ack.ALL):
        if retention is Retention.WORKQUEUE:
            await broker.delete_consumer("S", "c")
            assert await refused(broker, DELIVER, ack=ack, max_deliver=-1) == 10098
            await consumer(broker, push=DELIVER)
    await source.close()


async def test_h11_an_ephemeral_push_consumer_lives_while_somebody_listens(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    push = Push(subject=broker.new_inbox())
    info = await broker.create_consumer("S", ConsumerSpec(push=push, inactive_threshold=1.0))
    source = await broker.push("S", info.name)
    await harness.advance(2.0)
    await publish(broker, "s.a")
    assert seqs(await takes(harness, source, 1)) == [1]
    await source.close()

    async def gone() -> None:
        while await broker.consumers("S"):
            await broker.sleep(0.05)

    began = broker.monotonic()
    await harness.until(gone(), 6)
    assert broker.monotonic() - began >= 1.0 - 0.1


async def test_h12_paused_and_headers_only(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, push=DELIVER, headers_only=True)
    source = await broker.push("S", "c")
    await publish(broker, "s.a", data=b"12345")
    now = (await broker.get_message("S", 1)).time
    (message,) = (await takes(harness, source, 1)).messages
    assert (message.data, dict(message.headers)) == (b"", {"Nats-Msg-Size": "5"})
    await broker.pause_consumer("S", "c", now + timedelta(seconds=4 * T))
    await publish(broker, "s.b")
    await quiet(harness, source, 2 * T)
    assert seqs(await takes(harness, source, 1)) == [2]
    await source.close()


# -- in order


async def read(harness: Harness, reader: AsyncIterator[StoredMessage], count: int) -> list[StoredMessage]:
    async def some() -> list[StoredMessage]:
        got: list[StoredMessage] = []
        while len(got) < count:
            got.append(await anext(reader))
        return got

    return await harness.until(some())


async def everything(harness: Harness, reader: AsyncIterator[StoredMessage]) -> list[int]:
    async def all_of_it() -> list[int]:
        return [message.seq async for message in reader]

    return await harness.until(all_of_it())


async def test_h4_in_order_whatever_breaks(harness: Harness) -> None:
    broker, other = await harness.make_broker(), await harness.make_broker()
    await stream(broker)
    await asyncio.gather(*(broker.submit(f"s.{n}", str(n).encode(), {"n": str(n)}) for n in range(600)))
    got: list[StoredMessage] = []
    async with aclosing(broker.ordered("S")) as reader:
        got += await read(harness, reader, 100)
        await harness.cut_connection(broker)
        got += await read(harness, reader, 300)
        await harness.restart()
        await harness.back(broker, other)
        await asyncio.gather(*(other.submit(f"s.{n}", str(n).encode(), {"n": str(n)}) for n in range(600, 1000)))
        got += await read(harness, reader, 600)
    assert [(one.seq, one.subject, one.data) for one in got] == [
        (n + 1, f"s.{n}", str(n).encode()) for n in range(1000)
    ]
    assert (got[0].stream, got[0].headers) == ("S", {"n": "0"})
    assert abs(got[0].time - (await broker.get_message("S", 1)).time) < timedelta(milliseconds=1)


async def test_h4_a_reader_leaves_no_consumer_behind(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    await publish(broker, "s.a", "s.b", "s.a")
    before = await broker.consumer_info("S", "c")
    async with aclosing(broker.ordered("S", "s.a")) as reader:
        assert [one.seq for one in await read(harness, reader, 2)] == [1, 3]
        assert (await broker.stream_info("S")).consumers == 2
        await publish(broker, "s.b", "s.a")
        assert [one.seq for one in await read(harness, reader, 1)] == [5]
    assert [info.name for info in await broker.consumers("S")] == ["c"]
    assert (await broker.consumer_info("S", "c")).delivered == before.delivered


async def test_h4_a_missing_consumer_is_made_again(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nebengjek.bus.ordered.HEARTBEAT", T)
    broker = await harness.make_broker()
    await stream(broker)
    await publish(broker, "s.a")
    async with aclosing(broker.ordered("S")) as reader:
        await read(harness, reader, 1)
        (ephemeral,) = await broker.consumers("S")
        await broker.delete_consumer("S", ephemeral.name)
        await publish(broker, "s.b", "s.c")
        assert [one.seq for one in await read(harness, reader, 2)] == [2, 3]


async def test_h4_a_stream_that_goes_or_begins_anew_is_said(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nebengjek.bus.ordered.HEARTBEAT", T)
    broker = await harness.make_broker()
    for again in (False, True):
        # In memory: a nats-server under load may still be removing the files of the one before.
        await stream(broker, storage=Storage.MEMORY)
        await publish(broker, "s.a", "s.b")
        async with aclosing(broker.ordered("S")) as reader:
            await read(harness, reader, 2)
            await broker.delete_stream("S")
            if again:
                await stream(broker, storage=Storage.MEMORY)
            with pytest.raises(ApiError) as error:
                await read(harness, reader, 1)
            assert error.value.code == 10059
        if again:
            await broker.delete_stream("S")
    with pytest.raises(ApiError) as error:
        await everything(harness, broker.ordered("S"))
    assert error.value.code == 10059


async def test_h4_a_reader_ends_with_its_broker(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await publish(broker, "s.a")
    reader = broker.ordered("S")
    await read(harness, reader, 1)
    waiting = asyncio.ensure_future(read(harness, reader, 1))
    await harness.advance(T / 2)
    await broker.close()
    with pytest.raises(Disconnected):
        await waiting
    with pytest.raises(Disconnected):
        await read(harness, broker.ordered("S"), 1)


async def test_h5_until_drained(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    assert await everything(harness, broker.ordered("S", until_drained=True)) == []
    await publish(broker, "s.a", "s.b")
    await harness.advance(T / 10)
    await publish(broker, "s.a", "s.b", "s.a")
    third = (await broker.get_message("S", 3)).time
    for since, filters, expected in (
        (Deliver.ALL, (), [1, 2, 3, 4, 5]),
        (Deliver.LAST, (), [5]),
        (Deliver.NEW, (), []),
        (3, (), [3, 4, 5]),
        (3, ("s.b",), [4]),
        (99, (), []),
        (third, ("s.a",), [3, 5]),
        (Deliver.ALL, ("s.c",), []),
    ):
        got = await everything(harness, broker.ordered("S", *filters, since=since, until_drained=True))
        assert got == expected, (since, filters)
    with pytest.raises(ValueError):
        await everything(harness, broker.ordered("S", since=Deliver.LAST_PER_SUBJECT))
    await broker.purge_stream("S")
    assert await everything(harness, broker.ordered("S", until_drained=True)) == []
    assert await broker.consumers("S") == []


async def test_h5_a_work_queue_is_not_for_reading(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, retention=Retention.WORKQUEUE)
    with pytest.raises(ApiError) as error:
        await everything(harness, broker.ordered("S", until_drained=True))
    assert error.value.code == 10098


async def test_h5_what_is_new_is_what_came_after_the_beginning(harness: Harness) -> None:
    broker, other = await harness.make_broker(), await harness.make_broker()
    await stream(broker)
    await publish(broker, "s.a", "s.a")
    async with aclosing(broker.ordered("S", since=Deliver.NEW)) as reader:
        waiting = asyncio.ensure_future(anext(reader))
        await harness.advance(T / 2)
        await harness.cut_connection(broker)
        await harness.back(broker, other)
        await publish(other, "s.b")
        assert (await harness.until(waiting)).seq == 3


async def test_h6_headers_only(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await publish(broker, "s.a", data=b"12345", headers={"k": "v"})
    (message,) = await read(harness, broker.ordered("S", headers_only=True, until_drained=True), 1)
    assert (message.data, message.headers) == (b"", {"k": "v", "Nats-Msg-Size": "5"})
