"""Pods that run only some modules, and what goes on although the pod that began it is gone."""

import asyncio
from pathlib import Path

import pytest

from nebengjek.match.pool import RedisPool
from tests.flows.conftest import Real
from tests.flows.fleet import fleet
from tests.flows.truth import check_books, check_locks

pytestmark = pytest.mark.real

SHORT = {"NEBENGJEK__MATCH__OFFER_TTL": "6", "NEBENGJEK__LOCATION__OFFLINE_GRACE": "3"}


async def test_rides_over_pods_that_run_only_some_modules(
    runner: asyncio.Runner, real_servers: Real, tmp_path: Path
) -> None:
    async with fleet(real_servers, tmp_path, ["users", "users,location", "location,match,rides"]) as pods:
        pairs = await pods.people(3)
        first, second, _ = pods.pods

        async def change_places() -> None:
            for pair in pairs:
                for phone in pair.both:
                    await phone.lives_on(second if phone.ready["pod_id"] == first.pod_id else first)

        for _ in range(2):
            await asyncio.gather(*(pair.ride() for pair in pairs))
            await change_places()
        tally = await pods.tally(pairs)
        assert (tally.lost, tally.doubled, tally.reordered) == (0, 0, 0), tally
        await check_books(pods.database)
        await check_locks(pods.database)
        for pair in pairs:
            assert len(set(pair.rides)) == 2
            await pair.go_home()


async def test_what_a_pod_began_goes_on_without_it(runner: asyncio.Runner, real_servers: Real, tmp_path: Path) -> None:
    """An offer, a search, a driver whose phone is gone: the pod that knew of them is killed, another ends them."""
    async with fleet(real_servers, tmp_path, [None, None], begin=1, **SHORT) as pods:
        one, two = pods.pods
        pool = RedisPool(pods.redis)
        offered, searching, gone = await pods.people(3)
        await offered.ride(before="driver accepts")
        await searching.finder()
        await searching.passenger.expect("match.unavailable", reason="no_drivers")
        await gone.beacon()
        async with asyncio.timeout(60):
            while gone.driver.user_id not in await pool.drivers():  # noqa: ASYNC110 - the pool is asked, it tells nobody
                await asyncio.sleep(0.02)
        await pods.restart(two)
        one.kill()
        for phone in gone.both:
            await phone.go_home()
        # The offer expires; the search finds the driver who comes now.
        for phone in offered.both:
            await phone.expect("match.rejected", match_id=offered.match_id, reason="expired")
        await searching.beacon()
        await searching.ride(begin="found")
        # The driver who did not come back is offered to nobody any more.
        async with asyncio.timeout(60):
            while gone.driver.user_id in await pool.drivers():  # noqa: ASYNC110 - the pool is asked
                await asyncio.sleep(0.2)
        (asking,) = await pods.people(1)
        asking.place = gone.place
        await asking.finder()
        await asking.passenger.expect("match.unavailable", reason="no_drivers")
        assert (await pods.tally([searching])).lost == 0
        for pair in (offered, searching, asking):
            await pair.go_home()
