"""L: a server that restarts, a connection that breaks, at the height of the broker."""

import asyncio

import pytest

from nebengjek.bus.deliveries import Batch, PullStatus
from nebengjek.bus.errors import ApiError, Disconnected, NoStream
from nebengjek.bus.interface import ConnectionStatus
from nebengjek.bus.messages import CoreMessage, PubAck
from nebengjek.bus.specs import Storage
from tests.conformance.harness import Ear, Harness, T, consumer, counts, here, publish, pull, seqs, stream, submit

X = {"Nats-Msg-Id": "x"}


async def test_l1_files_survive_a_restart(harness: Harness) -> None:
    broker = await harness.make_broker()
    spec = await stream(broker, "S", "s.>")
    await stream(broker, "M", "m.>", storage=Storage.MEMORY)
    await consumer(broker, ack_wait=2 * T, max_deliver=5)
    await publish(broker, "s.a", "s.b", "s.c", headers=None)
    await submit(broker, "s.d", headers=X)
    first, *_ = (await here(broker, 2)).messages
    await first.ack_sync()
    assert counts(await pull(harness, broker, 3, expires=4 * T)) == [1, 1, 2]
    await harness.restart()
    await harness.back(broker)

    info = await broker.stream_info("S")
    assert (info.spec, info.messages, info.last_seq) == (spec, 4, 4)
    with pytest.raises(ApiError) as error:
        await broker.stream_info("M")
    assert error.value.code == 10059
    # Counts go on, and what is still stored is still known.
    again = await pull(harness, broker, 3, expires=4 * T + 1)
    assert dict(zip(seqs(again), counts(again), strict=True)) == {2: 3, 3: 2, 4: 2}
    assert await submit(broker, "s.d", headers=X) == PubAck("S", 4, True)
    assert await submit(broker, "s.e") == PubAck("S", 5)


