"""Two strangers log in, are matched, ride and pay."""

from tests.flows.conftest import Backend
from tests.flows.world import MONAS


async def test_a_whole_ride_is_paid(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        ride_id = await world.start_ride(driver, passenger)
        km = await world.drive(driver, 2500)
        bill = await driver.say("ride.arrive", {"ride_id": ride_id, "adjustment_factor": 0.8})
        assert abs(bill["total_cost"] - km * 3000) <= 0.01 * km * 3000
        assert bill["adjusted_cost"] == bill["admin_fee"] + bill["driver_payout"]
        arrived = await passenger.expect("ride.arrived", ride_id=ride_id)
        assert arrived["data"]["adjusted_cost"] == bill["adjusted_cost"]
        paid = await passenger.say("ride.pay", {"ride_id": ride_id, "amount": bill["adjusted_cost"]})
        assert paid["status"] == "ACCEPTED"
        for phone in (driver, passenger):
            completed = await phone.expect("ride.completed", ride_id=ride_id)
            assert completed["data"]["payment"]["status"] == "ACCEPTED"
        ride = await passenger.ask("GET", f"/rides/{ride_id}")
        assert ride["status"] == "COMPLETED"
        assert round(sum(entry["distance_km"] for entry in ride["ledger"]), 6) == ride["distance_km"]
        # Both are free again, and the driver's beacon is as he left it.
        await passenger.say("user.finder", {"is_active": True, "location": MONAS, "target_location": MONAS})
