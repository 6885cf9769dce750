"""What must be true after a run: pure functions from what was seen to the ids that contradict.

A check says how much it looked at and who offends; no offender = passed. The server's words are those of
``GET /rides/{id}`` and ``GET /rides``, the client's are its own account of every drive and every phone's history.
"""

from collections.abc import Callable, Iterable
from itertools import pairwise

from msgspec import Struct

from nebengjek.contracts.rides import Ride, RideDetails
from nebengjek.simulate.people import Outcome
from nebengjek.simulate.phone import MATCH_RANK, RIDE_RANK, Heard

RATE_PER_KM = 3000
FEE_PERCENT = 5
TOLERANCE = 0.01
RESOLUTION_KM = 0.02
"""The odometer keeps moves below 10 m back, at the start and at the end."""
ENDED = ("COMPLETED", "CANCELLED")


class Evidence(Struct, frozen=True, kw_only=True):
    """All that was seen. ``noise_m``: the phones' GPS error, which both ends of a way have."""

    outcomes: list[Outcome]
    rides: dict[str, RideDetails]
    """What the server says of each ride that a client knows, by id."""
    lists: dict[str, list[Ride]]
    """``GET /rides`` of each user."""
    histories: dict[str, list[Heard]]
    noise_m: float = 0.0
    dead_letters: int | None = 0
    """None when the server did not let us look."""
    points_refused: int = 0
    gaps: int = 0


class Result(Struct, frozen=True, kw_only=True):
    """``looked_at``: how many things; ``offenders``: ids, each with what is wrong."""

    name: str
    looked_at: int
    offenders: list[str]
    skipped: bool = False
    """There was nothing to look at: neither right nor wrong."""

    @property
    def passed(self) -> bool:
        return not self.offenders


def run_checks(evidence: Evidence) -> list[Result]:
    """Every check, in the order of the report."""
    results = []
    for name, check in CHECKS.items():
        looked_at, offenders = check(evidence)
        skipped = check is _no_dead_letters and evidence.dead_letters is None
        results.append(Result(name=name, looked_at=looked_at, offenders=offenders, skipped=skipped))
    return results


Finding = tuple[int, list[str]]


def half_up(numerator: int, denominator: int) -> int:
    """Rounded to a whole number, 0.5 goes up; exact."""
    return (2 * numerator + denominator) // (2 * denominator)


def _every_trip_ended(evidence: Evidence) -> Finding:
    bad = [
        f"{one.trip_id}: {one.state} {one.problem or ''}".rstrip()
        for one in evidence.outcomes
        if one.state not in ("paid", "cancelled")
    ]
    return len(evidence.outcomes), bad


def _billed_what_was_driven(evidence: Evidence) -> Finding:
    """The client's account: kilometres that the car drove x rate, within 1 % or the odometer's resolution."""
    bad = []
    driven = [one for one in evidence.outcomes if one.state == "paid"]
    for one in driven:
        ride = evidence.rides.get(one.ride_id)
        if ride is None:
            bad.append(f"{one.ride_id}: the server does not know it")
            continue
        allowed = max(one.true_km * TOLERANCE, RESOLUTION_KM, 4 * evidence.noise_m / 1000)
        expected = one.true_km * RATE_PER_KM
        if ride.total_cost is None or abs(ride.total_cost - expected) > allowed * RATE_PER_KM:
            bad.append(f"{one.ride_id}: billed {ride.total_cost} for {one.true_km:.3f} km, expected {expected:.0f}")
    return len(driven), bad


def _distance_times_rate(evidence: Evidence) -> Finding:
    billed = [ride for ride in evidence.rides.values() if ride.total_cost is not None]
    bad = [
        f"{ride.ride_id}: {ride.distance_km} km cost {ride.total_cost}"
        for ride in billed
        # A rounded distance in the answer may hide half a rupiah of the exact one.
        if abs((ride.total_cost or 0) - ride.distance_km * RATE_PER_KM) > 2
    ]
    return len(billed), bad


