"""Each check passes on a clean run and finds the one fault that was planted for it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from msgspec import structs

from nebengjek.contracts.geo import Location
from nebengjek.contracts.rides import LedgerEntry, Payment, Ride, RideDetails
from nebengjek.simulate.checks import CHECKS, Evidence, half_up, run_checks
from nebengjek.simulate.people import Outcome
from nebengjek.simulate.phone import Heard, Tally
from nebengjek.simulate.report import figures_of, percentile

START = datetime(2026, 1, 1, tzinfo=UTC)
MONAS = Location(latitude=-6.1754, longitude=106.8272)
BLOK_M = Location(latitude=-6.2443, longitude=106.8)
NAMES = list(CHECKS)


def ride(number: int, *, driver: str = "driver", kilometres: float = 2.5, factor: float = 0.9) -> RideDetails:
    total = half_up(round(kilometres * 1000) * 3, 1)
    adjusted = half_up(total * round(factor * 100), 100)
    fee = half_up(adjusted * 5, 100)
    opened = START + timedelta(minutes=10 * number)
    return RideDetails(
        ride_id=f"ride-{number}",
        match_id=f"match-{number}",
        driver_id=driver,
        passenger_id=f"passenger-{number}",
        status="COMPLETED",
        location=MONAS,
        target_location=BLOK_M,
        distance_km=kilometres,
        total_cost=total,
        adjustment_factor=factor,
        adjusted_cost=adjusted,
        admin_fee=fee,
        driver_payout=adjusted - fee,
        payment=Payment(payment_id=f"payment-{number}", status="ACCEPTED", method="ewallet", attempts=1),
        created_at=opened,
        started_at=opened + timedelta(minutes=1),
        arrived_at=opened + timedelta(minutes=5),
        completed_at=opened + timedelta(minutes=6),
        cancelled_at=None,
        cancel_reason=None,
        ledger=[
            LedgerEntry(sequence=1, distance_km=1.0, cost=3000, created_at=opened),
            LedgerEntry(sequence=2, distance_km=kilometres - 1.0, cost=total - 3000, created_at=opened),
        ],
    )


def history(*rides: Ride) -> list[Heard]:
    lines = []
    for one in rides:
        lines += [
            Heard(0, "match.found", one.match_id, "PENDING"),
            Heard(0, "match.found", one.match_id, "DRIVER_CONFIRMED"),
            Heard(0, "match.accepted", one.match_id, "ACCEPTED"),
            Heard(0, "ride.pickup", one.ride_id, "PICKUP"),
            Heard(0, "ride.started", one.ride_id, "ONGOING"),
            Heard(0, "ride.arrived", one.ride_id, "ARRIVED"),
            Heard(0, "ride.completed", one.ride_id, "COMPLETED"),
        ]
    return lines


def outcome(one: RideDetails) -> Outcome:
    return Outcome(
        trip_id=f"trip of {one.ride_id}",
        passenger_id=one.passenger_id,
        driver_id=one.driver_id,
        ride_id=one.ride_id,
        match_id=one.match_id,
        state="paid",
        true_km=one.distance_km,
        factor=one.adjustment_factor,
    )


def clean() -> Evidence:
    """Two rides of one driver, one after the other."""
    rides = [ride(1), ride(2, kilometres=7.001, factor=0.95)]
    plain = [msgspec.convert(msgspec.to_builtins(one), Ride) for one in rides]
    return Evidence(
        outcomes=[outcome(one) for one in rides],
        rides={one.ride_id: one for one in rides},
        lists={"driver": plain[::-1], "passenger-1": plain[:1], "passenger-2": plain[1:]},
        histories={"driver": history(*rides), "passenger-1": history(rides[0]), "passenger-2": history(rides[1])},
        dead_letters=0,
    )


def with_ride(**changes: Any) -> Evidence:
    """The first ride differs in the server's words."""
    evidence = clean()
    return structs.replace(evidence, rides={**evidence.rides, "ride-1": structs.replace(ride(1), **changes)})


def with_outcome(**changes: Any) -> Evidence:
    evidence = clean()
    return structs.replace(evidence, outcomes=[structs.replace(evidence.outcomes[0], **changes), evidence.outcomes[1]])


def with_history(user_id: str, change: Callable[[list[Heard]], list[Heard]]) -> Evidence:
    evidence = clean()
    return structs.replace(
        evidence, histories={**evidence.histories, user_id: change(list(evidence.histories[user_id]))}
    )


def with_list(user_id: str, index: int, **changes: Any) -> Evidence:
    evidence = clean()
    rides = list(evidence.lists[user_id])
    rides[index] = structs.replace(rides[index], **changes)
    return structs.replace(evidence, lists={**evidence.lists, user_id: rides})


def without(event: str, about: str) -> Callable[[list[Heard]], list[Heard]]:
    return lambda lines: [line for line in lines if (line.event, line.id) != (event, about)]


def plus(line: Heard, at: int | None = None) -> Callable[[list[Heard]], list[Heard]]:
    return lambda lines: [*lines[:at], line, *(lines[at:] if at is not None else [])]


def test_a_clean_run_passes_and_every_check_has_looked_at_something() -> None:
    results = run_checks(clean())
    assert [result.name for result in results if not result.passed] == []
    assert [result.name for result in results if not result.looked_at] == ["no dead letters"]


