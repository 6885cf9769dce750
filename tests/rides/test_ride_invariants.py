"""Whatever people do, in whatever order and at the same time: what always holds of rides, ledgers and payments."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from nebengjek.contracts.location import LocationAggregate
from nebengjek.contracts.message import uuid7
from nebengjek.contracts.rides import RideCompleted, RidePayment, RidePickup
from nebengjek.errors import Rejected
from nebengjek.rides.fares import Tariff, millimetres
from nebengjek.rides.store import RideRow
from nebengjek.rides.tables import ledger, payment_attempts, payments, rides
from tests.rides.stage import MONAS, NOON, Stage, stage

MOVES = {
    "PICKUP": {"PICKUP", "ONGOING", "CANCELLED", "ARRIVED", "COMPLETED"},
    "ONGOING": {"ONGOING", "ARRIVED", "COMPLETED", "CANCELLED"},
    "ARRIVED": {"ARRIVED", "COMPLETED"},
    "COMPLETED": {"COMPLETED"},
    "CANCELLED": {"CANCELLED"},
}
"""What may be seen after a step in which several things happened at once."""

PEOPLE = ["ani", "budi", "citra", "dewi"]
OPEN = {"PICKUP", "ONGOING", "ARRIVED"}

NewUrl = Callable[[], str]

people = st.sampled_from(PEOPLE)
which = st.integers(0, 5)
deeds = st.one_of(
    st.tuples(st.just("accept"), people, people),
    st.tuples(st.just("start"), which, people),
    st.tuples(st.just("start as driver"), which),
    st.tuples(st.just("drive"), which, st.integers(1, 4), st.floats(0, 30)),
    st.tuples(st.just("arrive"), which, people, st.sampled_from([1.0, 0.5, 0.333, 1e-9, 0.0, 2.0])),
    st.tuples(st.just("arrive as driver"), which, st.sampled_from([1.0, 0.7, 1e-9])),
    st.tuples(st.just("pay"), which, people, st.sampled_from(["simulated", "test_decline", "test_timeout", "cash"])),
    st.tuples(st.just("pay as passenger"), which, st.sampled_from(["simulated", "test_decline", "test_timeout"])),
    st.tuples(st.just("pay wrong"), which, people, st.integers(-5, 5)),
    st.tuples(st.just("cancel"), which, people),
    st.tuples(st.just("operator"), which, st.sampled_from(["arrive", "cancel"])),
    st.tuples(st.just("wait"), st.sampled_from([1, 20, 1000, 8000])),
    st.tuples(st.just("sweep")),
)
steps = st.lists(st.lists(deeds, min_size=1, max_size=3), min_size=5, max_size=25)


@dataclass
class Street:
    """Does what people do, and looks at the tables after each step."""

    acting: Stage
    operate: Callable[[str, str], Awaitable[object]]

    def __post_init__(self) -> None:
        self.rides: list[str] = []
        self.seen: dict[str, str] = {}
        self.outcomes: Counter[str] = Counter()

    async def step(self, doing: list[tuple[Any, ...]]) -> None:
        await asyncio.gather(*(self._do(*deed) for deed in doing))
        await self.acting.settled()
        self.rides = [said.ride_id for said in self.acting.ear.heard if isinstance(said, RidePickup)]
        await self._look()

    async def _do(self, deed: str, *details: Any) -> None:
        try:
            await self._attempt(deed, *details)
        except Rejected as error:  # anything else, a failure inside a handler above all, ends the test
            self.outcomes[f"{deed}: {type(error).__name__}"] += 1
        else:
            self.outcomes[f"{deed}: done"] += 1

    async def _attempt(self, deed: str, *details: Any) -> None:
        acting = self.acting
        if deed == "accept":
            driver, passenger = details
            if driver != passenger:
                await acting.bus.publish(acting.accepted(driver, passenger))
        elif deed == "wait":
            acting.clock.advance(details[0])
        elif deed == "sweep":
            await acting.sweep()
        elif self.rides:
            ride_id = self.rides[-1 - details[0] % len(self.rides)]
            await self._to_ride(deed, ride_id, *details[1:])

    async def _to_ride(self, deed: str, ride_id: str, *details: Any) -> None:
        acting = self.acting
        row = await _row(acting, ride_id)
        amount = row.adjusted_cost or 0
        if deed == "start":
            await acting.start(ride_id, details[0])
        elif deed == "start as driver":
            await acting.start(ride_id, row.driver_id)
        elif deed == "drive":
            acting.odometer.total_km = details[1]
            await acting.drive(ride_id, details[0], 0.0, details[1])
        elif deed == "arrive":
            await acting.arrive(ride_id, details[0], factor=details[1])
        elif deed == "arrive as driver":
            await acting.arrive(ride_id, row.driver_id, factor=details[0])
        elif deed == "pay":
            await acting.pay(ride_id, amount, details[0], method=details[1])
        elif deed == "pay as passenger":
            await acting.pay(ride_id, amount, row.passenger_id, method=details[0])
        elif deed == "pay wrong":
            await acting.pay(ride_id, amount + details[1], details[0])
        elif deed == "cancel":
            await acting.cancel(ride_id, details[0])
        else:
            await self.operate(details[0], ride_id)

    async def _look(self) -> None:
        async with self.acting.database.read() as connection:
            rows = [RideRow(**row._mapping) for row in await connection.execute(select(rides))]
            entries = (await connection.execute(select(ledger))).all()
            bills = {row.ride_id: row for row in await connection.execute(select(payments))}
            tries = (await connection.execute(select(payment_attempts))).all()
        aboard = Counter(who for row in rows if row.status in OPEN for who in row.parties)
        assert not aboard or max(aboard.values()) == 1
        assert len({row.match_id for row in rows}) == len(rows)
        charged = 0
        for row in rows:
            assert row.status in MOVES[self.seen.get(row.ride_id, "PICKUP")]
            self.seen[row.ride_id] = row.status
            booked = [entry for entry in entries if entry.ride_id == row.ride_id]
            mine = [one for one in tries if one.ride_id == row.ride_id]
            assert sum(entry.distance_mm for entry in booked) == row.distance_mm
            charged += self._look_at_bill(row, sum(entry.cost for entry in booked), bills.get(row.ride_id), mine)
            self._listen(row)
        # Money that the gateway took for a try whose answer was lost is found by the next look at that try.
        lost = sum(one.amount for one in tries if one.status == "PENDING")
        assert charged <= await self.acting.charged() <= charged + lost

    def _look_at_bill(self, row: RideRow, costs: int, bill: Any, tries: list[Any]) -> int:
        """Return what the gateway was seen to take for this ride."""
        assert (bill is not None) == (row.status in {"ARRIVED", "COMPLETED"})
        if bill is None:
            assert tries == []
            return 0
        assert costs == row.total_cost == Tariff(3000).fare_mm(row.distance_mm)
        assert row.adjusted_cost == bill.amount
        assert (row.admin_fee or 0) + (row.driver_payout or 0) == bill.amount
        accepted = [one for one in tries if one.status == "ACCEPTED"]
        assert len(accepted) == (1 if bill.status == "ACCEPTED" and bill.amount else 0)
        assert [one.attempt for one in tries] == list(range(1, bill.attempts + 1))
        assert sum(one.status == "PENDING" for one in tries) <= 1
        assert row.status == "COMPLETED" or bill.status in {"PENDING", "REJECTED"}
        assert row.status == "ARRIVED" or bill.status in {"ACCEPTED", "OVERDUE"}
        return sum(one.amount for one in accepted if one.method != "cash")

    def _listen(self, row: RideRow) -> None:
        """Each event about a ride has its own number, none is left out, and the last word is the row's state."""
        heard = [said for said in self.acting.ear.heard if said.ride_id == row.ride_id]
        assert sorted(said.version for said in heard) == list(range(1, row.version + 1))
        completed = [said for said in heard if isinstance(said, RideCompleted)]
        assert len(completed) == (row.status == "COMPLETED")
        assert sum(isinstance(said, RidePayment) and said.status == "ACCEPTED" for said in heard) <= 1


