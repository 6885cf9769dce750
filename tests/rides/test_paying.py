"""Paying: by whom, how much, once; refusals, lost answers, cash, and who walks away."""

import asyncio
from pathlib import Path

import pytest

from nebengjek.contracts.rides import PaymentStatus, RideCompleted, RidePayment
from nebengjek.errors import Conflict, Forbidden, Invalid, Unavailable
from nebengjek.rides.payments import ChargeResult, SimulatedGateway
from tests.rides.stage import NOON, Stage, stage


class Slow:
    """A gateway that answers when the test says so, and counts."""

    def __init__(self) -> None:
        self.charges: list[str] = []
        self.asked: list[str] = []
        self.called = asyncio.Event()
        self.answer: asyncio.Future[ChargeResult] = asyncio.get_running_loop().create_future()
        self.known: dict[str, ChargeResult] = {}
        self.away = False

    async def charge(self, key: str, amount: int, method: str) -> ChargeResult:
        self.charges.append(key)
        self.called.set()
        return await asyncio.shield(self.answer)

    async def status(self, key: str) -> ChargeResult | None:
        self.asked.append(key)
        if self.away:
            raise Unavailable("gateway")
        return self.known.get(key)


async def _payments(acting: Stage, ride_id: str) -> list[tuple[str, int, str | None]]:
    await acting.settled()
    return [(said.status, said.attempt, said.reason) for said in acting.ear.of(RidePayment, ride_id)]


async def _completions(acting: Stage, ride_id: str) -> int:
    await acting.settled()
    return len(acting.ear.of(RideCompleted, ride_id))


async def test_the_passenger_pays_and_the_ride_is_complete(tmp_path: Path) -> None:
    async with stage(tmp_path) as acting:
        ride_id, bill = await acting.at_the_end()
        acting.clock.advance(30)
        answer = await acting.pay(ride_id, bill.adjusted_cost)
        assert answer == PaymentStatus(payment_id=bill.payment_id, status="ACCEPTED")
        completed = await acting.ear.wait(RideCompleted)
        paid = await acting.ear.wait(RidePayment)
        assert (paid.version, completed.version) == (4, 5)
        assert (paid.amount, paid.method, paid.attempt, paid.status) == (15000, "simulated", 1, "ACCEPTED")
        assert completed.ride == await acting.ride(ride_id)
        assert (completed.ride.status, completed.ride.completed_at) == ("COMPLETED", acting.clock.now())
        assert completed.ride.payment is not None
        assert (completed.ride.payment.status, completed.ride.payment.attempts) == ("ACCEPTED", 1)
        assert await acting.charged() == 15000


async def test_paying_twice_charges_once(tmp_path: Path) -> None:
    async with stage(tmp_path) as acting:
        ride_id, bill = await acting.at_the_end()
        first = await acting.pay(ride_id, bill.adjusted_cost)
        assert await acting.pay(ride_id, bill.adjusted_cost) == first
        assert (await acting.pay(ride_id, 1)).status == "ACCEPTED"  # there is nothing left to be wrong about
        assert await acting.charged() == bill.adjusted_cost
        assert await _completions(acting, ride_id) == 1


@pytest.mark.parametrize("amount", [0, -15000, 14999, 15001, 10**30])
async def test_the_amount_must_be_the_adjusted_cost(tmp_path: Path, amount: int) -> None:
    async with stage(tmp_path) as acting:
        ride_id, _ = await acting.at_the_end()
        with pytest.raises(Invalid, match=rf"15000.*{amount}"):
            await acting.pay(ride_id, amount)
        assert await acting.attempts() == []


@pytest.mark.parametrize("method", ["", "Visa", "x" * 33, "a\x00", "a b", "1a"])
async def test_a_method_is_a_short_word(tmp_path: Path, method: str) -> None:
    async with stage(tmp_path) as acting:
        ride_id, bill = await acting.at_the_end()
        with pytest.raises(Invalid, match="method"):
            await acting.pay(ride_id, bill.adjusted_cost, method=method)
        assert await acting.attempts() == []


async def test_who_may_pay(tmp_path: Path) -> None:
    async with stage(tmp_path) as acting:
        ride_id, bill = await acting.at_the_end()
        for who, method in [("driver", "simulated"), ("passenger", "cash"), ("other", "simulated"), ("other", "cash")]:
            with pytest.raises(Forbidden):
                await acting.pay(ride_id, bill.adjusted_cost, who, method=method)
        assert await acting.charged() == 0
        assert (await acting.pay(ride_id, bill.adjusted_cost, "driver", method="cash")).status == "ACCEPTED"
        assert await acting.charged() == 0
        assert await acting.attempts() == [(1, "ACCEPTED", None)]
        assert await _completions(acting, ride_id) == 1


