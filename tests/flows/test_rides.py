"""The ride's rules: who may do what when, what it costs, and that every state has an exit."""

import pytest

from tests.flows.conftest import Backend
from tests.flows.test_matching import BEACON, FINDER, outcome
from tests.flows.world import MONAS, moved


async def test_only_the_driver_starts_and_only_where_the_passenger_is(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger, stranger = await world.driver(), await world.passenger(), await world.passenger()
        ride_id = await world.pickup(driver, passenger)
        ride = {"ride_id": ride_id}
        assert await outcome(passenger, "ride.start", ride) == "FORBIDDEN"
        assert await outcome(stranger, "ride.start", ride) == "FORBIDDEN"
        world.clock.advance(60)
        await passenger.point(MONAS)
        await driver.point(moved(MONAS, 500))
        assert await outcome(driver, "ride.start", ride) == "CONFLICT"
        world.clock.advance(60)
        await driver.point(moved(MONAS, 50))
        assert (await driver.say("ride.start", ride))["status"] == "ONGOING"
        assert (await driver.say("ride.start", ride))["status"] == "ONGOING"
        for party in (passenger, driver):
            await party.expect_once("ride.started", ride_id=ride_id)


async def test_arrival_is_the_drivers_and_counts_once(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        ride_id = await world.start_ride(driver, passenger)
        await world.drive(driver, 1000)
        assert await outcome(passenger, "ride.arrive", {"ride_id": ride_id}) == "FORBIDDEN"
        for factor in (0, -1, 1.5, "1", None):
            code = await outcome(driver, "ride.arrive", {"ride_id": ride_id, "adjustment_factor": factor})
            assert code == "INVALID_FRAME"
        response = await driver.http("POST", f"/rides/{ride_id}/arrive", {"adjustment_factor": 1.5})
        assert (response.status_code, response.json()["code"]) == (400, "INVALID")
        bill = await driver.say("ride.arrive", {"ride_id": ride_id})
        assert bill["total_cost"] == bill["adjusted_cost"] == pytest.approx(3000, abs=30)
        again = await driver.say("ride.arrive", {"ride_id": ride_id, "adjustment_factor": 0.5})
        assert again["adjusted_cost"] == bill["adjusted_cost"]
        await passenger.expect_once("ride.arrived", ride_id=ride_id)
        assert await outcome(driver, "ride.start", {"ride_id": ride_id}) in ("CONFLICT", "OK")


async def test_progress_is_told_on_the_way(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        ride_id = await world.start_ride(driver, passenger)
        await world.drive(driver, 2200)
        progress = await passenger.expect("ride.progress", ride_id=ride_id, sequence=2)
        assert progress["data"]["distance_km"] == pytest.approx(2.0, abs=0.11)


async def test_payment_is_the_passengers_exact_and_once(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger, stranger = await world.driver(), await world.passenger(), await world.passenger()
        ride_id = await world.start_ride(driver, passenger)
        await world.drive(driver, 1000)
        assert await outcome(passenger, "ride.pay", {"ride_id": ride_id, "amount": 3000}) == "CONFLICT"
        amount = (await driver.say("ride.arrive", {"ride_id": ride_id}))["adjusted_cost"]
        pay = {"ride_id": ride_id, "amount": amount}
        assert await outcome(passenger, "ride.pay", {**pay, "amount": amount + 1}) in ("INVALID", "CONFLICT")
        assert await outcome(driver, "ride.pay", pay) == "FORBIDDEN"
        assert await outcome(stranger, "ride.pay", pay) == "FORBIDDEN"
        assert await outcome(passenger, "ride.pay", {**pay, "method": "cash"}) == "FORBIDDEN"
        assert (await passenger.say("ride.pay", {**pay, "method": "test_decline"}))["status"] == "REJECTED"
        await driver.expect("ride.payment", ride_id=ride_id, status="REJECTED")
        assert (await passenger.say("ride.pay", pay))["status"] == "ACCEPTED"
        assert (await passenger.say("ride.pay", pay))["status"] == "ACCEPTED"
        completed = await driver.expect("ride.completed", ride_id=ride_id)
        assert completed["data"]["payment"]["attempts"] == 2
        await driver.expect_once("ride.payment", status="ACCEPTED")


async def test_cash_is_the_drivers_to_say(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        ride_id = await world.start_ride(driver, passenger)
        await world.drive(driver, 1000)
        amount = (await driver.say("ride.arrive", {"ride_id": ride_id}))["adjusted_cost"]
        pay = {"ride_id": ride_id, "amount": amount, "method": "cash"}
        assert (await driver.say("ride.pay", pay))["status"] == "ACCEPTED"
        await passenger.expect("ride.completed", ride_id=ride_id)


async def test_a_lost_answer_of_the_gateway_is_asked_for_and_charged_once(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        ride_id = await world.start_ride(driver, passenger)
        await world.drive(driver, 1000)
        amount = (await driver.say("ride.arrive", {"ride_id": ride_id}))["adjusted_cost"]
        pay = {"ride_id": ride_id, "amount": amount, "method": "test_timeout"}
        assert (await passenger.say("ride.pay", pay))["status"] in ("PENDING", "ACCEPTED")
        await world.advance(30)
        completed = await passenger.expect("ride.completed", ride_id=ride_id)
        assert completed["data"]["payment"] | {"payment_id": ""} == {
            "payment_id": "",
            "status": "ACCEPTED",
            "method": "test_timeout",
            "attempts": 1,
        }


async def test_a_deployment_says_when_a_lost_answer_is_asked_for(backend: Backend) -> None:
    async with backend.own_world(rides__charge_timeout=0.5, rides__settle_after=60) as world:
        driver, passenger = await world.driver(), await world.passenger()
        ride_id = await world.start_ride(driver, passenger)
        await world.drive(driver, 500)
        amount = (await driver.say("ride.arrive", {"ride_id": ride_id}))["adjusted_cost"]
        pay = {"ride_id": ride_id, "amount": amount, "method": "test_timeout"}
        assert (await passenger.say("ride.pay", pay))["status"] == "PENDING"
        await world.advance(59)
        assert (await passenger.ask("GET", f"/rides/{ride_id}"))["status"] == "ARRIVED"
        await world.advance(2)
        assert (await passenger.ask("GET", f"/rides/{ride_id}"))["status"] == "COMPLETED"


async def test_either_cancels_before_the_start_and_nobody_after(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        for canceller in (driver, passenger):
            ride_id = await world.pickup(driver, passenger)
            assert (await canceller.say("ride.cancel", {"ride_id": ride_id, "reason": "rain"}))["status"] == "CANCELLED"
            assert (await canceller.say("ride.cancel", {"ride_id": ride_id}))["status"] == "CANCELLED"
            for phone in (driver, passenger):
                assert (await phone.expect("ride.cancelled", ride_id=ride_id))["data"]["reason"] == "rain"
        ride_id = await world.start_ride(driver, passenger)
        assert await outcome(passenger, "ride.cancel", {"ride_id": ride_id}) == "CONFLICT"
        await world.drive(driver, 500)
        amount = (await driver.say("ride.arrive", {"ride_id": ride_id}))["adjusted_cost"]
        assert await outcome(driver, "ride.cancel", {"ride_id": ride_id}) == "CONFLICT"
        await passenger.say("ride.pay", {"ride_id": ride_id, "amount": amount})
        assert await outcome(passenger, "ride.cancel", {"ride_id": ride_id}) == "CONFLICT"


async def test_a_ride_without_movement_arrives_and_is_complete(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        ride_id = await world.start_ride(driver, passenger)
        bill = await driver.say("ride.arrive", {"ride_id": ride_id})
        assert (bill["total_cost"], bill["driver_payout"]) == (0, 0)
        await passenger.expect("ride.completed", ride_id=ride_id)
        await passenger.say("user.finder", FINDER)


async def test_who_does_not_pay_locks_nobody_but_owes(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        ride_id = await world.start_ride(driver, passenger)
        await world.drive(driver, 1000)
        amount = (await driver.say("ride.arrive", {"ride_id": ride_id}))["adjusted_cost"]
        await world.advance(901)
        await driver.expect("ride.payment", ride_id=ride_id, status="OVERDUE")
        await passenger.expect("ride.payment", ride_id=ride_id, status="OVERDUE")
        for phone in (driver, passenger):
            await phone.expect("ride.completed", ride_id=ride_id)
        await driver.say("user.beacon", BEACON)
        assert await outcome(passenger, "user.finder", FINDER) == "PAYMENT_DUE"
        assert (await passenger.say("ride.pay", {"ride_id": ride_id, "amount": amount}))["status"] == "ACCEPTED"
        await passenger.expect("ride.payment", ride_id=ride_id, status="ACCEPTED")
        await passenger.say("user.finder", FINDER)
        await passenger.expect_once("ride.completed")


async def test_a_pickup_that_never_comes_is_cancelled(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        ride_id = await world.pickup(driver, passenger)
        await world.advance(7201)
        for phone in (driver, passenger):
            await phone.expect("ride.cancelled", ride_id=ride_id)


async def test_a_stranger_sees_no_ride(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger, stranger = await world.driver(), await world.passenger(), await world.passenger()
        ride_id = await world.pickup(driver, passenger)
        assert (await stranger.http("GET", f"/rides/{ride_id}")).status_code == 404
        assert (await stranger.ask("GET", "/rides"))["items"] == []
        assert [ride["ride_id"] for ride in (await driver.ask("GET", "/rides"))["items"]] == [ride_id]


async def test_the_whole_ride_works_without_a_socket(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        await driver.ask("PUT", "/beacon", BEACON)
        await passenger.ask("PUT", "/finder", FINDER)
        match_id = (await passenger.expect("match.found"))["data"]["match_id"]
        await driver.ask("POST", f"/matches/{match_id}/accept")
        await passenger.ask("POST", f"/matches/{match_id}/accept")
        ride_id = (await driver.expect("ride.pickup"))["data"]["ride_id"]
        await driver.point(MONAS)
        await passenger.point(MONAS)
        assert (await driver.ask("POST", f"/rides/{ride_id}/start"))["status"] == "ONGOING"
        await driver.expect("ride.started")
        await world.drive(driver, 800)
        bill = await driver.ask("POST", f"/rides/{ride_id}/arrive", {"adjustment_factor": 0.9})
        paid = await passenger.ask("POST", f"/rides/{ride_id}/pay", {"amount": bill["adjusted_cost"]})
        assert paid["status"] == "ACCEPTED"
        await passenger.expect("ride.completed")
