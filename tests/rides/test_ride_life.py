"""From the accepted match to the arrival: who may do what, when, and what is said about it."""

import asyncio
from pathlib import Path

import pytest

from nebengjek.contracts.rides import (
    RideArrived,
    RideCancelled,
    RideCompleted,
    RidePayment,
    RidePickup,
    RideProgress,
    RideStarted,
)
from nebengjek.errors import Conflict, Forbidden, Invalid, NebengJekError, NotFound, Unavailable
from tests.rides.stage import KOTA_TUA, MONAS, NOON, stage

UNKNOWN = "01890000-0000-7000-8000-000000000000"


async def test_an_accepted_match_becomes_one_ride_however_often_it_is_said(tmp_path: Path) -> None:
    async with stage(tmp_path) as acting:
        event = acting.accepted("driver", "passenger")
        await acting.bus.publish(event)
        first = await acting.ear.wait(RidePickup)
        # Another message id: the inbox does not know it, the ride's unique match does.
        again = type(event)(match_id=event.match_id, version=4, match=event.match, open_before=event.open_before)
        await acting.bus.publish(again)
        await acting.settled()
        assert acting.ear.heard == [first]
        assert (first.driver_id, first.passenger_id, first.status) == ("driver", "passenger", "PICKUP")
        assert (first.location, first.target_location, first.version) == (MONAS, KOTA_TUA, 1)
        ride = await acting.ride(first.ride_id)
        assert (ride.status, ride.distance_km, ride.total_cost, ride.payment) == ("PICKUP", 0.0, None, None)
        assert ride.created_at == NOON


async def test_no_ride_is_opened_after_open_before(tmp_path: Path) -> None:
    async with stage(tmp_path) as acting:
        late = acting.accepted("driver", "passenger", open_for=120.0)
        acting.clock.advance(120.0)
        await acting.bus.publish(late)
        await acting.settled()
        assert acting.ear.heard == []
        assert (await acting.of_user("driver")).ride is None


@pytest.mark.parametrize(
    ("driver", "passenger"), [("driver", "other"), ("other", "passenger"), ("passenger", "driver")]
)
async def test_nobody_is_in_two_open_rides_but_may_be_in_the_next(tmp_path: Path, driver: str, passenger: str) -> None:
    async with stage(tmp_path) as acting:
        first = await acting.picked_up("driver", "passenger")
        second = acting.accepted(driver, passenger)
        await acting.bus.publish(second)
        await acting.settled()
        assert [event.ride_id for event in acting.ear.heard] == [first]
        await acting.cancel(first)
        assert await acting.picked_up(driver, passenger) != first


async def test_the_driver_starts_the_ride_where_he_is(tmp_path: Path) -> None:
    async with stage(tmp_path) as acting:
        ride_id = await acting.picked_up("driver", "passenger")
        acting.odometer.put("driver", MONAS, north_m=90)
        acting.clock.advance(60)
        assert (await acting.start(ride_id)).status == "ONGOING"
        started = await acting.ear.wait(RideStarted)
        assert started.location.latitude == acting.odometer.points["driver"].latitude
        assert (started.start_time, started.started_at, started.version) == (NOON, acting.clock.now(), 2)
        assert (await acting.start(ride_id)).status == "ONGOING"  # repeated
        await acting.settled()
        assert len(acting.ear.of(RideStarted, ride_id)) == 1


@pytest.mark.parametrize("by", ["passenger", "stranger"])
async def test_only_the_driver_starts_and_ends(tmp_path: Path, by: str) -> None:
    async with stage(tmp_path) as acting:
        ride_id = await acting.picked_up("driver", "passenger")
        with pytest.raises(Forbidden):
            await acting.start(ride_id, by)
        await acting.start(ride_id)
        with pytest.raises(Forbidden):
            await acting.arrive(ride_id, by)
        assert (await acting.ride(ride_id)).status == "ONGOING"