async def _row(acting: Stage, ride_id: str) -> RideRow:
    async with acting.database.read() as connection:
        found = await connection.execute(select(rides).where(rides.c.ride_id == ride_id))
        return RideRow(**found.one()._mapping)


def _operators(acting: Stage) -> Callable[[str, str], Awaitable[object]]:
    service, meter = (hearing.handler.__self__ for hearing in acting.module.hears)  # type: ignore[attr-defined]

    async def operate(what: str, ride_id: str) -> object:
        if what == "arrive":
            return await meter.admin_arrive(ride_id)
        return await service.admin_cancel(ride_id, None)

    return operate


async def _live(url: str, doings: list[list[tuple[Any, ...]]]) -> Counter[str]:
    async with stage(url) as acting:
        for who in PEOPLE:
            acting.odometer.put(who, MONAS)
        street = Street(acting, _operators(acting))
        beginning: list[list[tuple[Any, ...]]] = [
            [("accept", "ani", "budi"), ("accept", "citra", "dewi")],
            [("start as driver", 0)],
        ]
        for doing in beginning + doings:
            await street.step(doing)
        return street.outcomes


# The fixture hands out another database for each example.
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps)
def test_no_command_breaks_an_invariant(new_url: NewUrl, doings: list[list[tuple[Any, ...]]]) -> None:
    with asyncio.Runner() as runner:
        runner.run(_live(new_url(), doings))


