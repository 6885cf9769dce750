"""Kilometres of a ride: pure functions of the points that its two phones reported.

A path is a set of points ordered by the phone's clock: neither the order of arrival nor duplicates matter. The
driver's path is billed; where his phone was silent, the passenger's fills the gap. A move below ``min_move_m`` or
below the point's own accuracy is kept back and counts when such moves add up, because it is measured from the last
place that counted. A hop that no vehicle drives is never billed. What is billed is therefore the length of a
polygon whose corners lie on the way driven: never more than the way. Rules: docs/domain.md, "Ride".
"""

from collections.abc import Iterable
from datetime import datetime

from msgspec import Struct

from nebengjek.contracts.geo import Point, distance_km
from nebengjek.location.judge import plausible


class Rules(Struct, frozen=True, kw_only=True):
    """``silence``: seconds without a point of the driver after which the passenger's fill the gap."""

    min_move_m: float = 10.0
    max_speed_kmh: float = 200.0
    silence: float = 60.0
    review_difference: float = 0.2


class Fold(Struct, kw_only=True):
    """How far the points so far have come, for points in the order of their time; a late one changes nothing.

    ``anchor``: the last place that counted. ``latest``: the newest point. ``heard``: when the driver's phone last
    spoke. ``waiting``: the passenger's points since then, in case he stays silent. ``told_km`` and ``sequence``:
    what the last aggregate said, and its number.
    """

    anchor: Point
    latest: Point
    heard: datetime
    waiting: list[Point] = []
    total_km: float = 0.0
    told_km: float = 0.0
    sequence: int = 0

    def driver(self, point: Point, rules: Rules) -> None:
        """The next point of the driver's phone."""
        if point.timestamp <= self.heard:
            return
        if self.waiting and (point.timestamp - self.heard).total_seconds() > rules.silence:
            for seen in self.waiting:
                if seen.timestamp < point.timestamp:
                    self._walk(seen, rules)
        self.waiting = []
        self.heard = point.timestamp
        self._walk(point, rules)

    def passenger(self, point: Point, rules: Rules) -> None:
        """The next point of the passenger's phone."""
        if point.timestamp <= self.heard:
            return
        self.waiting = [*self.waiting, point]
        if (point.timestamp - self.heard).total_seconds() > rules.silence:
            for seen in self.waiting:
                self._walk(seen, rules)
            self.waiting = []

    def _walk(self, point: Point, rules: Rules) -> None:
        before = self.latest
        if point.timestamp <= before.timestamp:
            return
        self.latest = point
        if not plausible(before, point, rules.max_speed_kmh):
            self.anchor = point
            return
        moved = distance_km(self.anchor, point)
        if moved * 1000 < max(rules.min_move_m, point.accuracy or 0.0):
            return
        hours = (point.timestamp - self.anchor.timestamp).total_seconds() / 3600
        # Many points a second may each be a little off, and still nobody drives faster than this.
        self.total_km += min(moved, rules.max_speed_kmh * hours)
        self.anchor = point


def begin(start: Point) -> Fold:
    """Nothing driven yet."""
    return Fold(anchor=start, latest=start, heard=start.timestamp)


def whole(driver: Iterable[Point], passenger: Iterable[Point], start: Point, rules: Rules) -> Fold:
    """The fold of the whole path from ``start`` on, whatever the order of the points and how often each is there."""
    told = [(point.timestamp, 0, point) for point in _after(driver, start)]
    told += [(point.timestamp, 1, point) for point in _after(passenger, start)]
    fold = begin(start)
    for _, phone, point in sorted(told, key=lambda one: one[:2]):
        if phone == 0:
            fold.driver(point, rules)
        else:
            fold.passenger(point, rules)
    return fold


def differ(driver: Iterable[Point], passenger: Iterable[Point], start: Point, rules: Rules) -> bool:
    """Do the two phones disagree by more than ``review_difference`` of the longer way? A silent phone says nothing."""
    one, other = _after(driver, start), _after(passenger, start)
    if not one or not other:
        return False
    ways = whole(one, (), start, rules).total_km, whole(other, (), start, rules).total_km
    # Below a tenth of a kilometre the noise of two phones is larger than any fraud.
    return max(ways) > 0.1 and (max(ways) - min(ways)) / max(ways) > rules.review_difference


def _after(points: Iterable[Point], start: Point) -> list[Point]:
    """In order, each moment once, nothing from the way to the pick-up."""
    unique = {point.timestamp: point for point in sorted(points, key=_order, reverse=True)}
    return [unique[moment] for moment in sorted(unique) if moment > start.timestamp]


def _order(point: Point) -> tuple[float, float, float]:
    # Two different points of one moment: always the same one wins, whatever came first.
    return point.latitude, point.longitude, point.accuracy or 0.0
