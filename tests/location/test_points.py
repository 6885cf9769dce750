"""One suite over both fast stores of location."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from msgspec import structs

from nebengjek.contracts.geo import Point
from nebengjek.errors import Unavailable
from nebengjek.faststate import connect_redis
from nebengjek.location.judge import UserState
from nebengjek.location.odometer import Fold, begin
from nebengjek.location.redis_store import RedisPoints
from nebengjek.location.store import MemoryPoints, Points, Track
from tests.faststate.backends import Backend, backend
from tests.location.stage import HOME, TARGET, at
from tests.servers import valkey_server

RIDE = Track(ride_id="r", driver_id="d", passenger_id="p", pickup=HOME, target=TARGET)
STARTED = structs.replace(RIDE, start=at(5, 3))


@pytest.fixture(scope="module")
def valkey() -> Iterator[str]:
    with valkey_server() as url:
        yield url


@pytest.fixture(params=["memory", pytest.param("valkey", marks=pytest.mark.real)])
def url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "memory" else request.getfixturevalue("valkey")


@asynccontextmanager
async def opened(url: str | None) -> AsyncIterator[tuple[Points, Backend]]:
    async with backend(url) as where:
        yield RedisPoints(where.client) if where.client else MemoryPoints(where.clock), where


def precise(seconds: float) -> Point:
    return structs.replace(at(seconds, 12.345), accuracy=4.25, speed=31.5, heading=359.0)


async def test_a_state_comes_back_as_it_was(url: str | None) -> None:
    async with opened(url) as (points, _):
        state = UserState(point=precise(1.000001), before=at(0), refused=[at(1, 9), at(2, 8)], run=2, teleports=7)
        await points.save({"u": state, "v": UserState(point=at(3))}, 60)
        assert await points.load(["u", "v", "w"]) == {"u": state, "v": UserState(point=at(3))}
        assert await points.load([]) == {}
        await points.save({}, 60)


async def test_each_state_lives_its_own_time_and_renews_it(url: str | None) -> None:
    async with opened(url) as (points, where):
        await points.save({"a": UserState(point=at(0)), "b": UserState(point=at(0))}, 100)
        await where.advance(60)
        await points.save({"b": UserState(point=at(60))}, 100)
        await where.advance(60)
        assert set(await points.load(["a", "b"])) == {"b"}


async def test_an_older_state_does_not_replace_a_newer_one(url: str | None) -> None:
    async with opened(url) as (points, _):
        await points.save({"u": UserState(point=at(10))}, 100)
        await points.save({"u": UserState(point=at(5), teleports=3)}, 100)
        assert (await points.load(["u"]))["u"] == UserState(point=at(10))
        await points.save({"u": UserState(point=at(10), teleports=1)}, 100)
        assert (await points.load(["u"]))["u"].teleports == 1


async def test_both_parties_are_on_the_ride_until_it_ends(url: str | None) -> None:
    async with opened(url) as (points, _):
        assert await points.tracks(["d", "p"]) == {}
        assert await points.track(RIDE, 100)
        assert await points.tracks(["d", "p", "x"]) == {"d": RIDE, "p": RIDE}
        assert RIDE.other("d") == "p"
        assert await points.track(STARTED, 100)
        assert await points.tracks(["p"]) == {"p": STARTED}
        await points.untrack("r", ("d", "p"), 100)
        assert await points.tracks(["d", "p"]) == {}


async def test_a_ride_without_its_start_does_not_replace_one_with_it(url: str | None) -> None:
    async with opened(url) as (points, _):
        await points.track(STARTED, 100)
        assert await points.track(RIDE, 100)
        assert await points.tracks(["d"]) == {"d": STARTED}


async def test_an_ended_ride_cannot_be_followed_again_for_a_while(url: str | None) -> None:
    async with opened(url) as (points, where):
        await points.untrack("r", ("d", "p"), 100)
        assert not await points.track(RIDE, 100)
        assert not await points.track(STARTED, 100)
        assert await points.tracks(["d", "p"]) == {}
        await where.advance(101)
        assert await points.track(RIDE, 100)


async def test_the_end_of_a_ride_leaves_the_next_one_of_the_same_people(url: str | None) -> None:
    async with opened(url) as (points, _):
        after = structs.replace(RIDE, ride_id="next")
        await points.track(RIDE, 100)
        await points.track(after, 100)
        await points.untrack("r", ("d", "p"), 100)
        assert await points.tracks(["d", "p"]) == {"d": after, "p": after}


async def test_a_path_is_a_set_in_the_order_of_time(url: str | None) -> None:
    async with opened(url) as (points, _):
        await points.track(RIDE, 100)
        await points.append({("r", "d"): [precise(30), at(10), at(20)], ("r", "p"): [at(15)]}, 100)
        await points.append({("r", "d"): [at(20), at(25), precise(30)]}, 100)
        assert await points.path("r", "d") == [at(10), at(20), at(25), precise(30)]
        assert await points.path("r", "p") == [at(15)]
        assert await points.path("other", "d") == []
        await points.append({}, 100)


async def test_the_path_and_the_progress_go_with_the_ride(url: str | None) -> None:
    async with opened(url) as (points, _):
        await points.track(STARTED, 100)
        await points.append({("r", "d"): [at(10)]}, 100)
        await points.set_progress({"r": begin(at(5))}, 100)
        await points.untrack("r", ("d", "p"), 100)
        assert await points.path("r", "d") == []
        assert await points.progress(["r"]) == {}
        # Somebody who was still counting comes too late.
        await points.set_progress({"r": begin(at(5))}, 100)
        assert await points.progress(["r"]) == {}


async def test_progress_comes_back_as_it_was(url: str | None) -> None:
    async with opened(url) as (points, _):
        fold = Fold(
            anchor=precise(5),
            latest=at(9),
            heard=at(8).timestamp,
            waiting=[at(8.5)],
            total_km=1.0 / 3,
            told_km=0.1,
            sequence=4,
        )
        await points.track(STARTED, 100)
        await points.set_progress({"r": fold}, 100)
        assert await points.progress(["r", "other"]) == {"r": fold}
        assert await points.progress([]) == {}
        await points.set_progress({}, 100)


async def test_a_store_is_blank_until_it_is_marked(url: str | None) -> None:
    async with opened(url) as (points, where):
        assert await points.is_blank()
        await points.mark()
        await where.advance(10 * 86400)
        assert not await points.is_blank()


async def test_a_store_of_ten_thousand_phones_keeps_only_those_that_live() -> None:
    async with opened(None) as (points, where):
        assert isinstance(points, MemoryPoints)
        for number in range(10_000):
            await where.advance(1)
            await points.save({f"u{number}": UserState(point=at(number))}, 60)
        assert len(points) <= 61


async def test_without_its_server_the_store_is_unavailable() -> None:
    client = connect_redis("redis://127.0.0.1:1/0")
    points = RedisPoints(client)
    calls = [points.load(["u"]), points.path("r", "d"), points.track(RIDE, 1), points.mark()]
    for result in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(result, Unavailable)
    await client.aclose()