async def test_a_long_day_reaches_every_state(new_url: NewUrl) -> None:
    """The steps above are worth something only if rides get anywhere in them."""
    day: list[list[tuple[Any, ...]]] = [
        [("accept", "ani", "citra"), ("accept", "budi", "dewi"), ("cancel", 0, "ani"), ("start as driver", 1)],
        [("operator", 0, "cancel"), ("operator", 1, "cancel")],
        [("accept", "citra", "dewi")],
        [("start as driver", 0)],
        [("drive", 0, 1, 4.0), ("drive", 0, 2, 9.5)],
        [("arrive as driver", 0, 0.7), ("arrive as driver", 0, 1.0), ("operator", 0, "arrive")],
        [("pay as passenger", 0, "test_decline")],
        [("pay as passenger", 0, "test_timeout"), ("pay as passenger", 0, "simulated")],
        [("wait", 20)],
        [("sweep",), ("sweep",)],
        [("accept", "ani", "dewi"), ("accept", "ani", "dewi")],
        [("start as driver", 0)],
        [("operator", 0, "cancel"), ("drive", 0, 1, 3.0)],
        [("accept", "ani", "dewi")],
        [("start as driver", 0)],
        [("arrive as driver", 0, 1.0)],
        [("wait", 1000)],
        [("sweep",), ("pay as passenger", 0, "simulated")],
    ]
    outcomes = await _live(new_url(), day)
    assert outcomes["pay as passenger: done"] >= 3
    assert outcomes["arrive as driver: done"] >= 2


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.floats(0.001, 5), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
    st.floats(0, 1),
)
def test_aggregates_in_any_order_lost_or_twice_bill_what_was_driven(
    new_url: NewUrl, hops: list[float], chance: Any, remainder: float
) -> None:
    totals = [sum(hops[: n + 1]) for n in range(len(hops))]
    said = [n for n in range(len(hops)) if chance.random() < 0.7]
    said += [n for n in said if chance.random() < 0.5]
    chance.shuffle(said)
    driven = totals[-1] + remainder

    async def ride() -> None:
        async with stage(new_url()) as acting:
            ride_id = await acting.under_way()
            for n in said:
                event = LocationAggregate(ride_id=ride_id, sequence=n + 1, distance_km=hops[n], total_km=totals[n])
                # Without headers, as `nats pub` does: each is a message of its own, the stream keeps both.
                await acting.bus.broker.submit(f"location.aggregate.{ride_id}", msgspec.json.encode(event), {})
            await acting.settled()
            acting.odometer.total_km, acting.odometer.sequence = driven, len(hops)
            bill = await acting.arrive(ride_id)
            assert bill.distance_km == millimetres(driven) / 1_000_000
            assert bill.total_cost == Tariff(3000).fare_mm(millimetres(driven))
            async with acting.database.read() as connection:
                entries = (await connection.execute(select(ledger))).all()
            assert sum(entry.distance_mm for entry in entries) == millimetres(driven)
            assert sum(entry.cost for entry in entries) == bill.total_cost
            assert max(entry.sequence for entry in entries) == len(hops) + 1

    with asyncio.Runner() as runner:
        runner.run(ride())