async def test_two_phones_far_apart_do_not_start(tmp_path: Path) -> None:
    async with stage(tmp_path) as acting:
        ride_id = await acting.picked_up("driver", "passenger")
        acting.odometer.put("driver", MONAS, north_m=500)
        with pytest.raises(Conflict, match="500 m apart, at most 100 m"):
            await acting.start(ride_id)
        for who in ("driver", "passenger"):
            gone = acting.odometer.points.pop(who)
            with pytest.raises(Conflict, match=f"where the {who} is"):
                await acting.start(ride_id)
            acting.odometer.points[who] = gone
        assert (await acting.ride(ride_id)).status == "PICKUP"


@pytest.mark.parametrize("ride_id", [UNKNOWN, "", "\x00", "x" * 5000, "' OR 1=1 --", "*", "\N{SNOWMAN}"])
async def test_a_ride_that_is_not_there_is_not_found(tmp_path: Path, ride_id: str) -> None:
    async with stage(tmp_path) as acting:
        for command in (acting.start, acting.arrive, acting.cancel):
            with pytest.raises(NotFound):
                await command(ride_id)
        with pytest.raises(NotFound):
            await acting.pay(ride_id, 1)


async def test_aggregates_are_booked_as_total_minus_booked(tmp_path: Path) -> None:
    async with stage(tmp_path) as acting:
        ride_id = await acting.under_way()
        await acting.drive(ride_id, 1, 1.0, 1.0)
        await acting.drive(ride_id, 3, 1.0, 3.1)  # the second was lost: healed by the third
        progress = await acting.ear.wait(RideProgress, lambda said: said.sequence == 3)
        assert (progress.distance_km, progress.fare) == (3.1, 9300)
        await acting.drive(ride_id, 2, 1.0, 2.0)  # late: there is nothing left to book
        await acting.settled()
        acting.odometer.total_km, acting.odometer.sequence = 4.25, 4
        bill = await acting.arrive(ride_id)
        assert (bill.distance_km, bill.total_cost) == (4.25, 12750)
        await acting.drive(ride_id, 6, 1.0, 9.0)  # after the arrival nothing counts
        await acting.settled()
        assert (await acting.ride(ride_id)).distance_km == 4.25
        assert [said.sequence for said in acting.ear.of(RideProgress, ride_id)] == [1, 3]


async def test_a_total_that_shrank_takes_nothing_back(tmp_path: Path) -> None:
    async with stage(tmp_path) as acting:
        ride_id = await acting.under_way()
        await acting.drive(ride_id, 1, 2.0, 2.0)
        await acting.ear.wait(RideProgress)
        acting.odometer.total_km, acting.odometer.sequence = 1.5, 1
        assert (await acting.arrive(ride_id)).distance_km == 2.0


async def test_the_bill(tmp_path: Path) -> None:
    async with stage(tmp_path) as acting:
        acting.odometer.review = True
        ride_id, bill = await acting.at_the_end(km=3.337, factor=0.85)
        assert (bill.total_cost, bill.adjusted_cost, bill.admin_fee, bill.driver_payout) == (10011, 8509, 425, 8084)
        said = await acting.ear.wait(RideArrived)
        assert (said.distance_km, said.adjustment_factor, said.payment_id) == (3.337, 0.85, bill.payment_id)
        ride = await acting.ride(ride_id)
        assert (ride.status, ride.arrived_at) == ("ARRIVED", NOON)
        assert ride.payment is not None
        assert (ride.payment.status, ride.payment.attempts) == ("PENDING", 0)
        closed = acting.odometer.closed[0]
        assert (closed.ride_id, closed.driver_id, closed.passenger_id) == (ride_id, "driver", "passenger")
        assert closed.start == acting.odometer.points["driver"]
        assert await acting.arrive(ride_id, factor=1.0) == bill  # repeated, even with another factor
        await acting.settled()
        assert len(acting.ear.of(RideArrived, ride_id)) == 1


