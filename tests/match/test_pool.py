"""One suite over both pools; and what the grid promises: as right as looking at everybody, without doing so."""

import math
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nebengjek.contracts.geo import Location, distance_km
from nebengjek.contracts.users import VehicleType
from nebengjek.errors import Unavailable
from nebengjek.faststate import connect_redis
from nebengjek.match.grid import Grid
from nebengjek.match.pool import MemoryPool, Pool
from nebengjek.match.redis_pool import RedisPool
from tests.faststate.backends import backend
from tests.servers import valkey_server

NOW = datetime(2025, 3, 4, 5, 0, tzinfo=UTC)
MONAS = Location(latitude=-6.1754, longitude=106.8272)


@pytest.fixture(scope="module")
def valkey() -> Iterator[str]:
    with valkey_server() as url:
        yield url


@pytest.fixture(params=["memory", pytest.param("valkey", marks=pytest.mark.real)])
def url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "memory" else request.getfixturevalue("valkey")


@asynccontextmanager
async def opened(url: str | None) -> AsyncIterator[Pool]:
    async with backend(url) as where:
        yield RedisPool(where.client) if where.client else MemoryPool()


def east(km: float, of: Location = MONAS) -> Location:
    """So many kilometres east of a place."""
    degrees = math.degrees(km / 6371.0088 / math.cos(math.radians(of.latitude)))
    return Location(latitude=of.latitude, longitude=of.longitude + degrees)


async def names(pool: Pool, radius_km: float = 5.0, limit: int = 10, **filters: object) -> list[str]:
    return [one.driver_id for one in await pool.nearest(MONAS, radius_km, limit, **filters)]  # type: ignore[arg-type]


async def test_a_pool_is_blank_until_it_is_marked(url: str | None) -> None:
    async with opened(url) as pool:
        assert await pool.is_blank()
        await pool.mark()
        await pool.join("near", east(0.3), "motorcycle", NOW)
        await pool.leave("near")
        assert not await pool.is_blank()


async def test_the_nearest_come_first_with_their_distance_and_vehicle(url: str | None) -> None:
    async with opened(url) as pool:
        await pool.join("far", east(4.9), "car", NOW)
        await pool.join("near", east(0.3), "motorcycle", NOW)
        await pool.join("outside", east(5.1), "car", NOW)
        found = await pool.nearest(MONAS, 5.0, 10)
        assert [(one.driver_id, one.vehicle_type) for one in found] == [("near", "motorcycle"), ("far", "car")]
        assert found[0].location == east(0.3)
        assert found[0].distance_km == pytest.approx(distance_km(MONAS, east(0.3)), rel=1e-9)
        assert await names(pool, limit=1) == ["near"]


async def test_a_place_a_metre_inside_is_found_and_one_a_metre_outside_is_not(url: str | None) -> None:
    async with opened(url) as pool:
        await pool.join("inside", east(4.999), "car", NOW)
        await pool.join("outside", east(5.001), "car", NOW)
        assert await names(pool) == ["inside"]


async def test_filters_leave_the_limit_to_those_who_pass_them(url: str | None) -> None:
    async with opened(url) as pool:
        for number in range(40):
            await pool.join(f"car{number:02}", east(0.01 * (number + 1)), "car", NOW)
        await pool.join("moto", east(2.0), "motorcycle", NOW)
        await pool.join("stale", east(0.001), "motorcycle", NOW - timedelta(minutes=31))
        assert await names(pool, limit=2, vehicle_type="motorcycle", seen_after=NOW - timedelta(minutes=30)) == ["moto"]
        everybody_near = [f"car{number:02}" for number in range(38)]
        assert await names(pool, limit=2, vehicle_type="car", exclude=everybody_near) == ["car38", "car39"]


async def test_who_left_is_not_found_and_leaving_twice_is_harmless(url: str | None) -> None:
    async with opened(url) as pool:
        await pool.join("a", MONAS, "car", NOW)
        await pool.leave("a")
        await pool.leave("a")
        assert await names(pool) == []
        assert await pool.size() == 0


