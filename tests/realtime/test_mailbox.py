"""One suite over both mailboxes: numbered without gaps, each message once, replayed in order or said to be lost."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from uuid import uuid4

import msgspec
import pytest

from nebengjek.errors import Unavailable
from nebengjek.faststate import connect_redis
from nebengjek.realtime.mailbox import KEEP_FRAMES, KEEP_IDS, KEEP_SECONDS, Forgotten, Mailbox, MemoryMailbox
from nebengjek.realtime.redis_mailbox import COUNT_SECONDS, RedisMailbox
from tests.faststate.backends import Backend, backend
from tests.servers import valkey_server

ANA, BUDI = str(uuid4()), str(uuid4())


@pytest.fixture(scope="module")
def valkey() -> Iterator[str]:
    with valkey_server() as url:
        yield url


@pytest.fixture(params=["memory", pytest.param("valkey", marks=pytest.mark.real)])
def url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "memory" else request.getfixturevalue("valkey")


@asynccontextmanager
async def opened(url: str | None) -> AsyncIterator[tuple[Mailbox, Backend]]:
    async with backend(url) as where:
        yield RedisMailbox(where.client, where.clock) if where.client else MemoryMailbox(where.clock), where


async def fill(box: Mailbox, user_id: str, *numbers: int) -> list[int]:
    return [await box.append(user_id, f"m-{number}", "ride.progress", b'{"n":%d}' % number) for number in numbers]


async def test_frames_are_counted_per_user_and_carry_their_seq(url: str | None) -> None:
    async with opened(url) as (box, _):
        assert await fill(box, ANA, 1, 2, 3) == [1, 2, 3]
        assert await fill(box, BUDI, 1) == [1]
        epoch, last, first = await box.head(ANA)
        assert (last, first) == (3, 1)
        frames = await box.after(ANA, 1, epoch)
        assert [frame.seq for frame in frames] == [2, 3]
        assert msgspec.json.decode(frames[0].data) == {"event": "ride.progress", "data": {"n": 2}, "seq": 2}
        assert await box.after(ANA, 3, epoch) == []


async def test_the_same_message_again_answers_the_seq_it_has(url: str | None) -> None:
    async with opened(url) as (box, _):
        assert await fill(box, ANA, 1, 2, 1, 2, 3) == [1, 2, 1, 2, 3]
        assert (await box.head(ANA)).last_seq == 3


async def test_what_is_in_a_frame_comes_out_as_it_went_in(url: str | None) -> None:
    data = '{"name":"Ayu Ω 5 %d {} \\\\ \\u0000","n":12345678901234567890}'.encode()
    async with opened(url) as (box, _):
        epoch = (await box.head(ANA)).epoch
        await box.append(ANA, "m", "match.found", data)
        assert [frame.data for frame in await box.after(ANA, 0, epoch)] == [
            b'{"event":"match.found","data":%b,"seq":1}' % data
        ]


async def test_an_empty_mailbox_has_an_epoch_that_stays(url: str | None) -> None:
    async with opened(url) as (box, _):
        head = await box.head(ANA)
        assert (head.last_seq, head.first) == (0, 1)
        assert await box.after(ANA, 0, head.epoch) == []
        await fill(box, ANA, 1)
        assert (await box.head(ANA)).epoch == head.epoch
        assert len(await box.after(ANA, 0, head.epoch)) == 1


async def test_many_at_once_are_counted_without_gaps_or_doubles(url: str | None) -> None:
    async with opened(url) as (box, _):
        seqs = await asyncio.gather(*(fill(box, ANA, number % 100) for number in range(200)))
        assert {seq for (seq,) in seqs} == set(range(1, 101))
        head = await box.head(ANA)
        frames = await box.after(ANA, 0, head.epoch)
        assert [frame.seq for frame in frames] == list(range(1, 101))
        assert {msgspec.json.decode(frame.data)["data"]["n"] for frame in frames} == set(range(100))


async def test_trimmed_frames_are_gone_and_do_not_come_again(url: str | None) -> None:
    async with opened(url) as (box, _):
        await fill(box, ANA, 1, 2, 3, 4)
        await box.trim(ANA, 3)
        epoch, last, first = await box.head(ANA)
        assert (last, first) == (4, 4)
        assert [frame.seq for frame in await box.after(ANA, 3, epoch)] == [4]
        assert await fill(box, ANA, 2) == [2]
        await box.trim(ANA, -1)
        await box.trim(ANA, 3)
        assert (await box.head(ANA)).first == 4
        await box.trim(ANA, 4)
        assert await box.head(ANA) == (epoch, 4, 5)
        assert await fill(box, ANA, 5) == [5]
        await box.trim(BUDI, 1)  # who has nothing


async def test_who_asks_for_what_is_gone_is_told(url: str | None) -> None:
    async with opened(url) as (box, _):
        epoch = (await box.head(ANA)).epoch
        await fill(box, ANA, 1, 2, 3)
        await box.trim(ANA, 2)
        with pytest.raises(Forgotten, match="follows 1"):
            await box.after(ANA, 1, epoch)
        with pytest.raises(Forgotten, match="begun anew"):
            await box.after(ANA, 3, str(uuid4()))


async def test_a_thousand_frames_are_kept_and_twice_as_many_ids(url: str | None) -> None:
    async with opened(url) as (box, _):
        for number in range(KEEP_IDS + 1):
            await fill(box, ANA, number)
        epoch, last, first = await box.head(ANA)
        assert (last, first) == (KEEP_IDS + 1, KEEP_IDS + 2 - KEEP_FRAMES)
        frames = await box.after(ANA, first - 1, epoch)
        assert [frame.seq for frame in frames] == list(range(first, last + 1))
        with pytest.raises(Forgotten):
            await box.after(ANA, first - 2, epoch)
        assert await fill(box, ANA, 1) == [2]
        assert await fill(box, ANA, 0) == [last + 1]  # so long ago that it is new


async def test_frames_are_kept_for_a_day(url: str | None) -> None:
    async with opened(url) as (box, where):
        await fill(box, ANA, 1)
        await where.advance(KEEP_SECONDS - 60)
        await fill(box, ANA, 2)
        assert (await box.head(ANA)).first == 1
        await where.advance(120)
        await fill(box, ANA, 3)
        head = await box.head(ANA)
        assert (head.last_seq, head.first) == (3, 2)


@pytest.mark.real
async def test_a_silent_mailbox_keeps_its_count_when_its_frames_are_gone(valkey: str) -> None:
    async with opened(valkey) as (box, where):
        await fill(box, ANA, 1, 2)
        epoch = (await box.head(ANA)).epoch
        await where.advance(KEEP_SECONDS + 1)
        assert await box.head(ANA) == (epoch, 2, 3)
        assert await box.after(ANA, 2, epoch) == []
        with pytest.raises(Forgotten):
            await box.after(ANA, 1, epoch)
        assert await fill(box, ANA, 3) == [3]
        await where.advance(COUNT_SECONDS + 1)
        assert [key async for key in where.client.scan_iter()] == []


@pytest.mark.real
async def test_two_pods_count_as_one(valkey: str) -> None:
    async with opened(valkey) as (box, where):
        client = connect_redis(valkey)
        try:
            other = RedisMailbox(client, where.clock)
            seqs = await asyncio.gather(*(fill((box, other)[n % 2], ANA, n // 2) for n in range(200)))
            assert sorted(seq for (seq,) in seqs) == sorted([*range(1, 101), *range(1, 101)])
            assert await other.head(ANA) == await box.head(ANA)
        finally:
            await client.aclose()


@pytest.mark.real
async def test_an_append_whose_answer_is_lost_has_its_seq_all_the_same(valkey: str) -> None:
    """Nobody but the server knows the count: what follows is not numbered by what was answered last."""
    async with opened(valkey) as (box, where):
        assert await fill(box, ANA, 1) == [1]
        client = connect_redis(valkey)
        try:
            line = await client.connection_pool.get_connection()
            await line.send_command("CLIENT", "REPLY", "OFF")
            line.socket_timeout = 0.2
            await client.connection_pool.release(line)
            with pytest.raises(Unavailable):
                await fill(RedisMailbox(client, where.clock), ANA, 2)
        finally:
            await client.aclose()
        assert await fill(box, ANA, 3, 2, 3) == [3, 2, 3]
        head = await box.head(ANA)
        frames = [msgspec.json.decode(frame.data) for frame in await box.after(ANA, 0, head.epoch)]
        assert [(frame["seq"], frame["data"]["n"]) for frame in frames] == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.real
async def test_a_server_that_lost_its_memory_begins_another_epoch(valkey: str) -> None:
    async with opened(valkey) as (box, where):
        await fill(box, ANA, 1, 2)
        before = await box.head(ANA)
        await where.client.flushdb()
        with pytest.raises(Forgotten):
            await box.after(ANA, 2, before.epoch)
        assert await fill(box, ANA, 2) == [1]
        after = await box.head(ANA)
        assert after.last_seq == 1
        assert after.epoch != before.epoch
        with pytest.raises(Forgotten):
            await box.after(ANA, 2, before.epoch)
