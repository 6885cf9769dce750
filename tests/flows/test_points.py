"""Points: what is confirmed, what is refused, and that a bad one does no harm."""

import pytest

from tests.flows.conftest import Backend
from tests.flows.world import KOTA_TUA, MONAS, Refused, moved


async def test_a_point_is_confirmed_with_its_geohash(backend: Backend) -> None:
    async with backend.world() as world:
        phone = await world.passenger()
        await phone.point(MONAS)
        stored = await phone.expect("location.stored")
        assert stored["data"] == {"location": MONAS, "geohash": "qqguygv"}
        assert "seq" not in stored


async def test_a_point_from_tomorrow_is_refused_with_or_without_an_id(backend: Backend) -> None:
    async with backend.world() as world:
        phone = await world.passenger()
        tomorrow = {"location": {**MONAS, "timestamp": "2999-01-01T00:00:00Z"}}
        with pytest.raises(Refused, match=r"POINT_REFUSED.*ahead"):
            await phone.say("location.update", tomorrow)
        await phone.tell("location.update", tomorrow)
        await phone.find(lambda one: one["event"] == "error" and "id" not in one["data"])


async def test_a_time_without_a_zone_is_refused(backend: Backend) -> None:
    async with backend.world() as world:
        phone = await world.passenger()
        with pytest.raises(Refused, match="INVALID_FRAME"):
            await phone.say("location.update", {"location": {**MONAS, "timestamp": "2026-01-01T00:00:00"}})


async def test_a_teleport_is_refused_and_three_that_agree_are_believed(backend: Backend) -> None:
    async with backend.world() as world:
        phone = await world.passenger()
        await phone.point(MONAS)
        for step in range(2):
            world.clock.advance(1)
            with pytest.raises(Refused, match=r"POINT_REFUSED.*200 km/h"):
                await phone.point(moved(KOTA_TUA, step))
        world.clock.advance(1)
        await phone.point(moved(KOTA_TUA, 3))
        with pytest.raises(Refused, match="POINT_REFUSED"):
            await phone.point(MONAS)
        key = {"X-API-Key": world.app.settings.admin.api_key}
        flags = (await world.http.get("/admin/flags", headers=key)).json()["items"]
        assert [(flag["user_id"], flag["kind"]) for flag in flags] == [(phone.user_id, "teleport")]
        assert (await world.http.get("/admin/flags")).status_code == 401


async def test_a_point_without_a_phone_time_has_the_servers(backend: Backend) -> None:
    async with backend.world() as world:
        phone = await world.passenger()
        await phone.say("location.update", {"location": MONAS})
        assert (await phone.http("POST", "/location", {"location": moved(MONAS, 5)})).status_code == 202
        await phone.find(lambda one: one["event"] == "location.stored" and one["data"]["location"] != MONAS)


async def test_the_other_party_follows_while_a_ride_is_open(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger, stranger = await world.driver(), await world.passenger(), await world.passenger()
        ride_id = await world.pickup(driver, passenger)
        await passenger.point(MONAS)
        world.clock.advance(30)
        await driver.point(moved(MONAS, 500))
        tracking = await passenger.expect("ride.tracking", ride_id=ride_id)
        assert tracking["data"]["user_id"] == driver.user_id
        assert tracking["data"]["eta_minutes"] >= 1
        assert stranger.count("ride.tracking") == 0