def _money_adds_up(evidence: Evidence) -> Finding:
    """adjusted = round(total x factor), fee = round(5 % of it), fare = payout + fee."""
    billed = [ride for ride in evidence.rides.values() if ride.total_cost is not None]
    bad = []
    factors = {one.ride_id: one.factor for one in evidence.outcomes}
    for ride in billed:
        total, adjusted = ride.total_cost or 0, ride.adjusted_cost
        fee, payout = ride.admin_fee, ride.driver_payout
        if adjusted is None or fee is None or payout is None:
            bad.append(f"{ride.ride_id}: the bill is not complete")
            continue
        percent = round((factors.get(ride.ride_id) or 1.0) * 100)
        if adjusted != half_up(total * percent, 100):
            bad.append(f"{ride.ride_id}: {percent} % of {total} is not {adjusted}")
        elif fee != half_up(adjusted * FEE_PERCENT, 100):
            bad.append(f"{ride.ride_id}: {FEE_PERCENT} % of {adjusted} is not {fee}")
        elif adjusted != fee + payout:
            bad.append(f"{ride.ride_id}: fare {adjusted}, but fee {fee} + payout {payout}")
    return len(billed), bad


def _ledger_is_the_distance(evidence: Evidence) -> Finding:
    billed = [ride for ride in evidence.rides.values() if ride.total_cost is not None]
    bad = []
    for ride in billed:
        sequences = [entry.sequence for entry in ride.ledger]
        booked = sum(entry.distance_km for entry in ride.ledger)
        if len(set(sequences)) != len(sequences):
            bad.append(f"{ride.ride_id}: a ledger sequence twice: {sequences}")
        elif abs(booked - ride.distance_km) > 1e-3:
            bad.append(f"{ride.ride_id}: ledger {booked:.4f} km, ride {ride.distance_km:.4f} km")
    return len(billed), bad


def _every_ride_paid(evidence: Evidence) -> Finding:
    completed = [ride for ride in evidence.rides.values() if ride.status == "COMPLETED"]
    bad = [
        f"{ride.ride_id}: payment {ride.payment.status if ride.payment else 'missing'}"
        for ride in completed
        if ride.payment is None or ride.payment.status != "ACCEPTED"
    ]
    return len(completed), bad


def _declined_payments_are_counted(evidence: Evidence) -> Finding:
    paid = [one for one in evidence.outcomes if one.state == "paid"]
    bad = []
    for one in paid:
        ride = evidence.rides.get(one.ride_id)
        attempts = ride.payment.attempts if ride is not None and ride.payment is not None else 0
        nothing_to_pay = ride is not None and ride.adjusted_cost == 0
        if not nothing_to_pay and attempts != one.refused_payments + 1:
            bad.append(f"{one.ride_id}: {attempts} tries, {one.refused_payments} of them declined")
    return len(paid), bad


def _accepted_matches_ended_in_rides(evidence: Evidence) -> Finding:
    """Every match that a phone saw accepted became a ride that is over; a failed one said so."""
    accepted: set[str] = set()
    failed: set[str] = set()
    for line in _lines(evidence):
        if line.event == "match.accepted":
            accepted.add(line.id)
        elif line.status == "FAILED":
            failed.add(line.id)
    ended = {ride.match_id for ride in _all_rides(evidence) if ride.status in ENDED}
    bad = [f"{match_id}: accepted, but no ride of it has ended" for match_id in accepted - failed - ended]
    return len(accepted), sorted(bad)


def _rides_ended(evidence: Evidence) -> Finding:
    rides = {ride.ride_id: ride for ride in _all_rides(evidence)}
    bad = [f"{ride.ride_id}: {ride.status}" for ride in rides.values() if ride.status not in ENDED]
    return len(rides), sorted(bad)


def _one_ride_at_a_time(evidence: Evidence) -> Finding:
    """By the server's times of each user's rides, and by what his phone heard in which order."""
    bad = []
    for user_id, rides in evidence.lists.items():
        for one, other in pairwise(sorted(rides, key=lambda ride: ride.created_at)):
            end = one.completed_at or one.cancelled_at
            if end is None or other.created_at < end:
                bad.append(f"{user_id}: {other.ride_id} was opened while {one.ride_id} was open")
    for user_id, history in evidence.histories.items():
        bad += [f"{user_id}: heard of {later} while {earlier} was open" for earlier, later in _overlaps(history)]
    return len(evidence.histories), bad


