"""The peers of the bus benchmark: FastStream, nats-py used by hand, a bare queue; each returns messages per second."""

import asyncio
import time
from typing import Any

import msgspec
from faststream.nats import ConsumerConfig as FastStreamConsumer
from faststream.nats import JStream, NatsBroker, PullSub, TestNatsBroker
from nats.aio.client import Client
from nats.js.api import ConsumerConfig
from pydantic import BaseModel

PAYLOAD: dict[str, Any] = {"id": "a", "n": 1, "text": "x" * 100}
DATA = msgspec.json.encode(PAYLOAD)


class Received(BaseModel):
    id: str
    n: int
    text: str


class Countdown:
    """Until so many have come, and how fast they came."""

    def __init__(self, count: int) -> None:
        self.left = count
        self._count = count
        self._began = 0.0
        self._done = asyncio.Event()

    def one(self) -> None:
        if not self._began:
            self._began = time.perf_counter()
        self.left -= 1
        if not self.left:
            self._done.set()

    async def rate(self) -> float:
        await asyncio.wait_for(self._done.wait(), 300)
        return self._count / (time.perf_counter() - self._began)


async def queue(count: int) -> float:
    """An asyncio.Queue between two tasks: bytes in, a typed value out."""
    between: asyncio.Queue[bytes] = asyncio.Queue(1024)
    decoder = msgspec.json.Decoder(dict[str, Any])

    async def put() -> None:
        for _ in range(count):
            await between.put(DATA)

    began = time.perf_counter()
    putting = asyncio.create_task(put())
    for _ in range(count):
        decoder.decode(await between.get())
    await putting
    return count / (time.perf_counter() - began)


async def faststream_in_memory(count: int) -> float:
    """TestNatsBroker: publish, and the handler runs in the publisher."""
    broker = NatsBroker()

    @broker.subscriber("peer.thing", stream="PEER")
    async def handle(message: Received) -> None: ...

    async with TestNatsBroker(broker) as running:
        began = time.perf_counter()
        for _ in range(count):
            await running.publish(Received(**PAYLOAD), "peer.thing", stream="PEER")
        return count / (time.perf_counter() - began)


async def faststream(url: str, stream: str, subject: str, count: int, *, pull: bool) -> float:
    """A typed subscriber of what lies in the stream already, acknowledged one by one."""
    broker = NatsBroker(url, logger=None)
    arriving = Countdown(count)
    options: dict[str, Any] = {"pull_sub": PullSub(batch_size=256)} if pull else {}
    config = FastStreamConsumer(max_ack_pending=2000)

    @broker.subscriber(subject, stream=JStream(stream, declare=False), durable=f"fs-{pull}", config=config, **options)
    async def handle(message: Received) -> None:
        arriving.one()

    async with broker:
        await broker.start()
        return await arriving.rate()


async def fetch_and_ack(url: str, stream: str, subject: str, count: int) -> float:
    """nats-py as its documentation shows it: fetch, decode, ack."""
    client = Client()
    await client.connect(url)
    decoder = msgspec.json.Decoder(dict[str, Any])
    config = ConsumerConfig(max_ack_pending=2000)
    subscription = await client.jetstream().pull_subscribe(subject, durable="raw", stream=stream, config=config)
    left = count
    began = time.perf_counter()
    while left:
        for message in await subscription.fetch(256, timeout=5):
            decoder.decode(message.data)
            await message.ack()
            left -= 1
    await client.flush()
    rate = count / (time.perf_counter() - began)
    await client.close()
    return rate


async def publish_awaited(url: str, subject: str, count: int) -> float:
    client = Client()
    await client.connect(url)
    context = client.jetstream()
    began = time.perf_counter()
    for number in range(count):
        await context.publish(subject, DATA, headers={"Nats-Msg-Id": f"{began}-{number}"})
    rate = count / (time.perf_counter() - began)
    await client.close()
    return rate


async def publish_in_a_window(url: str, subject: str, count: int) -> float:
    client = Client()
    await client.connect(url)
    context = client.jetstream(publish_async_max_pending=1024)
    began = time.perf_counter()
    for number in range(count):
        _ = await context.publish_async(subject, DATA, headers={"Nats-Msg-Id": f"{began}-{number}"}, wait_stall=30)
    await context.publish_async_completed()
    rate = count / (time.perf_counter() - began)
    await client.close()
    return rate