async def test_there_is_nothing_to_pay_before_the_arrival_or_after_a_cancellation(tmp_path: Path) -> None:
    async with stage(tmp_path) as acting:
        ride_id = await acting.picked_up("driver", "passenger")
        with pytest.raises(Conflict, match="PICKUP"):
            await acting.pay(ride_id, 1)
        await acting.cancel(ride_id)
        with pytest.raises(Conflict, match="CANCELLED"):
            await acting.pay(ride_id, 1)
        under_way = await acting.under_way()
        with pytest.raises(Conflict, match="ONGOING"):
            await acting.pay(under_way, 1)


async def test_a_refused_payment_can_be_paid_again(tmp_path: Path) -> None:
    async with stage(tmp_path) as acting:
        ride_id, bill = await acting.at_the_end()
        refused = await acting.pay(ride_id, bill.adjusted_cost, method="test_decline")
        assert refused == PaymentStatus(payment_id=bill.payment_id, status="REJECTED", reason="declined")
        ride = await acting.ride(ride_id)
        assert ride.status == "ARRIVED"
        assert ride.payment is not None
        assert ride.payment.status == "REJECTED"
        assert (await acting.pay(ride_id, bill.adjusted_cost, method="test_decline")).status == "REJECTED"
        assert (await acting.pay(ride_id, bill.adjusted_cost)).status == "ACCEPTED"
        assert await _payments(acting, ride_id) == [
            ("REJECTED", 1, "declined"),
            ("REJECTED", 2, "declined"),
            ("ACCEPTED", 3, None),
        ]
        assert await acting.charged() == bill.adjusted_cost


async def test_a_lost_answer_is_found_by_the_same_command(tmp_path: Path) -> None:
    async with stage(tmp_path) as acting:
        ride_id, bill = await acting.at_the_end()
        lost = await acting.pay(ride_id, bill.adjusted_cost, method="test_timeout")
        assert lost.status == "PENDING"
        assert (await acting.ride(ride_id)).status == "ARRIVED"
        assert (await acting.pay(ride_id, bill.adjusted_cost)).status == "ACCEPTED"
        assert await acting.charged() == bill.adjusted_cost
        assert await _payments(acting, ride_id) == [("ACCEPTED", 1, None)]
        assert await _completions(acting, ride_id) == 1


async def test_a_lost_answer_is_found_by_the_sweep(tmp_path: Path) -> None:
    async with stage(tmp_path, settle_after=10.0) as acting:
        ride_id, bill = await acting.at_the_end()
        await acting.pay(ride_id, bill.adjusted_cost, method="test_timeout")
        await acting.sweep()
        assert (await acting.ride(ride_id)).status == "ARRIVED"
        acting.clock.advance(10.001)
        await asyncio.gather(acting.sweep(), acting.sweep())  # two pods
        assert (await acting.ride(ride_id)).status == "COMPLETED"
        assert await _payments(acting, ride_id) == [("ACCEPTED", 1, None)]
        assert await acting.charged() == bill.adjusted_cost


async def test_a_charge_that_never_reached_the_gateway_is_lost_and_can_be_paid_again(tmp_path: Path) -> None:
    gateway = Slow()
    gateway.answer.set_exception(Unavailable("gateway"))
    async with stage(tmp_path, gateway=gateway) as acting:
        ride_id, bill = await acting.at_the_end()
        assert (await acting.pay(ride_id, bill.adjusted_cost)).status == "PENDING"
        # It may still be on its way: neither lost nor charged anew.
        assert (await acting.pay(ride_id, bill.adjusted_cost)).status == "PENDING"
        acting.clock.advance(11)
        gateway.away = True
        await acting.sweep()
        assert await acting.attempts() == [(1, "PENDING", None)]
        gateway.away = False
        await acting.sweep()
        assert await acting.attempts() == [(1, "REJECTED", "lost")]
        assert gateway.charges == [f"{bill.payment_id}-1"]
        gateway.answer = asyncio.get_running_loop().create_future()
        gateway.answer.set_result(ChargeResult(status="charged"))
        assert (await acting.pay(ride_id, bill.adjusted_cost)).status == "ACCEPTED"
        assert gateway.charges == [f"{bill.payment_id}-1", f"{bill.payment_id}-2"]