async def test_joining_again_replaces_place_vehicle_and_sign_of_life(url: str | None) -> None:
    async with opened(url) as pool:
        await pool.join("a", east(100), "car", NOW)
        await pool.join("a", east(1), "van", NOW + timedelta(seconds=1))
        (found,) = await pool.nearest(MONAS, 5.0, 10, seen_after=NOW)
        assert (found.vehicle_type, found.location) == ("van", east(1))
        assert await pool.drivers() == ["a"]


async def test_only_members_move_and_only_forward_in_time(url: str | None) -> None:
    later = NOW + timedelta(seconds=5)
    async with opened(url) as pool:
        await pool.join("a", east(1), "car", NOW)
        await pool.join("b", east(2), "car", later)
        moved = await pool.move(
            [
                ("a", east(3), later),
                ("stranger", MONAS, later),
                ("b", MONAS, NOW),
                ("b", MONAS, later),
                ("a", east(4), later + timedelta(seconds=1)),
            ]
        )
        assert moved == ["a"]
        assert [(one.driver_id, one.location) for one in await pool.nearest(MONAS, 5.0, 10)] == [
            ("b", east(2)),
            ("a", east(4)),
        ]
        assert await pool.size() == 2
        assert await pool.move([]) == []


async def test_a_move_keeps_the_vehicle_and_renews_the_sign_of_life(url: str | None) -> None:
    async with opened(url) as pool:
        await pool.join("a", east(1), "motorcycle", NOW)
        await pool.move([("a", east(30), NOW + timedelta(minutes=20))])
        assert await pool.forget(NOW + timedelta(minutes=10)) == []
        (found,) = await pool.nearest(east(30), 1.0, 5, seen_after=NOW + timedelta(minutes=10))
        assert found.vehicle_type == "motorcycle"


async def test_each_driver_is_forgotten_by_his_own_last_sign_of_life(url: str | None) -> None:
    async with opened(url) as pool:
        await pool.join("old", MONAS, "car", NOW - timedelta(minutes=40))
        await pool.join("edge", MONAS, "car", NOW - timedelta(minutes=30))
        await pool.join("new", MONAS, "car", NOW)
        assert await pool.forget(NOW - timedelta(minutes=30)) == ["old"]
        assert sorted(await names(pool)) == ["edge", "new"]
        assert sorted(await pool.drivers()) == ["edge", "new"]


async def test_searches_are_found_from_around_moved_and_closed(url: str | None) -> None:
    async with opened(url) as pool:
        assert await pool.searches_near(MONAS, 5.0) == []
        await pool.open_search("s1", east(3))
        await pool.open_search("s2", east(1))
        await pool.open_search("s3", east(6))
        assert await pool.searches_near(MONAS, 5.0) == ["s2", "s1"]
        await pool.open_search("s2", east(20))
        await pool.close_search("s1")
        await pool.close_search("never")
        assert await pool.searches_near(MONAS, 50.0) == ["s3", "s2"]
        assert await names(pool) == []


async def test_the_antimeridian_is_no_border(url: str | None) -> None:
    west, eastern = Location(latitude=-17.0, longitude=179.995), Location(latitude=-17.0, longitude=-179.995)
    async with opened(url) as pool:
        await pool.join("fiji", eastern, "car", NOW)
        assert [one.driver_id for one in await pool.nearest(west, 2.0, 5)] == ["fiji"]


