"""Kilometres of a ride: pure functions of the points that its two phones reported.

A path is a set of points ordered by the phone's clock: neither the order of arrival nor duplicates matter. The
driver's path is billed. A move below ``min_move_m`` or below the point's own accuracy is kept back and counts when
such moves add up, because it is measured from the last place that counted. A hop that no vehicle drives
(``max_speed_kmh``) is never billed. Rules: docs/domain.md, "Ride".
"""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from itertools import pairwise

from msgspec import Struct

from nebengjek.contracts.geo import Point, distance_km


class Rules(Struct, frozen=True, kw_only=True):
    """``silence``: seconds without a point of the driver after which the passenger's fill the gap."""

    min_move_m: float = 10.0
    max_speed_kmh: float = 200.0
    silence: float = 60.0
    review_difference: float = 0.2


class Fold(Struct, kw_only=True):
    """How far the points so far have come. ``anchor``: the last place that counted; ``latest``: the newest point.

    ``told_km`` and ``sequence``: what the last aggregate said, and its number.
    """

    anchor: Point
    latest: Point
    total_km: float = 0.0
    told_km: float = 0.0
    sequence: int = 0

    def add(self, point: Point, rules: Rules) -> None:
        """Count a point that is newer than ``latest``; an older one belongs to the whole path only."""
        if point.timestamp <= self.latest.timestamp:
            return
        self.latest = point
        moved = distance_km(self.anchor, point)
        if moved * 1000 < max(rules.min_move_m, point.accuracy or 0.0):
            return
        hours = (point.timestamp - self.anchor.timestamp).total_seconds() / 3600
        if moved <= rules.max_speed_kmh * hours:
            self.total_km += moved
        self.anchor = point


def begin(start: Point) -> Fold:
    """Nothing driven yet."""
    return Fold(anchor=start, latest=start)


def whole(driver: Iterable[Point], passenger: Iterable[Point], start: Point, rules: Rules) -> Fold:
    """The fold of the whole path: the driver's points after ``start``, his silences filled by the passenger's."""
    fold = begin(start)
    for point in merged(_after(driver, start), _after(passenger, start), start, rules):
        fold.add(point, rules)
    return fold


def merged(driver: Sequence[Point], passenger: Sequence[Point], start: Point, rules: Rules) -> list[Point]:
    """The driver's points in order; in each silence of his, and after his last word, the passenger's."""
    silence = timedelta(seconds=rules.silence)
    path: list[Point] = []
    for before, after in pairwise((start, *driver)):
        if after.timestamp - before.timestamp > silence:
            path += [point for point in passenger if before.timestamp < point.timestamp < after.timestamp]
        path.append(after)
    last = driver[-1] if driver else start
    if passenger and passenger[-1].timestamp - last.timestamp > silence:
        path += [point for point in passenger if point.timestamp > last.timestamp]
    return path


def differ(driver: Iterable[Point], passenger: Iterable[Point], start: Point, rules: Rules) -> bool:
    """Do the two phones disagree by more than ``review_difference`` of the longer way? A silent phone says nothing."""
    ways = []
    for points in (driver, passenger):
        fold = begin(start)
        own = _after(points, start)
        if not own:
            return False
        for point in own:
            fold.add(point, rules)
        ways.append(fold.total_km)
    longer, shorter = max(ways), min(ways)
    # Below a tenth of a kilometre the noise of two phones is larger than any fraud.
    return longer > 0.1 and (longer - shorter) / longer > rules.review_difference


def _after(points: Iterable[Point], start: Point) -> list[Point]:
    """In order, each moment once, nothing from the way to the pick-up."""
    unique = {point.timestamp: point for point in sorted(points, key=_order, reverse=True)}
    return [unique[moment] for moment in sorted(unique) if moment > start.timestamp]


def _order(point: Point) -> tuple[float, float]:
    # Two different points of one moment: always the same one wins, whatever came first.
    return point.latitude, point.longitude
