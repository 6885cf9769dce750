"""G: pulls, their ends, and the source of a consumer loop."""

import asyncio

import pytest

from nebengjek.bus.deliveries import Batch, PullStatus
from tests.conformance.harness import LATE, Harness, T, consumer, counts, here, publish, pull, seqs, stream, submit


async def waiting(harness: Harness, broker: object, count: int) -> None:
    """Wait until so many pulls wait at the server."""

    async def arrived() -> None:
        while (await broker.consumer_info("S", "c")).num_waiting < count:  # type: ignore[attr-defined]
            await broker.sleep(0.01)  # type: ignore[attr-defined]

    await harness.until(arrived())


async def test_g1_an_empty_pull_ends_with_its_time(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    began = broker.monotonic()
    assert await pull(harness, broker, expires=2 * T) == Batch([], PullStatus.TIMEOUT)
    assert 2 * T - 0.005 <= broker.monotonic() - began <= 2 * T + LATE


async def test_g2_an_empty_no_wait_ends_at_once(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    assert await here(broker) == Batch([], PullStatus.NO_MESSAGES)


async def test_g3_part_of_a_batch(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    await publish(broker, "s.a", "s.a")
    batch = await broker.pull("S", "c", batch=5, no_wait=True)
    assert (seqs(batch), batch.status) == ([1, 2], PullStatus.NO_MESSAGES)
    await publish(broker, "s.a", "s.a")
    began = broker.monotonic()
    batch = await pull(harness, broker, 5, expires=2 * T)
    assert (seqs(batch), batch.status) == ([3, 4], PullStatus.TIMEOUT)
    assert broker.monotonic() - began >= 2 * T - 0.005
    request = asyncio.ensure_future(broker.pull("S", "c", batch=2, expires=30))
    await waiting(harness, broker, 1)
    await publish(broker, "s.a", "s.a")
    batch = await harness.until(request)
    assert (seqs(batch), batch.status) == ([5, 6], PullStatus.COMPLETE)


async def test_g4_no_wait_with_time_waits_when_there_is_nothing(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    request = asyncio.ensure_future(broker.pull("S", "c", batch=5, no_wait=True, expires=2 * T))
    assert (await harness.until(request)).status in (PullStatus.TIMEOUT, PullStatus.NO_MESSAGES)
    await publish(broker, "s.a")
    batch = await harness.until(broker.pull("S", "c", batch=5, no_wait=True, expires=20))
    assert (seqs(batch), batch.status) == ([1], PullStatus.NO_MESSAGES)


async def test_g5_waiting_pulls_are_served_in_turn(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    first = asyncio.ensure_future(broker.pull("S", "c", batch=2, expires=20))
    await waiting(harness, broker, 1)
    second = asyncio.ensure_future(broker.pull("S", "c", batch=2, expires=20))
    await waiting(harness, broker, 2)
    await publish(broker, *["s.a"] * 4)
    assert seqs(await harness.until(first)) == [1, 3]
    assert seqs(await harness.until(second)) == [2, 4]


async def test_g6_max_bytes(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    await publish(broker, "s.a", "s.a", data=b"x" * 1000)
    batch = await harness.until(broker.pull("S", "c", batch=2, expires=20, max_bytes=500))
    assert batch == Batch([], PullStatus.MAX_BYTES)
    batch = await harness.until(broker.pull("S", "c", batch=2, expires=20, max_bytes=1500))
    assert (seqs(batch), counts(batch), batch.status) == ([1], [1], PullStatus.MAX_BYTES)
    batch = await here(broker)
    assert (seqs(batch), counts(batch)) == ([2], [1])


async def test_g7_max_waiting(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, max_waiting=1)
    first = asyncio.ensure_future(broker.pull("S", "c", expires=20))
    await waiting(harness, broker, 1)
    assert (await pull(harness, broker)).status is PullStatus.MAX_WAITING
    first.cancel()
    await asyncio.wait((first,))
    await harness.advance(1.2)
    await publish(broker, "s.a")
    assert seqs(await pull(harness, broker)) == [1]


async def test_g8_the_consumer_goes_while_a_pull_waits(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    request = asyncio.ensure_future(broker.pull("S", "c", expires=20))
    await waiting(harness, broker, 1)
    await broker.delete_consumer("S", "c")
    assert (await harness.until(request, 1)).status is PullStatus.CONSUMER_DELETED
    assert (await pull(harness, broker, expires=20)).status is PullStatus.NO_CONSUMER
    await consumer(broker)
    request = asyncio.ensure_future(broker.pull("S", "c", expires=20))
    await waiting(harness, broker, 1)
    await broker.delete_stream("S")
    assert (await harness.until(request, 1)).status is PullStatus.CONSUMER_DELETED
    assert (await pull(harness, broker, expires=20)).status is PullStatus.NO_CONSUMER


async def test_g9_a_cancelled_pull_swallows_nothing(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    orphan = asyncio.ensure_future(broker.pull("S", "c", expires=20))
    await waiting(harness, broker, 1)
    orphan.cancel()
    await asyncio.wait((orphan,))
    await publish(broker, "s.a")
    batch = await pull(harness, broker, expires=1)
    assert (seqs(batch), counts(batch)) == ([1], [1])


async def test_g9_a_pull_that_is_cancelled_with_messages_gives_them_back(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, ack_wait=30.0)
    await publish(broker, "s.a")
    orphan = asyncio.ensure_future(broker.pull("S", "c", batch=2, expires=20))

    async def delivered() -> None:
        while (await broker.consumer_info("S", "c")).num_ack_pending < 1:
            await broker.sleep(0.01)

    await harness.until(delivered())
    orphan.cancel()
    await asyncio.wait((orphan,))
    batch = await pull(harness, broker, expires=1)
    assert (seqs(batch), counts(batch)) == ([1], [2])


async def test_g10_many_empty_pulls_leave_nothing_behind(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    for _ in range(50):
        assert (await pull(harness, broker, expires=0.02)).status is PullStatus.TIMEOUT
    await publish(broker, "s.a")
    batch = await pull(harness, broker)
    assert (seqs(batch), counts(batch)) == ([1], [1])
    assert (await here(broker)).messages == []


async def test_g11_big_batches_in_order(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, max_ack_pending=5000)
    await asyncio.gather(*(broker.submit("s.a", b"", {}) for _ in range(2500)))
    got = []
    for size in (1000, 1000, 500):
        batch = await broker.pull("S", "c", batch=1000, no_wait=True)
        assert len(batch.messages) == size
        got += batch.messages
    assert [message.seq for message in got] == list(range(1, 2501))
    assert [message.pending for message in got] == list(range(2499, -1, -1))


async def test_g12_a_heartbeat_fits_into_its_pull(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    with pytest.raises(ValueError):
        await broker.pull("S", "c", expires=1.0, heartbeat=0.6)
    batch = await harness.until(broker.pull("S", "c", expires=0.6, heartbeat=0.2))
    assert batch == Batch([], PullStatus.TIMEOUT)


async def test_g18_a_pull_without_an_end_waits(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    request = asyncio.ensure_future(broker.pull("S", "c"))
    await harness.advance(4 * T)
    assert not request.done()
    await publish(broker, "s.a")
    batch = await harness.until(request)
    assert (seqs(batch), batch.status) == ([1], PullStatus.COMPLETE)


@pytest.mark.parametrize("size", [0, -1])
async def test_g19_less_than_one_is_one(harness: Harness, size: int) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    await publish(broker, "s.a", "s.a")
    batch = await pull(harness, broker, size)
    assert (seqs(batch), batch.status) == ([1], PullStatus.COMPLETE)


async def test_g20_a_stalled_consumer_does_not_answer_who_does_not_wait(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, max_ack_pending=1)
    await publish(broker, "s.a", "s.a")
    (message,) = (await pull(harness, broker)).messages
    began = broker.monotonic()
    batch = await harness.until(broker.pull("S", "c", no_wait=True))
    assert batch == Batch([], PullStatus.TIMEOUT)
    assert broker.monotonic() - began >= 1.0
    request = asyncio.ensure_future(broker.pull("S", "c", no_wait=True))
    await harness.advance(T)
    assert not request.done()
    await message.ack()
    assert seqs(await harness.until(request, 1)) == [2]


async def test_g21_with_a_heartbeat_too_many_waiters_are_not_told(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, max_waiting=1)
    first = asyncio.ensure_future(broker.pull("S", "c", expires=20))
    await waiting(harness, broker, 1)
    batch = await harness.until(broker.pull("S", "c", expires=10, heartbeat=0.2))
    assert batch == Batch([], PullStatus.SILENT)
    first.cancel()
    await asyncio.wait((first,))


# -- the source of a loop


async def test_g13_consume_hands_out_what_is_here(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    source = await broker.consume("S", "c", prefetch=20)
    got: list[int] = []
    await publish(broker, *["s.a"] * 30)
    while len(got) < 30:
        batch = await harness.until(source.next(7))
        assert batch.status is PullStatus.COMPLETE
        assert 1 <= len(batch.messages) <= 7
        got += seqs(batch)
        for message in batch.messages:
            await message.ack()
    assert got == list(range(1, 31))
    await source.close()


async def test_g13_consume_wakes_as_soon_as_something_comes(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    source = await broker.consume("S", "c", prefetch=10, expires=30.0)
    request = asyncio.ensure_future(source.next(5))
    await waiting(harness, broker, 1)
    began = broker.monotonic()
    await publish(broker, "s.a")
    assert seqs(await harness.until(request)) == [1]
    assert broker.monotonic() - began < LATE
    assert source.last_pull >= began
    await source.close()


async def test_g14_consume_says_that_it_is_idle(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    source = await broker.consume("S", "c", prefetch=10, expires=3 * T)
    for _ in range(2):
        assert await harness.until(source.next(5)) == Batch([], PullStatus.TIMEOUT)
    await publish(broker, "s.a")
    assert seqs(await harness.until(source.next(5))) == [1]
    await source.close()


async def test_g15_consume_says_that_its_consumer_is_gone(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    source = await broker.consume("S", "c", prefetch=10)
    assert await harness.until(source.next(5)) == Batch([], PullStatus.NO_CONSUMER)
    await consumer(broker)
    await publish(broker, "s.a")
    assert seqs(await harness.until(source.next(5))) == [1]
    request = asyncio.ensure_future(source.next(5))
    await waiting(harness, broker, 1)
    await broker.delete_consumer("S", "c")
    assert await harness.until(request, 2) == Batch([], PullStatus.CONSUMER_DELETED)
    assert await harness.until(source.next(5), 2) == Batch([], PullStatus.NO_CONSUMER)
    await consumer(broker)
    assert seqs(await harness.until(source.next(5))) == [1]
    await source.close()


async def test_g16_closing_gives_back_what_was_not_handed_out(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, ack_wait=30.0)
    await publish(broker, *["s.a"] * 6)
    source = await broker.consume("S", "c", prefetch=10)
    mine = await harness.until(source.next(1))
    assert seqs(mine) == [1]
    await source.close()
    batch = await pull(harness, broker, 5, expires=2)
    assert sorted(seqs(batch)) == [2, 3, 4, 5, 6]
    # The connection is closed with the test; closing again is harmless.
    await source.close()


async def test_g17_a_cancelled_next_loses_nothing(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, ack_wait=30.0)
    source = await broker.consume("S", "c", prefetch=10)
    for _ in range(3):
        request = asyncio.ensure_future(source.next(5))
        await waiting(harness, broker, 1)
        request.cancel()
        await asyncio.wait((request,))
    request = asyncio.ensure_future(source.next(5))
    await waiting(harness, broker, 1)
    ack = await submit(broker, "s.a")
    request.cancel()
    await asyncio.wait((request,))
    batch = await harness.until(source.next(5)) if request.cancelled() else request.result()
    assert (seqs(batch), counts(batch)) == ([ack.seq], [1])
    await source.close()


async def test_h1_two_sources_of_one_consumer_share(harness: Harness) -> None:
    broker, other = await harness.make_broker(), await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    await consumer(broker, "everything")
    got: dict[str, list[int]] = {"one": [], "two": []}
    over = asyncio.Event()

    async def run(name: str, connection: object) -> None:
        source = await connection.consume("S", "c", prefetch=4)  # type: ignore[attr-defined]
        while not over.is_set():
            for message in (await source.next(2)).messages:
                got[name].append(message.seq)
                await message.ack()
                if len(got["one"]) + len(got["two"]) == 200:
                    over.set()

    tasks = [asyncio.create_task(run("one", broker)), asyncio.create_task(run("two", other))]
    await waiting(harness, broker, 2)
    for _ in range(20):
        await publish(broker, *["s.a"] * 10)
    await harness.until(over.wait())
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert sorted(got["one"] + got["two"]) == list(range(1, 201))
    assert got["one"]
    assert got["two"]
    assert seqs(await broker.pull("S", "everything", batch=200, no_wait=True)) == list(range(1, 201))
