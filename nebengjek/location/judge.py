"""Is a point to be believed? A pure function of what is known of the phone and of the point."""

from typing import Literal

from msgspec import Struct

from nebengjek.contracts.geo import Point, distance_km

AGREEING = 3
"""So many implausible points in a row that agree among themselves are the truth: the fix before them was bad."""
REMEMBERED = 8
"""Refused points that are known again when they are delivered twice."""

Verdict = Literal["fresh", "late", "teleport"]
"""``late``: older than the latest point, which stays; the point belongs to the path of an open ride all the same."""


class UserState(Struct, kw_only=True):
    """``point``: the latest accepted. ``before``: the last one that was believed before a jump that proved true.

    ``refused``: implausible points, the newest last; the last ``run`` of them came in a row and agree among
    themselves. ``teleports``: how many there were, the same one delivered twice counts once.
    """

    point: Point
    before: Point | None = None
    refused: list[Point] = []
    run: int = 0
    teleports: int = 0


def plausible(a: Point, b: Point, max_speed_kmh: float) -> bool:
    """Could a vehicle have been at both? Points closer than a second are taken as a second apart."""
    # Phones' clocks tick in seconds, and two positions of a phone that stands still differ by some metres.
    seconds = max(1.0, abs((b.timestamp - a.timestamp).total_seconds()))
    allowed_km = max_speed_kmh * seconds / 3600
    # No need for a sine to believe a short way: a degree is at most 111.7 km.
    degrees = abs(b.latitude - a.latitude) + abs(b.longitude - a.longitude)
    return degrees * 111.7 <= allowed_km or distance_km(a, b) <= allowed_km


def judge(state: UserState, point: Point, max_speed_kmh: float) -> Verdict:
    """The verdict on a point; ``state`` is changed to what is known after it."""
    if state.refused and point in state.refused:
        return "teleport"
    latest = state.point
    is_late = point.timestamp < latest.timestamp
    if plausible(latest, point, max_speed_kmh):
        if is_late:
            return "late"
        state.point = point
        state.run = 0
        return "fresh"
    if is_late:
        if state.before is not None and plausible(state.before, point, max_speed_kmh):
            return "late"
        _refuse(state, point)
        return "teleport"
    agrees = state.run > 0 and plausible(state.refused[-1], point, max_speed_kmh)
    state.run = state.run + 1 if agrees else 1
    if state.run < AGREEING:
        _refuse(state, point)
        return "teleport"
    state.teleports += 1
    state.run = 0
    state.before, state.point = latest, point
    return "fresh"


def _refuse(state: UserState, point: Point) -> None:
    state.teleports += 1
    # A new list: an encoder or a reader may hold the old one.
    state.refused = [*state.refused[1 - REMEMBERED :], point]
