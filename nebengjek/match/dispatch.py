"""Who is proposed to whom: a pure function of what is known at one moment.

This is the simplest rule that serves people: the nearest first. Better ones replace this file and nothing else.
"""

from collections.abc import Collection, Mapping, Sequence

from msgspec import Struct

from nebengjek.contracts.geo import Location
from nebengjek.contracts.users import VehicleType


class Candidate(Struct, frozen=True, kw_only=True):
    """A free driver near a search; ``distance_km``: great circle to the passenger."""

    driver_id: str
    location: Location
    distance_km: float
    vehicle_type: VehicleType


def choose(
    candidates: Sequence[Candidate],
    *,
    passenger_id: str,
    proposed: Collection[str],
    engaged: Collection[str],
    offers: Mapping[str, int],
    open_proposals: int,
    max_candidates: int,
    offers_per_driver: int,
) -> list[Candidate]:
    """The drivers to propose now, nearest first.

    ``proposed``: drivers that this search was proposed to before, whatever became of it; ``engaged``: drivers bound
    by a match; ``offers``: open proposals per driver. At most ``max_candidates`` proposals are open at a time.
    """
    room = max_candidates - open_proposals
    if room <= 0:
        return []
    free = [
        candidate
        for candidate in sorted(candidates, key=lambda one: (one.distance_km, one.driver_id))
        if candidate.driver_id != passenger_id
        and candidate.driver_id not in proposed
        and candidate.driver_id not in engaged
        and offers.get(candidate.driver_id, 0) < offers_per_driver
    ]
    return free[:room]