async def test_a_gateway_that_hangs_is_waited_for_no_longer_than_the_timeout(tmp_path: Path) -> None:
    async with stage(tmp_path, gateway=Slow(), charge_timeout=0.01) as acting:
        ride_id, bill = await acting.at_the_end()
        assert (await acting.pay(ride_id, bill.adjusted_cost)).status == "PENDING"


async def test_two_payments_at_once_make_one_charge(tmp_path: Path) -> None:
    gateway = Slow()
    async with stage(tmp_path, gateway=gateway) as acting:
        ride_id, bill = await acting.at_the_end()
        first = asyncio.create_task(acting.pay(ride_id, bill.adjusted_cost))
        await gateway.called.wait()
        assert (await acting.pay(ride_id, bill.adjusted_cost)).status == "PENDING"
        gateway.known[f"{bill.payment_id}-1"] = ChargeResult(status="charged")
        assert (await acting.pay(ride_id, bill.adjusted_cost)).status == "ACCEPTED"  # faster than the first
        gateway.answer.set_result(ChargeResult(status="charged"))
        assert (await first).status == "ACCEPTED"
        assert gateway.charges == [f"{bill.payment_id}-1"]
        assert await _payments(acting, ride_id) == [("ACCEPTED", 1, None)]
        assert await _completions(acting, ride_id) == 1


async def test_who_walks_away_owes_and_locks_nobody(tmp_path: Path) -> None:
    async with stage(tmp_path, payment_ttl=900.0) as acting:
        ride_id, bill = await acting.at_the_end()
        acting.clock.advance(900)
        await acting.sweep()
        assert (await acting.ride(ride_id)).status == "ARRIVED"
        acting.clock.advance(0.001)
        await asyncio.gather(acting.sweep(), acting.sweep())  # two pods
        completed = await acting.ear.wait(RideCompleted)
        assert completed.ride.payment is not None
        assert (completed.ride.status, completed.ride.payment.status) == ("COMPLETED", "OVERDUE")
        assert await _payments(acting, ride_id) == [("OVERDUE", 0, None)]
        owed = await acting.of_user("passenger")
        assert owed.payment_due
        assert owed.ride == completed.ride
        assert (await acting.of_user("driver")).ride is None
        # A refused card lifts no bar; the fare, when it comes, does.
        assert (await acting.pay(ride_id, bill.adjusted_cost, method="test_decline")).status == "REJECTED"
        assert (await acting.of_user("passenger")).payment_due
        assert (await acting.pay(ride_id, bill.adjusted_cost)).status == "ACCEPTED"
        assert not (await acting.of_user("passenger")).payment_due
        assert await _completions(acting, ride_id) == 1
        ride = await acting.ride(ride_id)
        assert ride.completed_at == completed.ride.completed_at
        versions = [said.version for said in acting.ear.heard]
        assert versions == sorted(set(versions))


async def test_a_ride_with_an_open_try_is_not_overdue(tmp_path: Path) -> None:
    gateway = Slow()
    gateway.answer.set_exception(Unavailable("gateway"))
    gateway.away = True
    async with stage(tmp_path, gateway=gateway, payment_ttl=900.0) as acting:
        ride_id, bill = await acting.at_the_end()
        await acting.pay(ride_id, bill.adjusted_cost)
        acting.clock.advance(5000)
        await acting.sweep()
        assert (await acting.ride(ride_id)).status == "ARRIVED"
        gateway.away = False
        gateway.known[f"{bill.payment_id}-1"] = ChargeResult(status="charged")
        await acting.sweep()
        ride = await acting.ride(ride_id)
        assert ride.payment is not None
        assert (ride.status, ride.payment.status) == ("COMPLETED", "ACCEPTED")


async def test_the_simulated_gateway_takes_once_per_key(tmp_path: Path) -> None:
    async with stage(tmp_path) as acting:
        gateway = SimulatedGateway(acting.database)
        assert await gateway.status("a-1") is None
        for _ in range(2):
            assert await gateway.charge("a-1", 500, "gopay") == ChargeResult(status="charged")
        assert (await gateway.charge("a-2", 500, "test_decline")).status == "refused"
        assert (await gateway.charge("a-2", 500, "gopay")).status == "refused"
        for _ in range(2):
            with pytest.raises(Unavailable):
                await gateway.charge("a-3", 70, "test_timeout")
        another_pod = SimulatedGateway(acting.database)
        assert await another_pod.status("a-3") == ChargeResult(status="charged")
        assert await acting.charged() == 570
        assert acting.clock.now() == NOON
