"""One suite over both presences, and what only several pods can show."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from nebengjek.faststate import PREFIX
from nebengjek.realtime.presence import MemoryPresence, Presence
from nebengjek.realtime.redis_presence import AT_ONCE, LEASE_SECONDS, RedisPresence
from tests.faststate.backends import Backend, backend
from tests.servers import mortal_valkey_server, valkey_server

GRACE = 30.0


@pytest.fixture(scope="module")
def valkey() -> Iterator[str]:
    with valkey_server() as url:
        yield url


@pytest.fixture(params=["memory", pytest.param("valkey", marks=pytest.mark.real)])
def url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "memory" else request.getfixturevalue("valkey")


def redis_pod(where: Backend, pod_id: str) -> RedisPresence:
    return RedisPresence(where.client, where.clock, pod_id=pod_id)


@asynccontextmanager
async def opened(url: str | None) -> AsyncIterator[tuple[Presence, Backend]]:
    async with backend(url) as where:
        presence: Presence = redis_pod(where, "one") if where.client else MemoryPresence(where.clock)
        await presence.beat()
        yield presence, where


async def pass_time(where: Backend, seconds: float, *living: Presence) -> None:
    """Time passes, and the living say each two seconds that they are there."""
    while seconds > 0:
        await where.advance(min(2.0, seconds))
        seconds -= 2.0
        for pod in living:
            await pod.beat()


async def test_who_is_connected_is_seen(url: str | None) -> None:
    async with opened(url) as (presence, _):
        await presence.attach("ana", "c1")
        await presence.attach("budi", "c2")
        assert await presence.connected(["ana", "budi", "cici"]) == {"ana", "budi"}
        await presence.detach("ana", "c1")
        assert await presence.connected(["ana", "budi"]) == {"budi"}
        assert await presence.connected([]) == set()
        assert await presence.elsewhere(["ana", "budi"]) == {}


async def test_a_socket_that_ends_removes_only_itself(url: str | None) -> None:
    async with opened(url) as (presence, where):
        await presence.attach("ana", "old")
        await presence.attach("ana", "new")
        await presence.detach("ana", "old")
        await presence.detach("ana", "old")
        assert await presence.connected(["ana"]) == {"ana"}
        await pass_time(where, GRACE + 1, presence)
        assert await presence.lapsed(GRACE) == []


async def test_who_is_gone_for_the_grace_is_told_once(url: str | None) -> None:
    async with opened(url) as (presence, where):
        await presence.attach("ana", "c1")
        await presence.attach("budi", "c2")
        await presence.detach("ana", "c1")
        await pass_time(where, 10, presence)
        await presence.detach("budi", "c2")
        await pass_time(where, GRACE - 11, presence)
        assert await presence.lapsed(GRACE) == []
        await pass_time(where, 2, presence)
        assert await presence.lapsed(GRACE) == ["ana"]
        assert await presence.lapsed(GRACE) == []
        await pass_time(where, 10, presence)
        assert await presence.lapsed(GRACE) == ["budi"]


async def test_who_comes_back_in_time_was_never_gone(url: str | None) -> None:
    async with opened(url) as (presence, where):
        await presence.attach("ana", "c1")
        await presence.detach("ana", "c1")
        await pass_time(where, GRACE - 1, presence)
        await presence.attach("ana", "c2")
        await pass_time(where, 5, presence)
        assert await presence.lapsed(GRACE) == []
        await presence.detach("ana", "c2")
        await pass_time(where, GRACE - 1, presence)
        assert await presence.lapsed(GRACE) == []
        await pass_time(where, 2, presence)
        assert await presence.lapsed(GRACE) == ["ana"]


@pytest.mark.real
async def test_pods_see_each_others_phones(valkey: str) -> None:
    async with opened(valkey) as (one, where):
        two = redis_pod(where, "two")
        await two.beat()
        await one.attach("ana", "c1")
        await two.attach("ana", "c2")
        await two.attach("budi", "c3")
        assert await one.elsewhere(["ana", "budi", "cici"]) == {"ana": {"two"}, "budi": {"two"}}
        assert await two.elsewhere(["ana", "budi"]) == {"ana": {"one"}}
        # The phone hops: its old socket ends after the new one began.
        await one.detach("ana", "c1")
        assert await one.connected(["ana"]) == await two.connected(["ana"]) == {"ana"}
        assert await two.elsewhere(["ana"]) == {}
        await pass_time(where, GRACE + 1, one, two)
        assert await one.lapsed(GRACE) == []


@pytest.mark.real
async def test_a_pod_that_dies_without_a_word_is_forgotten_within_ten_seconds(valkey: str) -> None:
    async with opened(valkey) as (one, where):
        two = redis_pod(where, "two")
        await two.beat()
        phones = {f"u{number}" for number in range(AT_ONCE + 20)}
        for user_id in sorted(phones):
            await two.attach(user_id, f"c-{user_id}")
        await one.attach("u1", "here")
        assert len(await one.elsewhere(phones)) == len(phones)
        await pass_time(where, 10, one)
        assert await one.elsewhere(phones) == {}
        assert await one.connected(phones) == {"u1"}
        await pass_time(where, GRACE + 1, one)
        assert set(await one.lapsed(GRACE)) == phones - {"u1"}
        left = {key async for key in where.client.scan_iter(f"{PREFIX}presence*")}
        assert len(left) == 4  # of the living: user, pod, lease, pods


@pytest.mark.real
async def test_who_asks_while_others_ask_is_asked_for_together_with_them(valkey: str) -> None:
    async with opened(valkey) as (one, where):
        two = redis_pod(where, "two")
        await two.beat()
        users = [f"u{number}" for number in range(300)]
        for user_id in users[::2]:
            await two.attach(user_id, f"c-{user_id}")
        await where.client.config_resetstat()
        found = await asyncio.gather(*(one.elsewhere([user_id]) for user_id in users))
        assert found == [{user_id: {"two"}} if user_id in users[::2] else {} for user_id in users]
        stats = await where.client.info("commandstats")
        assert sum(stats[name]["calls"] for name in stats if name.startswith("cmdstat_eval")) <= 2
        # Who comes later learns what is so then; one who gives up does not end the look of the others.
        await two.detach("u0", "c-u0")
        impatient, patient = (asyncio.create_task(one.elsewhere([user_id])) for user_id in ("u0", "u2"))
        await asyncio.sleep(0)
        impatient.cancel()
        assert await patient == {"u2": {"two"}}
        assert await one.elsewhere(["u0"]) == {}


@pytest.mark.real
async def test_a_pod_that_starts_again_under_its_id_does_not_inherit(valkey: str) -> None:
    async with opened(valkey) as (one, where):
        before = redis_pod(where, "two")
        await before.beat()
        await before.attach("ana", "c1")
        after = redis_pod(where, "two")
        await after.beat()
        await pass_time(where, LEASE_SECONDS + 1, one, after)
        assert await one.connected(["ana"]) == set()
        await pass_time(where, GRACE + 1, one, after)
        assert [*await one.lapsed(GRACE), *await after.lapsed(GRACE)] == ["ana"]


@pytest.mark.real
async def test_a_pod_that_was_held_up_says_all_again(valkey: str) -> None:
    async with opened(valkey) as (one, where):
        two = redis_pod(where, "two")
        await two.beat()
        await two.attach("ana", "c1")
        await pass_time(where, 12, one)
        assert await one.connected(["ana"]) == set()
        await two.beat()
        assert await one.elsewhere(["ana"]) == {"ana": {"two"}}
        await pass_time(where, GRACE + 1, one, two)
        assert await one.lapsed(GRACE) == []


@pytest.mark.real
async def test_of_many_pods_that_ask_one_is_told(valkey: str) -> None:
    async with opened(valkey) as (one, where):
        others = [redis_pod(where, f"p{number}") for number in range(4)]
        for number in range(50):
            await one.attach(f"u{number}", f"c{number}")
            await one.detach(f"u{number}", f"c{number}")
        await pass_time(where, GRACE + 1, one)
        told = await asyncio.gather(*(pod.lapsed(GRACE) for pod in [one, *others]))
        assert sorted(user for users in told for user in users) == sorted(f"u{number}" for number in range(50))


@pytest.mark.real
async def test_a_server_that_lost_its_memory_is_told_again() -> None:
    with mortal_valkey_server() as server:
        async with opened(server.url) as (one, where):
            two = redis_pod(where, "two")
            await two.beat()
            await one.attach("ana", "c1")
            await one.attach("budi", "c2")
            await one.attach("cici", "c3")
            await one.detach("cici", "c3")
            await asyncio.to_thread(server.stop)
            await one.detach("budi", "c2")
            await one.attach("dedi", "c4")
            await one.beat()
            await asyncio.to_thread(server.start)
            for pod in (two, one):
                await pod.beat()
            assert await two.connected(["ana", "budi", "cici", "dedi"]) == {"ana", "dedi"}
            await pass_time(where, GRACE + 1, one, two)
            assert set(await two.lapsed(GRACE)) == {"budi", "cici"}


@pytest.mark.real
async def test_what_ended_while_the_server_was_away_is_told_when_it_is_back(
    valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(valkey) as (one, where):
        two = redis_pod(where, "two")
        await two.beat()
        await one.attach("ana", "c1")
        await one.attach("ana", "c2")
        with monkeypatch.context() as away:
            away.setattr(where.client.connection_pool, "get_connection", _nobody)
            await one.detach("ana", "c1")
            await one.detach("ana", "c2")
            await one.beat()
        assert await two.connected(["ana"]) == {"ana"}
        await one.beat()
        assert await two.connected(["ana"]) == set()
        await pass_time(where, GRACE + 1, one, two)
        assert await two.lapsed(GRACE) == ["ana"]


async def _nobody(*_: object, **__: object) -> None:
    raise OSError("nobody is there")