def _overlaps(history: list[Heard]) -> list[tuple[str, str]]:
    """(earlier, later) where a ride was first heard of before the one before it had arrived or was cancelled."""
    rank: dict[str, int] = {}
    found = []
    for line in history:
        state = RIDE_RANK.get(line.status)
        if state is None or not line.event.startswith(("ride.", "session.")):
            continue
        if line.id not in rank:
            found += [(other, line.id) for other, known in rank.items() if known < RIDE_RANK["ARRIVED"]]
        rank[line.id] = max(state, rank.get(line.id, 0))
    return found


def _every_proposal_ended(evidence: Evidence) -> Finding:
    """Both phones of every ``match.found`` heard its end, or of its acceptance."""
    open_at: set[str] = set()
    known: set[str] = set()
    for user_id, history in evidence.histories.items():
        furthest: dict[str, int] = {}
        for line in history:
            if line.event.startswith(("match.", "session.")) and line.status in MATCH_RANK:
                furthest[line.id] = max(MATCH_RANK[line.status], furthest.get(line.id, 0))
        known |= furthest.keys()
        open_at |= {f"{match} for {user_id}" for match, rank in furthest.items() if rank < MATCH_RANK["ACCEPTED"]}
    return len(known), sorted(open_at)


def _phones_agree(evidence: Evidence) -> Finding:
    """The furthest state that both parties' phones heard of a ride is the server's."""
    last: dict[tuple[str, str], int] = {}
    for user_id, history in evidence.histories.items():
        for line in history:
            if line.status in RIDE_RANK and line.event.startswith(("ride.", "session.")):
                key = (user_id, line.id)
                last[key] = max(RIDE_RANK[line.status], last.get(key, 0))
    bad = [
        f"{ride.ride_id}: {ride.status}, but the phone of {user_id} has not heard so"
        for ride in evidence.rides.values()
        for user_id in (ride.driver_id, ride.passenger_id)
        if user_id in evidence.histories and last.get((user_id, ride.ride_id)) != RIDE_RANK[ride.status]
    ]
    return len(evidence.rides) * 2, bad


def _nothing_missed(evidence: Evidence) -> Finding:
    bad = [f"{evidence.gaps} numbered frames never came"] if evidence.gaps else []
    return len(evidence.histories), bad


def _no_dead_letters(evidence: Evidence) -> Finding:
    bad = [f"{evidence.dead_letters} dead letters; see: nebengjek dead-letters list"] if evidence.dead_letters else []
    return evidence.dead_letters or 0, bad


def _no_point_refused(evidence: Evidence) -> Finding:
    bad = [f"{evidence.points_refused} points refused, all were plausible"] if evidence.points_refused else []
    return len(evidence.histories), bad


def _lines(evidence: Evidence) -> Iterable[Heard]:
    for history in evidence.histories.values():
        yield from history


def _all_rides(evidence: Evidence) -> Iterable[Ride]:
    yield from evidence.rides.values()
    for rides in evidence.lists.values():
        yield from rides


CHECKS: dict[str, Callable[[Evidence], Finding]] = {
    "every trip ended, paid or cancelled": _every_trip_ended,
    "client's account = server's bill (±1 % or 20 m)": _billed_what_was_driven,
    "fare = distance x rate": _distance_times_rate,
    "fare = payout + fee": _money_adds_up,
    "sum of the ledger = distance": _ledger_is_the_distance,
    "every completed ride is paid": _every_ride_paid,
    "declined payments were tried again": _declined_payments_are_counted,
    "every accepted match ended in a ride": _accepted_matches_ended_in_rides,
    "every ride is completed or cancelled": _rides_ended,
    "nobody in two open rides": _one_ride_at_a_time,
    "every match.found had an end": _every_proposal_ended,
    "both phones heard the end of the ride": _phones_agree,
    "no numbered frame was missed": _nothing_missed,
    "no plausible point was refused": _no_point_refused,
    "no dead letters": _no_dead_letters,
}