@pytest.mark.parametrize(
    ("name", "evidence", "offender"),
    [
        ("every trip ended, paid or cancelled", with_outcome(state="riding"), "trip of ride-1: riding"),
        ("client's account = server's bill (±1 % or 20 m)", with_outcome(true_km=2.53), "ride-1"),
        ("client's account = server's bill (±1 % or 20 m)", with_outcome(true_km=2.47), "ride-1"),
        ("client's account = server's bill (±1 % or 20 m)", with_outcome(ride_id="ride-9"), "ride-9"),
        ("fare = distance x rate", with_ride(distance_km=2.502), "ride-1"),
        ("fare = payout + fee", with_ride(driver_payout=6400), "ride-1"),
        ("fare = payout + fee", with_ride(admin_fee=337, driver_payout=6413), "ride-1"),
        ("fare = payout + fee", with_ride(adjusted_cost=6751), "ride-1"),
        ("fare = payout + fee", with_ride(driver_payout=None), "ride-1"),
        ("sum of the ledger = distance", with_ride(ledger=ride(1).ledger[:1]), "ride-1"),
        ("sum of the ledger = distance", with_ride(ledger=[*ride(1).ledger[:1], *ride(1).ledger[:1]]), "ride-1"),
        ("every completed ride is paid", with_ride(payment=None), "ride-1"),
        (
            "every completed ride is paid",
            with_ride(payment=Payment(payment_id="p", status="OVERDUE", method=None, attempts=1)),
            "ride-1",
        ),
        ("declined payments were tried again", with_outcome(refused_payments=1), "ride-1"),
        (
            "every accepted match ended in a ride",
            with_history("driver", plus(Heard(0, "match.accepted", "match-9", "ACCEPTED"))),
            "match-9",
        ),
        ("every ride is completed or cancelled", with_list("passenger-1", 0, ride_id="r9", status="ONGOING"), "r9"),
        ("nobody in two open rides", with_list("driver", 0, created_at=START + timedelta(minutes=15)), "ride-2"),
        (
            "nobody in two open rides",
            with_history("driver", plus(Heard(0, "ride.pickup", "ride-2", "PICKUP"), at=4)),
            "heard of ride-2 while ride-1",
        ),
        (
            "every match.found had an end",
            with_history("driver", plus(Heard(0, "match.found", "match-9", "PENDING"))),
            "match-9 for driver",
        ),
        (
            "every match.found had an end",
            with_history("passenger-1", without("match.accepted", "match-1")),
            "match-1 for passenger-1",
        ),
        (
            "both phones heard the end of the ride",
            with_history("passenger-2", without("ride.completed", "ride-2")),
            "passenger-2",
        ),
        ("no numbered frame was missed", structs.replace(clean(), gaps=1), "1 numbered"),
        ("no plausible point was refused", structs.replace(clean(), points_refused=2), "2 points"),
        ("no dead letters", structs.replace(clean(), dead_letters=3), "3 dead letters"),
    ],
)
def test_a_planted_fault_is_found(name: str, evidence: Evidence, offender: str) -> None:
    found = {result.name: result.offenders for result in run_checks(evidence)}
    assert len(found[name]) == 1
    assert offender in found[name][0]


def test_every_check_has_a_planted_fault() -> None:
    (mark,) = test_a_planted_fault_is_found.pytestmark  # type: ignore[attr-defined]
    assert {name for name, _, _ in mark.args[1]} == set(NAMES)


def test_the_odometer_may_keep_twenty_metres_back() -> None:
    for true_km in (2.476, 2.524):
        assert all(result.passed for result in run_checks(with_outcome(true_km=true_km)))
    short = structs.replace(ride(1, kilometres=1.2), distance_km=1.2)
    evidence = structs.replace(clean(), rides={**clean().rides, "ride-1": short})
    evidence.outcomes[0].true_km = 1.219
    assert all(result.passed for result in run_checks(evidence))


def test_a_cancelled_ride_is_an_end_of_its_match() -> None:
    cancelled = structs.replace(
        ride(1), status="CANCELLED", total_cost=None, completed_at=None, cancelled_at=START + timedelta(minutes=12)
    )
    evidence = clean()
    lines = [line for line in history(ride(1)) if line.status not in ("ONGOING", "ARRIVED", "COMPLETED")]
    lines.append(Heard(0, "ride.cancelled", "ride-1", "CANCELLED"))
    plain = msgspec.convert(msgspec.to_builtins(cancelled), Ride)
    evidence = structs.replace(
        evidence,
        outcomes=[structs.replace(evidence.outcomes[0], state="cancelled"), evidence.outcomes[1]],
        rides={**evidence.rides, "ride-1": cancelled},
        lists={**evidence.lists, "driver": [evidence.lists["driver"][0], plain], "passenger-1": [plain]},
        histories={**evidence.histories, "passenger-1": lines, "driver": [*lines, *history(ride(2))]},
    )
    assert [result.offenders for result in run_checks(evidence) if not result.passed] == []


def test_what_the_server_did_not_show_is_neither_right_nor_wrong() -> None:
    results = run_checks(structs.replace(clean(), dead_letters=None))
    assert [result.name for result in results if result.skipped] == ["no dead letters"]


def test_figures_are_sums_of_the_server_s_words() -> None:
    figures = figures_of(clean(), Tally(points=100), seconds=10, speed=60)
    assert (figures.completed, figures.cancelled, figures.unfinished) == (2, 0, 0)
    assert figures.billed_km == pytest.approx(9.501)
    assert figures.fares == 7500 + 21003
    assert figures.asked == 6750 + 19953
    assert figures.payouts + figures.fees == figures.asked
    assert figures.points_per_second == 10


def test_percentiles() -> None:
    values = [float(value) for value in range(1, 101)]
    assert (percentile(values, 50), percentile(values, 95), percentile([], 50)) == (51, 96, 0)
