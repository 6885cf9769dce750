"""Bad input: what may not be published is refused before it is stored, what others publish stops nobody (A, K3)."""

import asyncio
from typing import Any
from urllib.parse import urlparse

import pytest
from msgspec import structs

from nebengjek.bus.codec import EVENT_VERSION
from nebengjek.bus.errors import ApiError, InvalidHeader, MaxPayload
from nebengjek.bus.handling import Context, Reject
from nebengjek.bus.interface import ConnectionStatus
from nebengjek.bus.messages import MAX_PAYLOAD, PubAck
from nebengjek.bus.queries import RemoteError
from nebengjek.bus.tracing import Trace, tracing
from nebengjek.contracts.message import Query
from nebengjek.errors import NebengJekError
from nebengjek.module import Module, answer, on, watch
from tests.bus.stage import ADVISORIES, AUDIT, DEAD, THINGS, Ear, News, Noted, Seen, Stage, Thing, within
from tests.conformance.harness import NatsHarness

LONG = "x" * (MAX_PAYLOAD + 1)


class Told(Noted, frozen=True, kw_only=True, tag="audit.told"):
    text: str = ""


class Length(Query[int], frozen=True, kw_only=True, tag="text.length"):
    text: str


# -- what we would publish


async def test_what_is_too_long_is_refused_by_every_way_out(stage: Stage) -> None:
    async def length(query: Length) -> int:
        return len(query.text)

    answers: list[PubAck | NebengJekError] = []
    bus = await stage.process(Module(name="m", answers=[answer(Length, length)]))
    with pytest.raises(MaxPayload):
        await bus.publish(Told(text=LONG))
    await bus.publish_soon(Told(text=LONG), lambda _, answer: answers.append(answer))
    await within(bus.flush())
    assert [type(one) for one in answers] == [MaxPayload]

    async def say() -> None:
        async with stage.database.begin() as tx:
            await bus.outbox.add(tx, Told(n=1), Told(text=LONG))

    # After the commit nobody could be told any more, and what cannot be said would be tried for ever.
    with pytest.raises(MaxPayload):
        await say()
    assert await bus.outbox.size() == 0
    with pytest.raises(MaxPayload):
        await bus.request(Length(text=LONG))
    assert await bus.request(Length(text="four")) == 4
    assert await bus.publish(Told(n=1)) == PubAck("AUDIT", 1)


class Unspeakable(ValueError):
    def __str__(self) -> str:
        return "a\ud800b\r\nNats-Msg-Id: c\x00"


async def test_whatever_an_error_says_it_becomes_no_header(stage: Stage) -> None:
    async def refuse(event: Any, context: Context) -> None:
        raise Reject(str(Unspeakable()))

    async def fail(query: Length) -> int:
        raise Reject(str(Unspeakable()))

    seen = Seen()
    bus = await stage.process(Module(name="m", hears=[on(Thing, refuse)], answers=[answer(Length, fail)]), seen=seen)
    await bus.publish(Thing())
    await seen.comes_to("termed", 1)
    [dead] = await bus.dead_letters.list()
    assert dead.error == "Reject: a\\ud800b Nats-Msg-Id: c\x00"
    with pytest.raises(RemoteError):
        await bus.request(Length(text=""))


@pytest.mark.parametrize("value", ["a\r\nNats-Msg-Id: b", "a\nb", "a\ud800b", " a"])
async def test_a_header_that_is_none_is_refused_at_the_port(stage: Stage, value: str) -> None:
    broker = (await stage.process()).broker
    with pytest.raises(InvalidHeader):
        await broker.core_publish("news", b"", {"k": value})
    with pytest.raises(InvalidHeader):
        await broker.submit("audit.noted.x", b"{}", {"k": value})
    assert (await broker.stream_info("AUDIT")).messages == 0


# -- what others publish


async def test_a_message_of_another_version_waits_for_who_knows_it(stage: Stage) -> None:
    """Its fields mean something else: to read them as ours would be worse than not to."""
    ear, seen, watched = Ear(), Seen(), News()
    seen_by_watch: list[int] = []

    async def look(event: Thing) -> None:
        seen_by_watch.append(event.n)
        watched.tell()

    module = Module(name="m", hears=[on(Thing, ear)], watches=[watch(Thing, look)])
    bus = await stage.process(module, seen=seen)
    await stage.publish_raw("thing.happened.x", b'{"n":1}', {EVENT_VERSION: "2"})
    await seen.comes_to("termed", 1)
    [dead] = await bus.dead_letters.list()
    assert (dead.reason, dead.deliveries, dead.headers[EVENT_VERSION]) == ("undecodable", 1, "2")
    assert "version 2" in dead.error
    await bus.publish(Thing(n=2))
    await seen.comes_to("acked", 1)
    await watched.until(lambda: seen_by_watch == [2])
    assert [event.n for event in ear.heard] == [2]


@pytest.mark.parametrize("version", ["", "0", "9" * 1000, "één"])
async def test_a_version_that_is_none_is_undecodable(stage: Stage, version: str) -> None:
    seen = Seen()
    bus = await stage.process(Module(name="m", hears=[on(Thing, Ear())]), seen=seen)
    await stage.publish_raw("thing.happened.x", b"{}", {EVENT_VERSION: version})
    await seen.comes_to("termed", 1)
    assert [dead.reason for dead in await bus.dead_letters.list()] == ["undecodable"]


