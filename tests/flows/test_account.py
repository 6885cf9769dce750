"""The own account over HTTP: the profile, and leaving."""

from tests.flows.conftest import Backend
from tests.flows.problems import refused
from tests.flows.world import BUNDARAN_HI, MONAS, Phone, World

NOBODY = "0192f0c0-7c4e-7a31-9d5b-5b1f0f3a1c01"
SEARCH = {"is_active": True, "location": MONAS, "target_location": BUNDARAN_HI}


async def test_a_profile_is_changed_and_cleared(backend: Backend) -> None:
    async with backend.world() as world:
        phone = await world.passenger()
        me = await phone.ask("GET", "/users/me")
        assert me["msisdn"] == phone.msisdn
        wanted = {"full_name": "Siti'); DROP TABLE users;--", "email": "s@example.org"}
        changed = await phone.ask("PATCH", "/users/me", wanted)
        assert (changed["full_name"], changed["email"]) == (wanted["full_name"], wanted["email"])
        cleared = await phone.ask("PATCH", "/users/me", {"email": None})
        assert (cleared["full_name"], cleared["email"]) == (changed["full_name"], None)
        # What he is, is not his to write.
        kept = await phone.ask("PATCH", "/users/me", {"role": "driver", "id": NOBODY, "msisdn": "+628110000000"})
        assert (kept["role"], kept["id"], kept["msisdn"]) == ("passenger", phone.user_id, phone.msisdn)
        assert await phone.ask("GET", "/users/me") == kept


async def second_login(world: World, first: Phone) -> Phone:
    """Another phone with the same number."""
    phone = Phone(world)
    phone.msisdn = first.msisdn
    return await phone.login()


async def test_who_leaves_is_logged_out_everywhere_and_his_number_begins_anew(backend: Backend) -> None:
    async with backend.world() as world:
        driver = await world.driver()
        second = await second_login(world, driver)
        assert second.user_id == driver.user_id
        assert (await driver.http("DELETE", "/users/me")).status_code == 204
        assert await driver.closed() == 4401
        for token in (driver.token, second.token):
            refused(await driver.http("GET", "/users/me", token=token), 401, "UNAUTHENTICATED")
        for login in (driver, second):
            response = await driver.http("POST", "/auth/refresh", {"refresh_token": login.refresh_token})
            refused(response, 401, "UNAUTHENTICATED")
        again = await second_login(world, driver)
        assert again.user_id != driver.user_id
        assert (await again.ask("GET", "/users/me"))["role"] == "passenger"


async def test_a_driver_who_leaves_is_proposed_to_nobody_any_more(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger, later = await world.driver(), await world.passenger(), await world.passenger()
        match_id = await world.pair(driver, passenger)
        assert (await driver.http("DELETE", "/users/me")).status_code == 204
        ended = await passenger.expect("match.rejected", match_id=match_id)
        assert ended["data"]["reason"] == "cancelled"
        await later.say("user.finder", SEARCH)
        await later.expect("match.unavailable", reason="no_drivers")
        await world.app.sweep()
        assert later.count("match.found") == 0
        assert passenger.count("match.found") == 1


async def test_a_passenger_who_leaves_is_not_looked_for_any_more(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger, later = await world.driver(), await world.passenger(), await world.driver()
        match_id = await world.pair(driver, passenger)
        assert (await passenger.http("DELETE", "/users/me")).status_code == 204
        ended = await driver.expect("match.rejected", match_id=match_id)
        assert ended["data"]["reason"] == "cancelled"
        # A driver who comes later finds nobody waiting: the one whose proposal comes is somebody else.
        await later.say("user.beacon", {"is_active": True, "location": MONAS})
        await world.app.sweep()
        other = await world.passenger()
        await other.say("user.finder", SEARCH)
        found = await later.find(lambda frame: frame["event"] == "match.found")
        assert found["data"]["passenger_id"] == other.user_id


async def test_who_is_under_way_cannot_leave(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        ride_id = await world.pickup(driver, passenger)
        for phone in (driver, passenger):
            refused(await phone.http("DELETE", "/users/me"), 409, "CONFLICT")
            assert (await phone.ask("GET", "/users/me"))["id"] == phone.user_id
        await passenger.say("ride.cancel", {"ride_id": ride_id})
        for phone in (driver, passenger):
            await phone.expect("ride.cancelled", ride_id=ride_id)
            assert (await phone.http("DELETE", "/users/me")).status_code == 204
