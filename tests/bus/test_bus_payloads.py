"""Bodies that are compressed or sealed on their way, and many small things said as one event."""

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebengjek.bus.messages import StoredMessage
from nebengjek.bus.payloads import MAX_INFLATED, Payloads, Unreadable
from nebengjek.contracts.message import Event
from nebengjek.errors import Misconfigured
from nebengjek.module import Module, on
from tests.bus.stage import News, Noted, Seen, Stage, within

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


class Person(Event, frozen=True, kw_only=True, tag="audit.person"):
    """On the stream that keeps everything."""

    thing_id: str = "p"
    name: str = ""
    key: ClassVar[str] = "thing_id"
    number: ClassVar[str | None] = None
    sensitive: ClassVar[bool] = True


class Chunks(Event, frozen=True, kw_only=True, tag="audit.chunks"):
    thing_id: str = "c"
    chunks: list[int]
    key: ClassVar[str] = "thing_id"
    number: ClassVar[str | None] = None


async def kept(stage: Stage, seq: int = 1) -> StoredMessage:
    return await (await stage.harness.make_broker()).get_message("AUDIT", seq)


async def test_a_sensitive_event_is_sealed_on_its_way_and_read_by_who_has_the_key(stage: Stage) -> None:
    names: list[str] = []
    news = News()

    async def hear(event: Person) -> None:
        names.append(event.name)
        news.tell()

    module = Module(name="m", hears=[on(Person, hear)])
    said = await stage.process(module, running=False, payloads=Payloads(keys=[KEY]))
    await said.publish(Person(name="Siti Rahayu"))
    message = await kept(stage)
    assert message.headers["Content-Encoding"] == "aes-gcm"
    assert b"Siti" not in message.data
    # A new key came first meanwhile; the old one still opens.
    await stage.process(module, payloads=Payloads(keys=[OTHER, KEY]))
    await news.until(lambda: names == ["Siti Rahayu"])
    assert [event.name async for event in said.replay(Person)] == ["Siti Rahayu"]


async def test_without_the_key_it_is_a_dead_letter_which_a_replay_heals(stage: Stage) -> None:
    names: list[str] = []
    seen = Seen()

    async def hear(event: Person) -> None:
        names.append(event.name)

    module = Module(name="m", hears=[on(Person, hear)])
    said = await stage.process(module, running=False, payloads=Payloads(keys=[KEY]))
    await said.publish(Person(name="Budi"))
    blind = await stage.process(module, seen=seen)
    await seen.comes_to("termed", 1)
    (letter,) = await blind.dead_letters.list()
    assert letter.reason == "undecodable"
    assert "key" in letter.error
    await stage.end(blind)
    again = Seen()
    await stage.process(module, seen=again, payloads=Payloads(keys=[KEY]))
    await said.dead_letters.replay(letter.seq)
    await again.comes_to("acked", 1)
    assert names == ["Budi"]


async def test_what_is_in_the_outbox_is_sealed_too(stage: Stage) -> None:
    seen = Seen()
    bus = await stage.process(seen=seen, payloads=Payloads(keys=[KEY]))
    async with stage.database.begin() as tx:
        await bus.outbox.add(tx, Person(name="Wayan"))
    await seen.comes_to("published AUDIT", 1)
    assert (await kept(stage)).headers["Content-Encoding"] == "aes-gcm"


async def test_long_bodies_are_compressed_when_that_is_wanted(stage: Stage) -> None:
    bus = await stage.process(payloads=Payloads(compress_above=200, keys=[KEY]))
    await bus.publish(Person(name="x" * 1000))
    await bus.publish(Noted())
    message, short = await kept(stage), await kept(stage, 2)
    assert message.headers["Content-Encoding"] == "zlib, aes-gcm"
    assert len(message.data) < 200
    assert "Content-Encoding" not in short.headers
    assert [len(event.name) async for event in bus.replay(Person)] == [1000]


@given(st.binary(max_size=2000), st.booleans(), st.integers(0, 1000))
def test_what_was_wrapped_is_unwrapped(data: bytes, seal: bool, above: int) -> None:
    payloads = Payloads(compress_above=above, keys=[KEY])
    wrapped, encoding = payloads.wrap(data, "a.b", seal=seal)
    assert (payloads.unwrap(wrapped, "a.b", encoding) if encoding else wrapped) == data


@pytest.mark.parametrize(
    ("data", "encoding", "why"),
    [
        (b"{}", "gzip", "not known"),
        (b"not compressed", "zlib", "not compressed"),
        (b"", "aes-gcm", "does not have"),
        (Payloads(keys=[OTHER]).wrap(b"{}", "a.b", seal=True)[0], "aes-gcm", "does not have"),
        (Payloads(keys=[KEY]).wrap(b"{}", "a.c", seal=True)[0], "aes-gcm", "another subject"),
        (Payloads(keys=[KEY]).wrap(b"{}", "a.b", seal=True)[0][:-1], "aes-gcm", "changed"),
        (Payloads(compress_above=1).wrap(bytes(MAX_INFLATED + 1), "a.b", seal=False)[0], "zlib", "longer"),
    ],
    ids=["unknown", "not zlib", "empty", "another key", "another subject", "cut", "a bomb"],
)
def test_what_cannot_be_read_says_why(data: bytes, encoding: str, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        Payloads(keys=[KEY]).unwrap(data, "a.b", encoding)


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(Misconfigured, match="16 bytes, expected 32"):
        Payloads(keys=[bytes(16)])


def made(chunks: list[int]) -> Chunks:
    return Chunks(chunks=chunks)


async def chunks_of(bus: Any) -> list[Sequence[int]]:
    return [event.chunks async for event in bus.replay(Chunks)]


async def test_small_things_are_gathered_by_number(stage: Stage) -> None:
    bus = await stage.process()
    gatherer = bus.gather(made, size=3, seconds=60.0)
    for n in range(7):
        await gatherer.add(n)
    await bus.flush()
    assert await chunks_of(bus) == [[0, 1, 2], [3, 4, 5]]
    await gatherer.flush()
    await bus.flush()
    assert await chunks_of(bus) == [[0, 1, 2], [3, 4, 5], [6]]


async def test_small_things_are_gathered_by_time(stage: Stage) -> None:
    seen = Seen()
    bus = await stage.process(seen=seen)
    gatherer = bus.gather(made, seconds=0.02)
    await gatherer.add(1)
    await gatherer.add(2)
    await seen.comes_to("published AUDIT", 1)
    await gatherer.add(3)
    await seen.comes_to("published AUDIT", 2)
    assert await chunks_of(bus) == [[1, 2], [3]]


async def test_what_is_gathered_is_published_by_the_drain(stage: Stage) -> None:
    bus = await stage.process()
    gatherer = bus.gather(made, seconds=60.0)
    await gatherer.add(1)
    await within(asyncio.sleep(0))
    await stage.end(bus)
    assert await chunks_of(await stage.process()) == [[1]]
