"""Who is proposed to whom, who may answer, and that nobody is ever in two matches."""

import asyncio
from typing import Any

import msgspec
import pytest
from sqlalchemy import text

from nebengjek.contracts.rides import RidePickup
from nebengjek.match import store
from tests.flows.conftest import Backend, Embedded
from tests.flows.world import BUNDARAN_HI, KOTA_TUA, MONAS, Phone, Refused, World, moved

FINDER = {"is_active": True, "location": MONAS, "target_location": BUNDARAN_HI}
BEACON = {"is_active": True, "location": MONAS}


async def outcome(phone: Phone, event: str, data: dict[str, Any]) -> str:
    """``OK``, or the code of the refusal."""
    try:
        await phone.say(event, data)
    except Refused as refused:
        return refused.code
    return "OK"


async def test_a_beacon_is_for_drivers_and_a_finder_for_passengers(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        assert await outcome(passenger, "user.beacon", BEACON) == "FORBIDDEN"
        assert await outcome(driver, "user.finder", FINDER) == "FORBIDDEN"
        assert await outcome(driver, "user.beacon", {"is_active": True}) == "INVALID"
        assert await outcome(passenger, "user.finder", {"is_active": True, "location": MONAS}) == "INVALID"
        response = await passenger.http("PUT", "/beacon", BEACON)
        assert (response.status_code, response.json()["code"]) == (403, "FORBIDDEN")


async def test_a_proposal_names_everything_a_person_needs_to_decide(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        match_id = await world.pair(driver, passenger)
        data = (await passenger.expect("match.found", match_id=match_id))["data"]
        assert data["driver"]["name"] == "Budi"
        assert data["driver"]["vehicle_type"] == "motorcycle"
        assert data["driver"]["vehicle_plate"].startswith("B ")
        assert data["distance_km"] == pytest.approx(0.02, abs=0.005)
        assert data["eta_minutes"] == 1
        assert data["estimated_fare"] > 0
        assert (await passenger.ask("GET", f"/matches/{match_id}"))["match_status"] == "PENDING"
        assert len((await driver.ask("GET", "/matches?status=OPEN"))["items"]) == 1


async def test_a_search_that_was_first_finds_the_driver_who_comes_later(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        await passenger.say("user.finder", FINDER)
        await passenger.expect("match.unavailable", reason="no_drivers")
        await driver.say("user.beacon", BEACON)
        await passenger.expect("match.found", driver_id=driver.user_id)


async def test_a_driver_who_drives_into_the_radius_is_found(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        far = moved(MONAS, 6000)
        await driver.say("user.beacon", {"is_active": True, "location": far})
        await passenger.say("user.finder", FINDER)
        await passenger.expect("match.unavailable", reason="no_drivers")
        world.clock.advance(120)
        await driver.point(moved(MONAS, 3000))
        await passenger.expect("match.found", driver_id=driver.user_id)


async def test_only_the_wanted_vehicle_is_proposed(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        await driver.say("user.beacon", BEACON)
        await passenger.say("user.finder", {**FINDER, "vehicle_type": "van"})
        await passenger.expect("match.unavailable", reason="no_drivers")
        await passenger.say("user.finder", {**FINDER, "vehicle_type": "motorcycle"})
        await passenger.expect("match.found", driver_id=driver.user_id)


async def test_the_nearest_are_proposed_and_not_more_than_allowed(backend: Backend) -> None:
    async with backend.own_world(match__max_candidates=2) as world:
        drivers = [await world.driver() for _ in range(3)]
        passenger = await world.passenger()
        for number, driver in enumerate(drivers):
            place = moved(MONAS, 1000 - 300 * number)
            await driver.say("user.beacon", {"is_active": True, "location": place})
        await world.quiet()
        await passenger.say("user.finder", FINDER)
        await passenger.expect("match.found", driver_id=drivers[2].user_id)
        await passenger.expect("match.found", driver_id=drivers[1].user_id)
        await world.app.sweep()
        assert drivers[0].count("match.found") == 0
        # A rejected place is taken by the next one, and the one who rejected is not asked again.
        match_id = (await drivers[2].expect("match.found"))["data"]["match_id"]
        await drivers[2].say("match.reject", {"match_id": match_id})
        rejected = await passenger.expect("match.rejected", match_id=match_id)
        assert rejected["data"]["reason"] == "rejected"
        await drivers[0].expect("match.found")
        await world.app.sweep()
        assert drivers[2].count("match.found") == 1


async def test_strangers_cannot_answer_and_the_dead_stay_dead(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger, stranger = await world.driver(), await world.passenger(), await world.passenger()
        match_id = await world.pair(driver, passenger)
        answer = {"match_id": match_id}
        assert await outcome(stranger, "match.accept", answer) == "FORBIDDEN"
        assert await outcome(stranger, "match.reject", answer) == "FORBIDDEN"
        assert (await stranger.http("GET", f"/matches/{match_id}")).status_code == 404
        for nothing in ("x", "", "*", ">", "a.b", "'; DROP TABLE matches; --", "\x00", match_id + "."):
            assert await outcome(driver, "match.accept", {"match_id": nothing}) in ("NOT_FOUND", "INVALID_FRAME")
        await passenger.say("match.reject", {**answer, "reason": "changed my mind"})
        assert await outcome(driver, "match.accept", answer) == "CONFLICT"
        assert await outcome(passenger, "match.accept", answer) == "CONFLICT"


async def test_an_acceptance_can_be_repeated_and_both_make_a_match_once(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        match_id = await world.pair(driver, passenger)
        answer = {"match_id": match_id}
        assert (await driver.say("match.accept", answer))["match_status"] == "DRIVER_CONFIRMED"
        assert (await driver.say("match.accept", answer))["match_status"] == "DRIVER_CONFIRMED"
        await passenger.expect("match.found", match_id=match_id, match_status="DRIVER_CONFIRMED")
        assert (await passenger.say("match.accept", answer))["match_status"] == "ACCEPTED"
        assert (await passenger.say("match.accept", answer))["match_status"] in ("ACCEPTED", "CLOSED")
        await driver.expect("ride.pickup", match_id=match_id)
        await driver.expect_once("match.accepted", match_id=match_id)
        assert await outcome(passenger, "match.reject", answer) == "CONFLICT"
        assert await outcome(driver, "user.beacon", BEACON) == "CONFLICT"
        assert await outcome(passenger, "user.finder", FINDER) == "CONFLICT"


async def test_a_proposal_expires_for_both(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        match_id = await world.pair(driver, passenger)
        world.clock.advance(31)
        assert await outcome(driver, "match.accept", {"match_id": match_id}) == "CONFLICT"
        await world.app.sweep()
        for phone in (driver, passenger):
            ended = await phone.expect("match.rejected", match_id=match_id)
            assert (ended["data"]["reason"], ended["data"]["match_status"]) == ("expired", "EXPIRED")
        assert await outcome(driver, "match.accept", {"match_id": match_id}) == "CONFLICT"


async def test_a_search_ends_and_says_so(backend: Backend) -> None:
    async with backend.world() as world:
        passenger = await world.passenger()
        await passenger.say("user.finder", FINDER)
        await passenger.expect("match.unavailable", reason="no_drivers")
        await world.advance(601)
        await passenger.expect("match.unavailable", reason="search_ended")
        await passenger.expect("user.finder", is_active=False, reason="search_ended")
        driver = await world.driver()
        await driver.say("user.beacon", BEACON)
        await world.app.sweep()
        assert passenger.count("match.found") == 0


async def test_a_finder_or_beacon_switched_off_ends_its_proposals(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        match_id = await world.pair(driver, passenger)
        await passenger.say("user.finder", {"is_active": False})
        ended = await driver.expect("match.rejected", match_id=match_id)
        assert ended["data"]["reason"] == "cancelled"
        await passenger.say("user.finder", FINDER)
        second = await passenger.find(lambda one: one["event"] == "match.found" and one["data"]["match_id"] != match_id)
        await driver.say("user.beacon", {"is_active": False})
        await passenger.expect("match.rejected", match_id=second["data"]["match_id"], reason="cancelled")


async def test_the_other_proposals_of_a_taken_driver_end_as_taken(backend: Backend) -> None:
    async with backend.world() as world:
        driver, first, second = await world.driver(), await world.passenger(), await world.passenger()
        match_id = await world.pair(driver, first)
        await second.say("user.finder", FINDER)
        other = (await second.expect("match.found", driver_id=driver.user_id))["data"]["match_id"]
        await first.say("match.accept", {"match_id": match_id})
        await driver.say("match.accept", {"match_id": match_id})
        await second.expect("match.rejected", match_id=other, reason="taken")
        assert await outcome(driver, "match.accept", {"match_id": other}) == "CONFLICT"
        assert await outcome(second, "match.accept", {"match_id": other}) == "CONFLICT"


async def test_two_passengers_who_accept_one_driver_at_once_make_one_ride(backend: Backend) -> None:
    async with backend.world() as world:
        driver, first, second = await world.driver(), await world.passenger(), await world.passenger()
        await driver.say("user.beacon", BEACON)
        for _ in range(backend.races):
            await _race(world, driver, first, second)


async def _race(world: World, driver: Phone, first: Phone, second: Phone) -> None:
    seen = [len(phone.frames) for phone in (first, second)]
    matches = []
    for phone, since in zip((first, second), seen, strict=True):
        await phone.say("user.finder", FINDER)
        # The news of the last ride's end may come later than this search: then the sweep finds the two.
        found = await world.sweeping(phone.find(lambda one: one["event"] == "match.found", since=since))
        matches.append(found["data"]["match_id"])
    for match_id in matches:
        await driver.say("match.accept", {"match_id": match_id})
    outcomes = await asyncio.gather(
        outcome(first, "match.accept", {"match_id": matches[0]}),
        outcome(second, "match.accept", {"match_id": matches[1]}),
    )
    assert sorted(outcomes) == ["CONFLICT", "OK"]
    winner = outcomes.index("OK")
    pickup = await driver.expect("ride.pickup", match_id=matches[winner])
    await (first, second)[1 - winner].expect("match.rejected", match_id=matches[1 - winner], reason="taken")
    loser_rides = (await (first, second)[1 - winner].ask("GET", "/rides?status=PICKUP"))["items"]
    assert loser_rides == []
    await driver.say("ride.cancel", {"ride_id": pickup["data"]["ride_id"]})
    for phone in (driver, (first, second)[winner]):
        await phone.expect("ride.cancelled", ride_id=pickup["data"]["ride_id"])
    await (first, second)[1 - winner].say("user.finder", {"is_active": False})


async def test_a_pickup_that_is_heard_while_the_ride_ends_binds_nobody_again(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        ride_id = await world.pickup(driver, passenger)
        told = (await driver.expect("ride.pickup", ride_id=ride_id))["data"]
        event = msgspec.convert({**told, "type": "ride.pickup", "version": 1}, RidePickup)
        await world.quiet()
        match_id, parties = event.match_id, (event.driver_id, event.passenger_id)
        async with world.app.database.begin() as ending:
            await store.move(ending, match_id, "CLOSED", when=("ACCEPTED",))
            await store.release(ending, match_id)
            hearing = asyncio.ensure_future(world.handler("match", RidePickup)(event, None))
            await _waits_for_a_lock(world)
        await hearing
        async with world.app.database.read() as tx:
            assert await store.engaged_among(tx, parties) == set()


async def test_a_finder_of_somebody_who_stays_bound_is_refused_aloud(embedded: Embedded) -> None:
    async with embedded.own_world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        await driver.say("user.beacon", BEACON)
        # As if the match that binds him had not been heard by users yet.
        async with world.app.database.begin() as tx:
            await store.engage(tx, "another match", (passenger.user_id,))
        await passenger.say("user.finder", FINDER)
        told = asyncio.ensure_future(passenger.expect("match.unavailable", reason="engaged"))
        while not (await asyncio.wait([told], timeout=0.02))[0]:
            # It is looked at again and again before that is said.
            await world.advance(0.5)
        told.result()
        await passenger.expect("user.finder", is_active=False, reason="engaged")
        assert passenger.count("match.found") == 0
        async with world.app.database.begin() as tx:
            await store.release(tx, "another match")
        await passenger.say("user.finder", FINDER)
        await passenger.expect("match.found")


async def _waits_for_a_lock(world: World) -> None:
    """Until another transaction waits for the one that is open."""
    if world.app.database.is_sqlite:
        await asyncio.sleep(0)  # a writer waits for the other before he says anything to SQLite
        return
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    async with asyncio.timeout(8), world.app.database.read() as tx:
        while not (await tx.execute(waiting)).scalar_one():  # noqa: ASYNC110 - the server is asked
            await asyncio.sleep(0.005)


async def test_a_driver_whose_phone_is_gone_leaves_the_pool_and_returns(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        await driver.say("user.beacon", BEACON)
        await world.hang_up(driver)
        await world.advance(31)
        await world.quiet()
        await passenger.say("user.finder", FINDER)
        await passenger.expect("match.unavailable", reason="no_drivers")
        ready = await driver.connect()
        assert ready["beacon"] == {"is_active": True}
        await passenger.expect("match.found", driver_id=driver.user_id)


async def test_a_name_can_be_anything_and_does_nothing(backend: Backend) -> None:
    async with backend.world() as world:
        name = """Robert'); DROP TABLE users;-- {"a": 1} <b>"""
        driver = await (await Phone(world).login()).become_driver(name)
        world.phones.append(driver)
        await driver.connect()
        passenger = await world.passenger()
        match_id = await world.pair(driver, passenger)
        found = await passenger.expect("match.found", match_id=match_id)
        assert found["data"]["driver"]["name"] == name
        with pytest.raises(Refused, match="INVALID"):
            await passenger.ask("PATCH", "/users/me", {"full_name": "a\x00b"})


async def test_who_may_read_whom(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger, stranger = await world.driver(), await world.passenger(), await world.passenger()
        with pytest.raises(Refused, match="FORBIDDEN"):
            await passenger.ask("GET", f"/users/{driver.user_id}")
        match_id = await world.pair(driver, passenger)
        seen = await passenger.ask("GET", f"/users/{driver.user_id}")
        assert seen["full_name"] == "Budi"
        assert seen["msisdn"] is None
        await driver.say("match.accept", {"match_id": match_id})
        await passenger.say("match.accept", {"match_id": match_id})
        ride_id = (await passenger.expect("ride.pickup"))["data"]["ride_id"]
        assert (await passenger.ask("GET", f"/users/{driver.user_id}"))["msisdn"] == driver.msisdn
        assert (await driver.ask("GET", f"/users/{passenger.user_id}"))["msisdn"] == passenger.msisdn
        with pytest.raises(Refused, match="FORBIDDEN"):
            await stranger.ask("GET", f"/users/{driver.user_id}")
        await passenger.say("ride.cancel", {"ride_id": ride_id})
        await driver.expect("ride.cancelled")
        await passenger.find(lambda one: one["event"] == "ride.cancelled")
        await _closed(passenger, match_id)
        assert (await passenger.ask("GET", f"/users/{driver.user_id}"))["msisdn"] is None


async def _closed(phone: Phone, match_id: str) -> None:
    """Wait until match has heard that the ride is over: the phones hear it from another consumer."""
    for _ in range(500):
        if (await phone.ask("GET", f"/matches/{match_id}"))["match_status"] == "CLOSED":
            return
    raise AssertionError("the match was not closed")


async def test_far_away_nobody_is_proposed(backend: Backend) -> None:
    async with backend.own_world(match__radius_km=1) as world:
        driver, passenger = await world.driver(), await world.passenger()
        await driver.say("user.beacon", {"is_active": True, "location": KOTA_TUA})
        await passenger.say("user.finder", FINDER)
        await passenger.expect("match.unavailable", reason="no_drivers")
        assert driver.count("match.found") == 0
