"""Two pods on one bus and one Valkey: what one hears reaches the sockets of the other, and nothing twice."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from nebengjek.bus.memory.broker import MemoryBroker
from nebengjek.bus.memory.server import MemoryServer
from nebengjek.bus.messages import CoreMessage
from nebengjek.bus.payloads import Payloads
from nebengjek.bus.subjects import subject_matches
from nebengjek.contracts.pods import PodPosts, deliver_subject
from nebengjek.faststate import connect_redis
from nebengjek.realtime import relay as relay_module
from nebengjek.realtime.delivery import Connection, Delivery, encode_frame
from nebengjek.realtime.redis_mailbox import RedisMailbox
from nebengjek.realtime.redis_presence import RedisPresence
from nebengjek.realtime.relay import Relay
from nebengjek.streams import STREAMS
from nebengjek.tokens import Identity
from tests.faststate.backends import Backend, Valkey
from tests.servers import valkey_server

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def valkey() -> Iterator[str]:
    with valkey_server() as url:
        yield url


class Phone:
    """One socket; ``frames`` is what came out of it."""

    def __init__(self, pod: "Pod", connection: Connection, frames: asyncio.Queue[Any]) -> None:
        self.pod = pod
        self.connection = connection
        self.frames = frames

    async def expect(self, event: str) -> Any:
        """The next frame is this one."""
        async with asyncio.timeout(5):
            frame = await self.frames.get()
        assert frame["event"] == event, frame
        return frame

    async def hang_up(self) -> None:
        await self.connection.end()
        await self.pod.delivery.detach(self.connection)


class Pod:
    def __init__(self, street: "Street", pod_id: str, payloads: Payloads | None) -> None:
        self.client = connect_redis(street.url)
        self.broker = MemoryBroker(street.server)
        clock = street.where.clock
        presence = RedisPresence(self.client, clock, pod_id=pod_id)
        self.relay = Relay(self.broker, presence, pod_id=pod_id, payloads=payloads)
        self.delivery = Delivery(RedisMailbox(self.client, clock), presence, clock, self.relay)

    async def connect(self, user_id: str, *, after: int | None = None) -> Phone:
        head = await self.delivery.mailbox.head(user_id)
        frames: asyncio.Queue[Any] = asyncio.Queue()

        async def send(message: Any) -> None:
            await frames.put(msgspec.json.decode(message["text"]) if "text" in message else {"event": message["code"]})

        me = _identity(user_id)
        start = head.last_seq if after is None else after
        number = next(_numbers)
        connection = Connection(f"c{number}", me, self.delivery.mailbox, head.epoch, start, send)
        await self.delivery.attach(connection)
        connection.ring()
        connection.open()
        return Phone(self, connection, frames)


class Street:
    def __init__(self, url: str, where: Backend) -> None:
        self.url = url
        self.where = where
        self.server = MemoryServer()
        self.stack = AsyncExitStack()

    async def pod(self, pod_id: str, payloads: Payloads | None = None) -> Pod:
        pod = Pod(self, pod_id, payloads)
        await pod.broker.connect()
        self.stack.push_async_callback(pod.client.aclose)
        self.stack.push_async_callback(pod.broker.close)
        self.stack.push_async_callback(pod.delivery.stop)
        await pod.delivery.start()
        return pod


_numbers = iter(range(1_000_000))


def _identity(user_id: str) -> Any:
    ends = datetime.now(UTC) + timedelta(days=1)
    return Identity(user_id=user_id, role="driver", session_id="s", expires_at=ends)


@asynccontextmanager
async def street(url: str) -> AsyncIterator[Street]:
    client = connect_redis(url)
    await client.flushdb()
    made = Street(url, Valkey(client))
    async with made.stack:
        yield made
    await client.aclose()


@asynccontextmanager
async def two_pods(url: str, payloads: Payloads | None = None) -> AsyncIterator[tuple[Pod, Pod, Street]]:
    async with street(url) as made:
        one, two = await made.pod("one", payloads), await made.pod("two", payloads)
        yield one, two, made


async def test_what_one_pod_hears_reaches_every_socket_of_the_user_once_and_in_order(valkey: str) -> None:
    async with two_pods(valkey) as (one, two, _):
        here, there, other = await one.connect("ana"), await two.connect("ana"), await two.connect("budi")
        for number in range(20):
            pod = (one, two)[number % 2]
            await pod.delivery.deliver("ana", "ride.progress", {"n": number}, message_id=f"m{number}")
            await pod.delivery.deliver("ana", "ride.progress", {"n": number}, message_id=f"m{number}")
        for phone in (here, there):
            frames = [await phone.expect("ride.progress") for _ in range(20)]
            assert [(frame["seq"], frame["data"]["n"]) for frame in frames] == [(n + 1, n) for n in range(20)]
        await one.delivery.deliver("budi", "ride.pickup", {}, message_id="m")
        await other.expect("ride.pickup")
        assert here.frames.empty()
        assert there.frames.empty()


async def test_what_may_be_missed_and_answers_are_carried_whole(valkey: str) -> None:
    async with two_pods(valkey) as (one, two, _):
        here, there, second = await one.connect("ana"), await two.connect("ana"), await two.connect("ana")
        one.delivery.show("ana", "location.stored", {"geohash": "qqguz"})
        for phone in (here, there, second):
            assert (await phone.expect("location.stored"))["data"] == {"geohash": "qqguz"}
        for phone in (here, there):
            one.delivery.answer("ana", phone.connection.id, encode_frame("ack", {"id": "f1"}))
            assert (await phone.expect("ack"))["data"] == {"id": "f1"}
        one.delivery.answer("ana", "who is that", encode_frame("ack", {"id": "f2"}))
        one.delivery.show("ana", "ride.tracking", {})
        for phone in (here, there, second):
            await phone.expect("ride.tracking")


async def test_a_phone_that_hops_pods_misses_nothing_and_gets_nothing_twice(valkey: str) -> None:
    async with two_pods(valkey) as (one, two, _):
        phone = await one.connect("ana")
        got: list[int] = []
        for number in range(40):
            await (one, two)[number % 2].delivery.deliver("ana", "ride.progress", {}, message_id=f"m{number}")
            if number % 3 == 0:
                # The new socket begins before the old one ends.
                old, phone = phone, await (one, two)[number % 2].connect("ana", after=len(got))
                await old.hang_up()
            while len(got) <= number:
                got.append((await phone.expect("ride.progress"))["seq"])
        assert got == list(range(1, 41))


async def test_where_presence_cannot_be_asked_every_pod_is_told(valkey: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_pods(valkey) as (one, two, _):
        there, other = await two.connect("ana"), await two.connect("budi")
        heard: list[str] = []

        async def listen(message: CoreMessage) -> None:
            heard.append(message.subject)

        await two.broker.subscribe("*.*.broadcast", listen)
        await one.delivery.mailbox.append("ana", "m", "ride.pickup", b"{}")
        monkeypatch.setattr(one.client.connection_pool, "get_connection", _nobody)
        one.delivery.show("ana", "ride.tracking", {})
        one.relay.ring("ana")
        assert {(await there.frames.get())["event"] for _ in range(2)} == {"ride.tracking", "ride.pickup"}
        assert heard == ["session.ana.broadcast"]
        assert other.frames.empty()


async def test_a_doorbell_that_was_lost_is_made_up_for(valkey: str) -> None:
    async with two_pods(valkey) as (one, two, _):
        there = await two.connect("ana")
        await one.relay.stop()
        await one.delivery.deliver("ana", "ride.pickup", {}, message_id="m")
        await two.delivery.look_for_mail()
        await there.expect("ride.pickup")
        await two.delivery.look_for_mail()
        two.delivery.show("ana", "ride.tracking", {})
        await there.expect("ride.tracking")


async def test_posts_are_sealed_where_there_is_a_key(valkey: str) -> None:
    async with two_pods(valkey, Payloads(keys=[b"k" * 32])) as (one, two, _):
        there = await two.connect("ana")
        seen: asyncio.Queue[CoreMessage] = asyncio.Queue()
        await two.broker.subscribe(deliver_subject("two"), seen.put)
        one.delivery.show("ana", "ride.tracking", {"latitude": -6.175})
        assert (await there.expect("ride.tracking"))["data"] == {"latitude": -6.175}
        assert b"ana" not in (await seen.get()).data


async def test_many_phones_are_told_in_few_messages(valkey: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "MAX_BYTES", 2000)
    async with two_pods(valkey) as (one, two, _):
        phones = [await two.connect(f"u{number}") for number in range(60)]
        seen: list[PodPosts] = []

        async def listen(message: CoreMessage) -> None:
            assert len(message.data) < 2200
            seen.append(msgspec.json.decode(message.data, type=PodPosts))

        await one.broker.subscribe(deliver_subject("two"), listen)
        for number in range(60):
            one.delivery.show(f"u{number}", "location.stored", {"n": 1})
            one.delivery.show(f"u{number}", "location.stored", {"n": 2})
        for phone in phones:
            assert (await phone.expect("location.stored"))["data"] == {"n": 2}
        assert sum(len(message.posts) for message in seen) == 60
        assert 2 < len(seen) < 10


async def test_what_is_no_post_is_left_aside(valkey: str) -> None:
    async with two_pods(valkey) as (one, two, _):
        there = await two.connect("ana")
        for data in (b"", b"{}", b'{"posts":[{"user_id":1}]}', b"\xff"):
            await one.broker.core_publish(deliver_subject("two"), data)
        await one.broker.core_publish(deliver_subject("two"), b"{}", {"Content-Encoding": "rot13"})
        one.delivery.show("ana", "ride.tracking", {})
        await there.expect("ride.tracking")


def test_the_subjects_between_pods_lie_outside_every_stream() -> None:
    for subject in ("pod.x.deliver", "pod.x.health", "pod.heartbeat", "session.x.broadcast"):
        assert not [spec.name for spec in STREAMS for pattern in spec.subjects if subject_matches(pattern, subject)]


async def _nobody(*_: object, **__: object) -> None:
    raise OSError("nobody is there")
