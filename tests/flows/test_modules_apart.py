"""Pods that run only some modules, and what goes on although the pod that began it is gone."""

import asyncio
from pathlib import Path

import pytest

from nebengjek.match.redis_pool import RedisPool
from tests.flows.conftest import Real
from tests.flows.fleet import fleet
from tests.flows.truth import check_books, check_locks

pytestmark = pytest.mark.real

SHORT = {"NEBENGJEK__MATCH__OFFER_TTL": "6", "NEBENGJEK__LOCATION__OFFLINE_GRACE": "3"}


async def test_what_a_pod_began_goes_on_over_pods_that_run_only_some_modules(
    runner: asyncio.Runner, real_servers: Real, tmp_path: Path
) -> None:
    """An offer, a search, a driver whose phone is gone: the pod that knew of them is killed, others end them."""
    apart = [None, "users,location", "users,match,rides"]
    async with fleet(real_servers, tmp_path, apart, begin=1, **SHORT) as pods:
        one, two, three = pods.pods
        pool = RedisPool(pods.redis)
        offered, searching, gone = await pods.people(3)
        await offered.ride(before="driver accepts")
        await searching.finder()
        await searching.passenger.expect("match.unavailable", reason="no_drivers")
        await gone.beacon()
        async with asyncio.timeout(60):
            while gone.driver.user_id not in await pool.drivers():  # noqa: ASYNC110 - the pool is asked, it tells nobody
                await asyncio.sleep(0.02)
        await asyncio.gather(pods.restart(two), pods.restart(three))
        one.kill()
        await gone.go_home()
        # The offer expires; the search finds the driver who comes now.
        for phone in offered.both:
            await phone.expect("match.rejected", match_id=offered.match_id, reason="expired")
        await searching.beacon()
        await searching.ride(begin="found")

        # Rides go on over two pods that serve phones and run nothing else in common.
        async def change_places() -> None:
            for phone in searching.both:
                await phone.lives_on(two if phone.ready["pod_id"] == three.pod_id else three)

        await searching.ride(between=change_places)
        # The driver who did not come back is offered to nobody any more.
        async with asyncio.timeout(60):
            while gone.driver.user_id in await pool.drivers():  # noqa: ASYNC110 - the pool is asked
                await asyncio.sleep(0.2)
        (asking,) = await pods.people(1)
        asking.place = gone.place
        await asking.finder()
        await asking.passenger.expect("match.unavailable", reason="no_drivers")
        await asking.passenger.say("user.finder", {"is_active": False})
        tally = await pods.tally([offered, searching, asking])
        assert (tally.lost, tally.doubled, tally.reordered) == (0, 0, 0), tally
        assert len(set(searching.rides)) == 2
        await check_books(pods.database)
        await check_locks(pods.database)
        for pair in (offered, searching, asking):
            await pair.go_home()