@pytest.mark.parametrize("factor", [0.0, 1.5, -0.1])
async def test_a_factor_outside_of_its_range_is_invalid(tmp_path: Path, factor: float) -> None:
    async with stage(tmp_path) as acting:
        ride_id = await acting.under_way()
        with pytest.raises(Invalid):
            await acting.arrive(ride_id, factor=factor)
        assert (await acting.ride(ride_id)).status == "ONGOING"


async def test_a_ride_that_has_not_started_cannot_arrive(tmp_path: Path) -> None:
    async with stage(tmp_path) as acting:
        ride_id = await acting.picked_up("driver", "passenger")
        with pytest.raises(Conflict):
            await acting.arrive(ride_id)
        await acting.cancel(ride_id)
        with pytest.raises(Conflict):
            await acting.arrive(ride_id)
        assert acting.odometer.closed == []


async def test_a_ride_without_movement_is_complete_at_arrival(tmp_path: Path) -> None:
    async with stage(tmp_path) as acting:
        ride_id, bill = await acting.at_the_end(km=0.0)
        assert (bill.status, bill.total_cost, bill.driver_payout) == ("COMPLETED", 0, 0)
        completed = await acting.ear.wait(RideCompleted)
        payment = await acting.ear.wait(RidePayment)
        arrived = await acting.ear.wait(RideArrived)
        assert [arrived.version, payment.version, completed.version] == [3, 4, 5]
        assert (payment.status, payment.attempt, payment.amount) == ("ACCEPTED", 0, 0)
        assert completed.ride == await acting.ride(ride_id)
        assert (await acting.of_user("passenger")).ride is None


async def test_a_ride_without_movement_costs_the_minimum_fare(tmp_path: Path) -> None:
    async with stage(tmp_path, minimum_fare=8000) as acting:
        _, bill = await acting.at_the_end(km=0.0)
        assert (bill.status, bill.total_cost, bill.admin_fee, bill.driver_payout) == ("ARRIVED", 8000, 400, 7600)


async def test_nothing_has_changed_when_the_odometer_does_not_answer(tmp_path: Path) -> None:
    async with stage(tmp_path) as acting:
        ride_id = await acting.under_way()
        before = await acting.ride(ride_id)
        acting.odometer.away = True
        with pytest.raises(Unavailable):
            await acting.arrive(ride_id)
        assert await acting.ride(ride_id) == before
        acting.odometer.away = False
        acting.odometer.total_km = 2.0
        assert (await acting.arrive(ride_id)).total_cost == 6000


async def test_two_arrivals_at_once_are_one(tmp_path: Path) -> None:
    async with stage(tmp_path) as acting:
        ride_id = await acting.under_way()
        acting.odometer.total_km = 2.0
        acting.odometer.together = asyncio.Barrier(2)  # neither is answered before both have asked
        one, other = await asyncio.gather(acting.arrive(ride_id, factor=0.5), acting.arrive(ride_id, factor=1.0))
        assert one == other
        await acting.settled()
        assert len(acting.ear.of(RideArrived, ride_id)) == 1


@pytest.mark.parametrize("by", ["driver", "passenger"])
async def test_either_party_cancels_before_the_start(tmp_path: Path, by: str) -> None:
    async with stage(tmp_path) as acting:
        ride_id = await acting.picked_up("driver", "passenger")
        with pytest.raises(Forbidden):
            await acting.cancel(ride_id, "stranger")
        assert (await acting.cancel(ride_id, by, reason="  changed my mind ")).status == "CANCELLED"
        said = await acting.ear.wait(RideCancelled)
        assert (said.reason, said.cancelled_at, said.version) == ("changed my mind", NOON, 2)
        assert (await acting.cancel(ride_id, by, reason="again")).status == "CANCELLED"
        with pytest.raises(Conflict):
            await acting.start(ride_id)
        ride = await acting.ride(ride_id)
        assert (ride.status, ride.cancel_reason) == ("CANCELLED", "changed my mind")
        await acting.settled()
        assert len(acting.ear.of(RideCancelled, ride_id)) == 1