async def test_what_the_pool_finds_is_what_measuring_everybody_finds(url: str | None) -> None:
    random_ = random.Random(7)
    drivers = {
        f"d{number}": Location(latitude=random_.uniform(-6.4, -6.0), longitude=random_.uniform(106.6, 107.0))
        for number in range(300)
    }
    async with opened(url) as pool:
        for driver_id, place in drivers.items():
            await pool.join(driver_id, place, "car", NOW)
        for _ in range(20):
            here = Location(latitude=random_.uniform(-6.4, -6.0), longitude=random_.uniform(106.6, 107.0))
            expected = sorted((distance_km(here, place), driver_id) for driver_id, place in drivers.items())[:7]
            found = await pool.nearest(here, 50.0, 7)
            assert [one.driver_id for one in found] == [driver_id for _, driver_id in expected]


async def test_a_pool_without_its_server_is_unavailable() -> None:
    client = connect_redis("redis://127.0.0.1:1/0")
    with pytest.raises(Unavailable):
        await RedisPool(client).nearest(MONAS, 5.0, 5)
    await client.aclose()


# -- the grid

places = st.one_of(
    st.tuples(st.floats(-90, 90), st.floats(-180, 180)),
    st.tuples(st.floats(-6.3, -6.1), st.floats(106.7, 106.9)),
    st.tuples(st.floats(89.98, 90), st.floats(-180, 180)),
    st.tuples(st.floats(-90, -89.98), st.floats(-180, 180)),
    st.tuples(st.floats(-1, 1), st.sampled_from([-180.0, 180.0, 179.999, -179.999])),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(places, min_size=1, max_size=40),
    places,
    st.floats(0.01, 20_100),
    st.integers(1, 10),
    st.lists(st.tuples(st.integers(0, 39), places), max_size=10),
)
def test_the_grid_finds_what_brute_force_finds_anywhere_on_earth(
    put: list[tuple[float, float]],
    here: tuple[float, float],
    radius_km: float,
    limit: int,
    moves: list[tuple[int, tuple[float, float]]],
) -> None:
    grid: Grid[None] = Grid()
    where = dict(enumerate(put))
    for number, place in where.items():
        grid.put(f"{number:02}", *place, None)
    for number, place in moves:
        if number in where:
            where[number] = place
            grid.move(grid.entries[f"{number:02}"], *place)
    centre = Location(latitude=here[0], longitude=here[1])
    everybody = sorted(
        (distance_km(centre, Location(latitude=latitude, longitude=longitude)), f"{number:02}")
        for number, (latitude, longitude) in where.items()
    )
    expected = [km for km, _ in everybody if km <= radius_km][:limit]
    found = grid.nearest(*here, radius_km, limit, lambda _: True)
    # By distance: places nanometres apart may change places by a rounding.
    assert [km for km, _ in found] == pytest.approx(expected, rel=1e-6, abs=1e-6)


async def test_the_nearest_of_20000_drivers_are_found_without_looking_at_them_all() -> None:
    random_ = random.Random(1)
    pool = MemoryPool()
    vehicles: list[VehicleType] = ["motorcycle", "car", "van"]
    drivers = {}
    for number in range(20_000):
        place = Location(latitude=random_.uniform(-6.4, -6.0), longitude=random_.uniform(106.65, 107.0))
        drivers[f"d{number}"] = place
        await pool.join(f"d{number}", place, vehicles[number % 3], NOW)
    most = 0
    for _ in range(50):
        here = Location(latitude=random_.uniform(-6.4, -6.0), longitude=random_.uniform(106.65, 107.0))
        before = pool.grid.examined
        found = await pool.nearest(here, 5.0, 20)
        most = max(most, pool.grid.examined - before)
        nearest = sorted((distance_km(here, place), driver_id) for driver_id, place in drivers.items())[:20]
        assert [one.driver_id for one in found] == [driver_id for _, driver_id in nearest]
    assert most < 400  # 2 % of them


async def test_a_search_where_nobody_is_visits_few_cells() -> None:
    pool = MemoryPool()
    for number in range(100):
        await pool.join(f"d{number}", east(500 + number), "car", NOW)
    assert await names(pool, radius_km=50.0) == []
    assert pool.grid.examined == 0
    assert pool.grid.cells_visited < 500
