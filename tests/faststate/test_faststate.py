"""One suite over both implementations of the fast state."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from nebengjek.clock import ManualClock
from nebengjek.errors import Unavailable
from nebengjek.faststate import FastState, MemoryFastState, RedisFastState, connect_redis
from tests.faststate.backends import Backend, backend
from tests.servers import valkey_server


@pytest.fixture(scope="module")
def valkey() -> Iterator[str]:
    with valkey_server() as url:
        yield url


@pytest.fixture(params=["memory", pytest.param("valkey", marks=pytest.mark.real)])
def url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "memory" else request.getfixturevalue("valkey")


@asynccontextmanager
async def opened(url: str | None) -> AsyncIterator[tuple[FastState, Backend]]:
    async with backend(url) as where:
        state: FastState = RedisFastState(where.client) if where.client else MemoryFastState(where.clock)
        yield state, where


async def test_a_value_lives_until_its_time_is_over(url: str | None) -> None:
    async with opened(url) as (state, where):
        assert await state.put("otp:1", b"\x00secret", 300)
        await where.advance(299)
        assert await state.get("otp:1") == b"\x00secret"
        await where.advance(2)
        assert await state.get("otp:1") is None


async def test_a_second_put_replaces_value_and_time(url: str | None) -> None:
    async with opened(url) as (state, where):
        await state.put("k", b"one", 10)
        assert await state.put("k", b"two", 100)
        await where.advance(50)
        assert await state.get("k") == b"two"


async def test_put_if_absent_keeps_the_first(url: str | None) -> None:
    async with opened(url) as (state, where):
        assert await state.put("k", b"first", 10, if_absent=True)
        assert not await state.put("k", b"second", 10, if_absent=True)
        assert await state.get("k") == b"first"
        await where.advance(11)
        assert await state.put("k", b"third", 10, if_absent=True)


async def test_of_many_putters_and_takers_one_wins(url: str | None) -> None:
    async with opened(url) as (state, _):
        put = await asyncio.gather(*(state.put("k", b"%d" % n, 10, if_absent=True) for n in range(20)))
        assert put.count(True) == 1
        taken = await asyncio.gather(*(state.take("k") for _ in range(20)))
        assert [value for value in taken if value is not None] == [b"%d" % put.index(True)]
        assert await state.get("k") is None


async def test_an_expired_value_cannot_be_taken(url: str | None) -> None:
    async with opened(url) as (state, where):
        await state.put("k", b"v", 5)
        await where.advance(6)
        assert await state.take("k") is None


async def test_deleting_forgets_values_and_counters_and_nothing_is_fine_too(url: str | None) -> None:
    async with opened(url) as (state, _):
        await state.put("k", b"v", 5)
        await state.hit("hits", 60)
        await state.delete("k")
        await state.delete("hits")
        await state.delete("never")
        assert await state.get("k") is None
        assert (await state.hit("hits", 60))[0] == 1


async def test_the_first_hit_opens_a_window_that_later_hits_do_not_extend(url: str | None) -> None:
    async with opened(url) as (state, where):
        count, left = await state.hit("login", 60)
        assert (count, round(left)) == (1, 60)
        await where.advance(40)
        count, left = await state.hit("login", 60)
        assert count == 2
        assert 19 <= left <= 20
        await where.advance(21)
        count, left = await state.hit("login", 60)
        assert (count, round(left)) == (1, 60)


async def test_hits_at_the_same_instant_are_all_counted(url: str | None) -> None:
    async with opened(url) as (state, _):
        counts = await asyncio.gather(*(state.hit("burst", 60) for _ in range(30)))
        assert sorted(count for count, _ in counts) == list(range(1, 31))


async def test_a_bucket_gives_what_it_holds_and_fills_up_again(url: str | None) -> None:
    async with opened(url) as (state, where):
        assert await state.draw("ana", rate=2, burst=10, wanted=4) == (4, 0)
        assert await state.draw("ana", rate=2, burst=10, wanted=10) == (6, 0)
        none, wait = await state.draw("ana", rate=2, burst=10)
        assert none == 0
        assert 0.3 < wait <= 0.5
        # Another's is another.
        assert await state.draw("budi", rate=2, burst=10) == (1, 0)
        await where.advance(2)
        taken, _ = await state.draw("ana", rate=2, burst=10, wanted=10)
        assert taken >= 4
        await where.advance(60)
        assert await state.draw("ana", rate=2, burst=10, wanted=100) == (10, 0)


async def test_many_who_draw_at_once_get_no_more_than_there_is(url: str | None) -> None:
    async with opened(url) as (state, _):
        drawn = await asyncio.gather(*(state.draw("k", rate=0.01, burst=25, wanted=3) for _ in range(20)))
        assert sum(taken for taken, _ in drawn) == 25
        assert all(wait > 50 for taken, wait in drawn if not taken)


async def test_a_bucket_may_be_filled_faster_than_a_clock_ticks(url: str | None) -> None:
    async with opened(url) as (state, _):
        assert await state.draw("k", rate=100_000, burst=100_000, wanted=25_000) == (25_000, 0)
        assert (await state.draw("k", rate=100_000, burst=100_000, wanted=100_000))[0] >= 75_000


async def test_nothing_can_be_kept_for_no_time(url: str | None) -> None:
    async with opened(url) as (state, _):
        with pytest.raises(ValueError, match="keep nothing"):
            await state.put("k", b"v", 0)
        with pytest.raises(ValueError, match="keep nothing"):
            await state.hit("k", -1)


async def test_ping_passes_and_where_names_no_password(url: str | None) -> None:
    async with opened(url) as (state, _):
        await state.ping()
        assert state.where == "in this process" if url is None else state.where.startswith("redis at 127.0.0.1:")


async def test_the_table_in_this_process_stays_bounded_by_what_lives() -> None:
    clock = ManualClock()
    state = MemoryFastState(clock)
    for number in range(50_000):
        clock.advance(0.1)
        await state.put(f"k{number}", b"v", 10)  # 100 of them live at a time
    assert len(state) <= 1024
    assert await state.get("k49999") == b"v"


async def test_without_a_server_everything_is_unavailable() -> None:
    client = connect_redis("redis://:secret@127.0.0.1:1/3")
    state = RedisFastState(client)
    assert state.where == "redis at 127.0.0.1:1/3"
    for call in (
        state.ping(),
        state.get("k"),
        state.put("k", b"v", 1),
        state.take("k"),
        state.hit("k", 1),
        state.draw("k", rate=1, burst=1),
    ):
        with pytest.raises(Unavailable) as caught:
            await call
        assert caught.value.dependency == "redis"
    await state.close()


@pytest.mark.real
async def test_who_finds_all_connections_in_use_is_told_so(valkey: str) -> None:
    async with opened(valkey) as (state, where):
        pool = where.client.connection_pool
        pool.timeout = 0.05
        taken = [await pool.get_connection() for _ in range(pool.max_connections)]
        with pytest.raises(Unavailable, match="all connections to redis are in use"):
            await state.ping()
        for connection in taken:
            await pool.release(connection)
        await state.ping()


@pytest.mark.real
async def test_connections_that_the_server_has_closed_fail_nobody(valkey: str) -> None:
    async with opened(valkey) as (state, where), backend(valkey) as other:
        await asyncio.gather(*(state.get(str(number)) for number in range(5)))
        held = list(where.client.connection_pool._available_connections)
        assert len(held) > 1
        await other.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        async with asyncio.timeout(10.0):
            # The client has no event for it.
            while not all([await connection.can_read() for connection in held]):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        for _ in held:
            assert await asyncio.gather(*(state.get(str(number)) for number in range(5))) == [None] * 5


def test_the_embedded_default_imports_no_redis() -> None:
    code = "import sys, nebengjek.faststate; sys.exit('redis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