def _a_ride(**changes: Any) -> dict[str, Any]:
    row = RideRow(
        ride_id=uuid7(),
        match_id=uuid7(),
        driver_id="d",
        passenger_id="p",
        status="PICKUP",
        version=1,
        latitude=0,
        longitude=0,
        target_latitude=0,
        target_longitude=0,
        rate_per_km=3000,
        minimum_fare=0,
        created_at=NOON,
    )
    return {name: getattr(row, name) for name in row.__struct_fields__} | changes


async def test_the_database_itself_refuses_what_may_never_be(new_url: NewUrl) -> None:
    async with stage(new_url()) as acting:
        ride_id, bill = await acting.at_the_end()
        first = await _row(acting, ride_id)
        one_try = {
            "payment_id": bill.payment_id,
            "ride_id": ride_id,
            "amount": bill.adjusted_cost,
            "method": "simulated",
            "created_at": NOON,
        }
        ended = {"finished_at": NOON}
        this = rides.c.ride_id == ride_id
        never: dict[str, list[Any]] = {
            "two rides of a match": [insert(rides).values(_a_ride(match_id=first.match_id))],
            "two open rides of a driver": [insert(rides).values(_a_ride(driver_id="driver"))],
            "two open rides of a passenger": [insert(rides).values(_a_ride(passenger_id="passenger"))],
            "a ride with oneself": [insert(rides).values(_a_ride(driver_id="p"))],
            "a state that is none": [update(rides).where(this).values(status="LOST")],
            "an arrival without a bill": [insert(rides).values(_a_ride(status="ARRIVED", started_at=NOON))],
            "a bill before the arrival": [update(rides).where(this).values(status="ONGOING")],
            "a start that never was": [insert(rides).values(_a_ride(status="ONGOING"))],
            "parts that make another whole": [update(rides).where(this).values(admin_fee=1)],
            "more than the fare": [update(rides).where(this).values(adjusted_cost=15001, driver_payout=14251)],
            "a factor above one": [update(rides).where(this).values(adjustment_factor=1.1)],
            "a way back": [insert(ledger).values(ride_id=ride_id, sequence=9, distance_mm=-1, cost=0, created_at=NOON)],
            "a sequence twice": [
                insert(ledger).values(ride_id=ride_id, sequence=1, distance_mm=1, cost=0, created_at=NOON)
            ],
            "two payments of a ride": [
                insert(payments).values(
                    payment_id=uuid7(), ride_id=ride_id, amount=1, status="PENDING", attempts=0, created_at=NOON
                )
            ],
            "two open tries": [
                insert(payment_attempts).values(one_try | {"attempt": n, "status": "PENDING"}) for n in (1, 2)
            ],
            "two accepted tries": [
                insert(payment_attempts).values(one_try | ended | {"attempt": n, "status": "ACCEPTED"}) for n in (1, 2)
            ],
            "paid and not paid": [update(payments).values(status="ACCEPTED")],
        }
        for what, statements in never.items():
            assert await _refuses(acting, statements), f"the database took {what}"
        assert await _row(acting, ride_id) == first


async def _refuses(acting: Stage, statements: list[Any]) -> bool:
    try:
        async with acting.database.begin() as tx:
            for statement in statements:
                await tx.execute(statement)
    except IntegrityError:
        return True
    return False
