"""How phones move: a clock that runs fast, straight legs in equal steps, and GPS errors that drift.

GPS errors of one phone are alike from one second to the next: David L. Wilson measured an autocorrelation that
bends at about one minute for a consumer receiver ("Correlation of errors", Garmin 12XL), and the noise models
fitted to civilian receivers in Sensors 2020, 20(21), 6050 prefer an Ornstein-Uhlenbeck process to white noise; the
flight simulators of PX4 use 60 s. So the error here is a first-order Gauss-Markov process per axis. White noise of
the same size would lengthen every path, and a bill with it, by several per cent.
"""

import math
import random
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from msgspec import Struct

from nebengjek.contracts.geo import EARTH_RADIUS_KM, Location, distance_km
from nebengjek.errors import NebengJekError

METRES_PER_DEGREE = math.radians(1) * EARTH_RADIUS_KM * 1000
NOISE_SECONDS = 60.0
"""Correlation time of the GPS error."""
RADIUS_68 = math.sqrt(-2 * math.log(1 - 0.68))
"""The radius that holds 68 % of a round two-dimensional Gaussian of deviation 1 (Rayleigh distribution)."""
CITY_SPEED_KMH = 30.0
MIN_MOVE_M = 10.0
"""What the server's odometer keeps back; a step is half as long again, so that each one counts."""
LONGEST_RUN_SECONDS = 6 * 3600.0


class SimulatedClock:
    """Runs ``speed`` times as fast as the real one, and starts so long ago that it never shows a future.

    A server refuses points from the future, and points whose times make a car faster than 200 km/h; a phone that
    lives an hour in a minute can satisfy both only in the past. Raises NebengJekError after six real hours, when
    it has caught up.
    """

    def __init__(
        self, speed: float, *, real: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self.speed = speed
        self._real = real
        self._started = real()
        self._base = wall() - speed * LONGEST_RUN_SECONDS

    def now(self) -> float:
        """Simulated unix time."""
        elapsed = self._real() - self._started
        if elapsed > LONGEST_RUN_SECONDS:
            raise NebengJekError("the simulated clock has caught up with the real one: a run may last six hours")
        return self._base + elapsed * self.speed

    def to_real(self, simulated: float) -> float:
        """Real seconds that so many simulated ones take."""
        return simulated / self.speed


def iso(unix: float) -> str:
    """``2013-11-18T16:00:00.250Z``"""
    return datetime.fromtimestamp(unix, tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class GpsNoise:
    """The error of one phone: zero on average, ``radius_m`` holds 68 % of it, forgotten over a minute."""

    def __init__(self, radius_m: float, rng: random.Random) -> None:
        self.radius_m = radius_m
        self._sigma = radius_m / RADIUS_68
        self._rng = rng
        self._at: float | None = None
        self._north = self._east = 0.0

    def seen(self, place: Location, at: float) -> Location:
        """``place`` as the phone believes it at the simulated time ``at`` (rounded to 1 cm); times only grow."""
        if not self.radius_m:
            return place
        elapsed = math.inf if self._at is None else max(0.0, at - self._at)
        keep = math.exp(-elapsed / NOISE_SECONDS)
        fresh = self._sigma * math.sqrt(1 - keep * keep)
        self._north = self._north * keep + self._rng.gauss(0, fresh)
        self._east = self._east * keep + self._rng.gauss(0, fresh)
        self._at = at
        return shifted(place, self._north, self._east)


def shifted(place: Location, north_m: float, east_m: float) -> Location:
    """``place`` moved by so many metres, rounded to 1 cm."""
    latitude = place.latitude + north_m / METRES_PER_DEGREE
    longitude = place.longitude + east_m / (METRES_PER_DEGREE * math.cos(math.radians(place.latitude)))
    return Location(latitude=round(latitude, 7), longitude=round(longitude, 7))


def between(start: Location, end: Location, share: float) -> Location:
    """The point at ``share`` (0 to 1) of the straight line; exactly ``end`` at 1."""
    if share >= 1:
        return end
    return Location(
        latitude=start.latitude + (end.latitude - start.latitude) * share,
        longitude=start.longitude + (end.longitude - start.longitude) * share,
    )


class Leg(Struct, frozen=True, kw_only=True):
    """A drive along a straight line at ``CITY_SPEED_KMH``, in ``steps`` equal steps of ``step_seconds``."""

    start: Location
    end: Location
    kilometres: float
    steps: int
    step_seconds: float

    def places(self) -> Iterator[Location]:
        """Where the car is after each step; the last one is the end."""
        for step in range(1, self.steps + 1):
            yield between(self.start, self.end, step / self.steps)


def leg(start: Location, end: Location, *, ping_seconds: float, noise_m: float = 0.0) -> Leg:
    """The drive from ``start`` to ``end``; no step is so short that an odometer would keep it back.

    A way shorter than such a step is one step, or none when start and end are the same place.
    """
    kilometres = distance_km(start, end)
    metres_a_second = CITY_SPEED_KMH / 3.6
    shortest = 1.5 * max(MIN_MOVE_M, noise_m)
    wanted = math.ceil(kilometres * 1000 / (metres_a_second * ping_seconds))
    steps = min(wanted, max(1, math.floor(kilometres * 1000 / shortest))) if kilometres else 0
    seconds = kilometres * 1000 / metres_a_second
    return Leg(start=start, end=end, kilometres=kilometres, steps=steps, step_seconds=seconds / max(1, steps))