async def test_nobody_cancels_after_the_start(tmp_path: Path) -> None:
    async with stage(tmp_path) as acting:
        ride_id, bill = await acting.under_way(), None
        for state in ("ONGOING", "ARRIVED", "COMPLETED"):
            assert (await acting.ride(ride_id)).status == state
            for by in ("driver", "passenger"):
                with pytest.raises(Conflict, match=state):
                    await acting.cancel(ride_id, by)
            if state == "ONGOING":
                acting.odometer.total_km = 1.0
                bill = await acting.arrive(ride_id)
            elif bill is not None:
                await acting.pay(ride_id, bill.adjusted_cost)


@pytest.mark.parametrize("reason", ["x" * 201, "two\nlines", "nul\x00"])
async def test_a_reason_is_one_printable_line(tmp_path: Path, reason: str) -> None:
    async with stage(tmp_path) as acting:
        ride_id = await acting.picked_up("driver", "passenger")
        with pytest.raises(Invalid, match="reason"):
            await acting.cancel(ride_id, reason=reason)
        assert (await acting.ride(ride_id)).status == "PICKUP"


async def test_a_pick_up_that_never_comes_is_cancelled(tmp_path: Path) -> None:
    async with stage(tmp_path, pickup_ttl=7200.0) as acting:
        waiting = await acting.picked_up("driver", "passenger")
        acting.clock.advance(7000)
        under_way = await acting.under_way("driver2", "passenger2")
        await acting.sweep()
        assert (await acting.ride(waiting)).status == "PICKUP"
        acting.clock.advance(201)
        await asyncio.gather(acting.sweep(), acting.sweep())  # two pods
        said = await acting.ear.wait(RideCancelled)
        assert (said.ride_id, said.reason) == (waiting, "pickup_timeout")
        acting.clock.advance(100_000)
        await acting.sweep()
        assert (await acting.ride(under_way)).status == "ONGOING"
        await acting.settled()
        assert len(acting.ear.of(RideCancelled, waiting)) == 1


async def test_what_is_going_on_for_a_user(tmp_path: Path) -> None:
    async with stage(tmp_path) as acting:
        assert (await acting.of_user("driver")).ride is None
        ride_id, bill = await acting.at_the_end()
        for who in ("driver", "passenger"):
            going_on = await acting.of_user(who)
            assert going_on.ride == await acting.ride(ride_id)
            assert not going_on.payment_due
        await acting.pay(ride_id, bill.adjusted_cost)
        assert (await acting.of_user("driver")).ride is None


async def test_a_broken_aggregate_goes_to_the_dead_letters(tmp_path: Path) -> None:
    async with stage(tmp_path) as acting:
        ride_id = await acting.under_way()
        await acting.drive(ride_id, 1, 1.0, -1.0)
        await acting.drive(UNKNOWN, 1, 1.0, 1.0)  # no such ride: nothing to do
        await acting.settled()
        assert await acting.bus.dead_letters.count() == 1
        assert (await acting.ride(ride_id)).distance_km == 0.0


async def _refusal(command: object) -> str:
    try:
        await command  # type: ignore[misc]
    except NebengJekError as error:
        return type(error).__name__
    return "done"


async def test_start_and_cancel_at_once_have_one_winner(tmp_path: Path) -> None:
    async with stage(tmp_path) as acting:
        for round_ in range(20):
            ride_id = await acting.picked_up(f"driver{round_}", f"passenger{round_}")
            start = _refusal(acting.start(ride_id, f"driver{round_}"))
            cancel = _refusal(acting.cancel(ride_id, f"passenger{round_}"))
            both = [start, cancel] if round_ % 2 else [cancel, start]
            outcomes = await asyncio.gather(*both)
            assert sorted(outcomes) == ["Conflict", "done"]
            await acting.settled()
            said = [type(event) for event in acting.ear.heard if event.ride_id == ride_id]
            assert said in ([RidePickup, RideStarted], [RidePickup, RideCancelled])