async def test_l1_a_loop_goes_on_after_a_restart(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    source = await broker.consume("S", "c", prefetch=10)
    await publish(broker, "s.a")
    assert seqs(await harness.until(source.next(5))) == [1]
    request = asyncio.ensure_future(source.next(5))
    await harness.advance(T / 2)
    await harness.restart()
    assert await harness.until(request) == Batch([], PullStatus.DISCONNECTED)
    request = asyncio.ensure_future(source.next(5))
    await harness.back(broker)
    await publish(broker, "s.b")
    batch = await harness.until(request, 2)
    while not batch.messages:
        assert batch.status in (PullStatus.DISCONNECTED, PullStatus.NO_CONSUMER)
        batch = await harness.until(source.next(5), 2)
    assert seqs(batch) == [2]
    await source.close()


async def test_l2_a_connection_is_cut_while_a_pull_waits(harness: Harness) -> None:
    broker, other = await harness.make_broker(), await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    request = asyncio.ensure_future(broker.pull("S", "c", expires=30))
    await harness.advance(T / 2)
    await harness.cut_connection(broker)
    assert await harness.until(request, 2) == Batch([], PullStatus.DISCONNECTED)
    await harness.back(broker, other)
    request = asyncio.ensure_future(broker.pull("S", "c", expires=30))
    await harness.advance(T / 2)
    await publish(other, "s.a")
    batch = await harness.until(request, 2)
    assert (seqs(batch), counts(batch)) == ([1], [1])


async def test_l2_core_subscriptions_return(harness: Harness) -> None:
    broker = await harness.make_broker()
    ear = await Ear(harness).listen(broker, "news.*")
    for number in (1, 2):
        await harness.restart() if number == 1 else await harness.cut_connection(broker)
        await harness.back(broker)
        await broker.core_publish(f"news.{number}", b"")
        assert (await ear.hears(number))[-1].subject == f"news.{number}"


async def test_l3_without_a_connection(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    await publish(broker, "s.a")
    (message,) = (await here(broker)).messages
    statuses: list[ConnectionStatus] = []
    broker.on_status(statuses.append)
    await harness.stop()
    assert broker.status is ConnectionStatus.DOWN
    for call in (
        broker.stream_info("S"),
        broker.pull("S", "c", expires=1),
        broker.core_publish("news", b""),
        broker.request("news", b"", timeout=1),
    ):
        with pytest.raises(Disconnected):
            await harness.until(call)
    with pytest.raises(Disconnected):
        await harness.until(broker.submit("s.a", b"", {}))
    # Settling is kept until the connection returns.
    await message.ack()
    await harness.start()
    await harness.back(broker)
    assert statuses == [ConnectionStatus.DOWN, ConnectionStatus.UP]

    async def acked() -> None:
        while (await broker.consumer_info("S", "c")).ack_floor.stream < 1:
            await broker.sleep(0.01)

    await harness.until(acked())


async def test_l7_a_publish_over_a_restart_is_stored_once(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)

    async def insist(name: str) -> None:
        while True:
            try:
                await asyncio.wait_for(broker.submit("s.a", b"", {"Nats-Msg-Id": name}), 1)
            except (Disconnected, NoStream, TimeoutError):
                await broker.sleep(0.05)
            else:
                return

    tasks = [asyncio.create_task(insist(str(n))) for n in range(50)]
    await asyncio.sleep(0)
    await harness.restart()
    tasks += [asyncio.create_task(insist(str(n))) for n in range(40, 90)]
    await harness.until(asyncio.gather(*tasks))
    assert (await broker.stream_info("S")).messages == 90


async def test_l8_a_server_that_comes_later(harness: Harness) -> None:
    first = await harness.make_broker()
    await stream(first)
    await consumer(first)
    await publish(first, "s.a")
    await harness.stop()
    broker = harness.new_broker()
    assert broker.status is ConnectionStatus.CONNECTING
    await asyncio.wait_for(broker.connect(), 3)
    assert broker.status is ConnectionStatus.CONNECTING
    with pytest.raises(Disconnected):
        await broker.stream_info("S")
    ear = await Ear(harness).listen(broker, "news")
    source = await broker.consume("S", "c", prefetch=5)
    request = asyncio.ensure_future(source.next(5))
    await harness.advance(T)
    assert not request.done()
    await harness.start()
    await harness.back(broker, first)
    assert broker.status.value == "up"
    batch = await harness.until(request)
    while not batch.messages:
        batch = await harness.until(source.next(5))
    assert seqs(batch) == [1]
    await broker.core_publish("news", b"")
    await ear.hears(1)


async def test_l9_it_never_gives_up(harness: Harness) -> None:
    harness.reconnect_wait = 0.02
    broker = await harness.make_broker()
    for _ in range(3):
        await harness.stop()
        # A real client makes some 70 tries in this time.
        await harness.advance(1.5 if broker.durable else 3600.0)
        await harness.start()
        await harness.back(broker)
        if broker.durable:
            break
    assert broker.status is ConnectionStatus.UP


async def test_l10_closing(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    await publish(broker, "s.a")
    (message,) = (await here(broker)).messages
    source = await broker.consume("S", "c", prefetch=5)
    request = asyncio.ensure_future(source.next(5))
    asking = asyncio.ensure_future(broker.pull("S", "c", expires=30))
    await Ear(harness).listen(broker, "news")
    await harness.advance(T / 2)
    await broker.close()
    assert broker.status is ConnectionStatus.CLOSED
    assert await harness.until(request) == Batch([], PullStatus.DISCONNECTED)
    assert await harness.until(asking) == Batch([], PullStatus.DISCONNECTED)
    for call in (broker.stream_info("S"), broker.core_publish("news", b""), message.ack()):
        with pytest.raises(Disconnected):
            await call
    with pytest.raises(Disconnected):
        await broker.submit("s.a", b"", {})
    await broker.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not [task for task in others if "/nebengjek/bus/" in str(task) or "/nats/aio/" in str(task)]


async def test_l10_closing_without_a_server(harness: Harness) -> None:
    up = await harness.make_broker()
    await harness.stop()
    never = harness.new_broker()
    await never.connect()
    for broker in (up, never):
        await asyncio.wait_for(broker.close(), 5)
        assert broker.status is ConnectionStatus.CLOSED
    await harness.start()


async def test_where_shows_no_credentials(harness: Harness) -> None:
    broker = await harness.make_broker()
    assert broker.where == "in this process" or broker.where.startswith("nats://127.0.0.1:")


async def test_l11_whoever_gives_up_waiting_takes_nobody_along(harness: Harness) -> None:
    """Cancelled at each step of asking, listening and pulling: the connection goes on being read."""
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)

    async def hear(message: CoreMessage) -> None: ...

    for turns in range(12):
        for work in (broker.subscribe("news", hear), broker.stream_info("S"), broker.pull("S", "c", expires=30)):
            task = asyncio.ensure_future(work)
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait((task,))
        assert (await harness.until(broker.stream_info("S"), 2)).messages == 0
    await publish(broker, "s.a")
    assert seqs(await pull(harness, broker)) == [1]
    assert broker.connection().reconnects == 0