async def put(stage: Stage, subject: bytes, headers: bytes, data: bytes = b"{}") -> None:
    """As somebody would whose client checks nothing."""
    assert isinstance(stage.harness, NatsHarness)
    url = urlparse(stage.harness.account)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    user = f'"user":"{url.username}","pass":"{url.password}"'.encode()
    writer.write(b'CONNECT {"verbose":false,"headers":true,%s}\r\n' % user)
    if headers:
        writer.write(b"HPUB %s %d %d\r\n%s%s\r\n" % (subject, len(headers), len(headers) + len(data), headers, data))
    else:
        writer.write(b"PUB %s %d\r\n%s\r\n" % (subject, len(data), data))
    writer.write(b"PING\r\n")
    await within(reader.readuntil(b"PONG"))
    writer.close()
    await writer.wait_closed()


STRANGE = {
    "a space in a key": (b"thing.happened.x", b"NATS/1.0\r\na b: c\r\n\r\n"),
    "a line feed in a value": (b"thing.happened.x", b"NATS/1.0\r\nX: a\nNats-Msg-Id: b\r\n\r\n"),
    "a line feed in an id": (b"thing.happened.x", b"NATS/1.0\r\nNats-Msg-Id: a\nb\r\n\r\n"),
    "a line feed in a correlation id": (b"thing.happened.x", b"NATS/1.0\r\nCorrelation-Id: a\nOnly-For: b\r\n\r\n"),
    "a carriage return in a trace": (b"thing.happened.x", b"NATS/1.0\r\ntraceparent: 00-" + b"\r" * 52 + b"\r\n\r\n"),
    "a value that is no text": (b"thing.happened.x", b"NATS/1.0\r\nX: \xff\r\n\r\n"),
    "a status that is no text": (b"thing.happened.x", b"NATS/1.0 \xff\xff\xff \xff\r\n\r\n"),
    "a status of the server's": (b"thing.happened.x", b"NATS/1.0 409 Consumer Deleted\r\n\r\n"),
    "no header block": (b"thing.happened.x", b"NATS/1.0"),
    "a line that is no header": (b"thing.happened.x", b"NATS/1.0\r\nno colon\r\n\r\n"),
    "a subject that is not ours": ("thing.happened.é".encode(), b""),
    "a subject that is no text": (b"thing.happened.\xff\xfe", b""),
}


@pytest.mark.real
@pytest.mark.parametrize("name", STRANGE)
async def test_what_no_client_should_send_stops_nobody(nats_stage: Stage, name: str) -> None:
    """It is handled, and what its handler says goes out; it fails, and is a dead letter; the next one comes."""
    stage, seen = nats_stage, Seen()
    subject, headers = STRANGE[name]

    async def handle(event: Thing, context: Context) -> None:
        await bus.publish(Noted(n=event.n))
        if event.n == 0:
            raise Reject("no")

    ear = Ear(handle)
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear, concurrency=1)]), seen=seen)
    await put(stage, subject, headers)
    await seen.comes_to("termed", 1)
    await bus.publish(Thing(n=1))
    await seen.comes_to("acked", 1)
    assert [event.n for event in ear.heard] == [0, 1]
    assert [event.n async for event in bus.replay(Noted)] == [0, 1]
    assert [dead.error for dead in await bus.dead_letters.list()] == ["Reject: no"]
    assert seen.counts["dead not stored, tried again"] == 0
    assert bus.broker.connection().reconnects == 0


async def test_what_we_say_carries_no_header_of_a_message_that_smuggles_one(stage: Stage) -> None:
    """Whoever enters a trace by hand is refused; nothing of it is sent."""
    bus = await stage.process()
    with tracing(Trace("a\r\nOnly-For: b", "00-" + "0" * 52)), pytest.raises(InvalidHeader):
        await bus.request(Length(text=""))


# -- streams that are not as declared


async def test_a_stream_that_somebody_changed_is_as_declared_after_the_next_start(stage: Stage) -> None:
    first = await stage.process()
    await first.publish(Noted(n=1))
    await first.broker.update_stream(
        structs.replace(AUDIT, max_age=60.0, max_msgs=7, duplicate_window=30.0, subjects=("audit.>", "more.>"))
    )
    second = await stage.process()
    info = await second.broker.stream_info("AUDIT")
    assert structs.replace(info.spec, description=AUDIT.description) == AUDIT
    assert info.messages == 1


async def test_a_stream_of_somebody_else_on_our_subjects_stops_the_start(stage: Stage) -> None:
    broker = await stage.harness.make_broker()
    await broker.create_stream(structs.replace(AUDIT, name="THEIRS", subjects=("audit.noted.*",)))
    with pytest.raises(ApiError) as refused:
        await stage.process()
    assert refused.value.code == 10065


async def test_a_start_behind_the_server_says_what_is_refused_until_it_is_mended(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for this start any more: health has to say it, and it goes on by itself."""
    first = await stage.process(specs=(THINGS, DEAD, ADVISORIES))
    await first.broker.create_stream(structs.replace(AUDIT, name="THEIRS", subjects=("audit.noted.*",)))
    await stage.harness.stop()
    ear = Ear()
    bus = stage.new_bus(Module(name="m", hears=[on(Noted, ear)]))
    tries, slept = 0, asyncio.Event()
    sleep = bus.broker.sleep

    async def shorter(seconds: float) -> None:
        nonlocal tries
        tries += seconds == 5.0
        slept.set()
        await sleep(seconds / 20)

    monkeypatch.setattr(bus.broker, "sleep", shorter)
    await within(bus.start())
    await stage.harness.start()
    await stage.harness.back(first.broker, bus.broker)
    await within(slept.wait())
    while tries == 0:
        slept.clear()
        await within(slept.wait())
    health = await bus.health()
    assert (health.status, health.established, health.ready) == (ConnectionStatus.UP, False, False)
    assert "10065" in str(health.problem)
    await first.broker.delete_stream("THEIRS")
    await within(bus.publish(Noted(n=1)))
    await ear.hears(1)
    assert (await bus.health()).problem is None
    assert tries <= 8, "with a pause between two tries"
