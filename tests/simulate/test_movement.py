"""Phones that move: plausible to a server that looks for teleports, and never longer than the way they drove."""

import math
import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nebengjek.contracts.geo import Location, Point, distance_km
from nebengjek.errors import NebengJekError
from nebengjek.location.odometer import Rules, whole
from nebengjek.simulate.movement import (
    LONGEST_RUN_SECONDS,
    MIN_MOVE_M,
    NOISE_SECONDS,
    GpsNoise,
    Leg,
    SimulatedClock,
    iso,
    leg,
    shifted,
)
from nebengjek.simulate.options import MAX_NOISE_M

MONAS = Location(latitude=-6.1754, longitude=106.8272)
cities = st.builds(Location, latitude=st.floats(-60, 60), longitude=st.floats(-179, 179))
seeds = st.integers(0, 2**32)


class Timer:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


# -- legs


@given(cities, st.floats(10, 30_000), st.floats(0, 30_000), st.floats(1, 45), st.floats(0, MAX_NOISE_M))
def test_every_step_is_as_long_as_the_others_and_counts(
    start: Location, north: float, east: float, ping_seconds: float, noise_m: float
) -> None:
    way = leg(start, shifted(start, north, east), ping_seconds=ping_seconds, noise_m=noise_m)
    places = [start, *way.places()]
    steps = [distance_km(a, b) * 1000 for a, b in pairwise(places)]
    assert places[-1] == way.end
    assert len(steps) == way.steps
    assert max(steps) <= min(steps) * 1.02 + 0.05
    assert min(steps) >= MIN_MOVE_M or way.steps == 1
    assert sum(steps) / 1000 == pytest.approx(way.kilometres, rel=1e-4)


@given(cities, st.floats(20, 30_000), st.floats(4, 45))
def test_steps_are_driven_at_city_speed(start: Location, north: float, ping_seconds: float) -> None:
    way = leg(start, shifted(start, north, 0), ping_seconds=ping_seconds)
    assert way.kilometres / (way.steps * way.step_seconds) * 3600 == pytest.approx(30)
    assert way.step_seconds <= ping_seconds + 1e-6


def test_nowhere_to_go_is_no_step() -> None:
    assert list(leg(MONAS, MONAS, ping_seconds=4).places()) == []


# -- GPS errors


@settings(max_examples=60, deadline=None)
@given(seeds, st.floats(2_000, 15_000), st.floats(0, 6.28))
def test_noise_lengthens_no_path_by_half_a_per_cent(seed: int, metres: float, heading: float) -> None:
    way = leg(MONAS, shifted(MONAS, metres * 0.6, metres * 0.8), ping_seconds=4, noise_m=5)
    billed = _billed(way, GpsNoise(5, random.Random(seed)))
    # Both ends of the way have an error of their own: that is no lengthening, and does not grow with the way.
    assert abs(billed - way.kilometres) < way.kilometres * 0.005 + 0.02


def test_noise_lengthens_paths_by_less_than_half_a_per_cent_on_average() -> None:
    way = leg(MONAS, shifted(MONAS, 6_000, 8_000), ping_seconds=4, noise_m=5)
    excess = [_billed(way, GpsNoise(5, random.Random(seed))) / way.kilometres - 1 for seed in range(40)]
    assert 0 < sum(excess) / len(excess) < 0.005


def test_white_noise_would_lengthen_them_visibly() -> None:
    class White(GpsNoise):
        def seen(self, place: Location, at: float) -> Location:
            self._at = None
            return super().seen(place, at)

    way = leg(MONAS, shifted(MONAS, 6_000, 8_000), ping_seconds=4, noise_m=5)
    excess = [_billed(way, White(5, random.Random(seed))) / way.kilometres - 1 for seed in range(10)]
    assert sum(excess) / len(excess) > 0.005


def _billed(way: Leg, noise: GpsNoise) -> float:
    """What the server's own odometer makes of the way as a phone reports it."""
    moment = datetime(2026, 1, 1, tzinfo=UTC)

    def point(place: Location, step: int) -> Point:
        seen = noise.seen(place, step * way.step_seconds)
        at = moment + timedelta(seconds=step * way.step_seconds)
        return Point(latitude=seen.latitude, longitude=seen.longitude, timestamp=at, accuracy=noise.radius_m)

    start = point(way.start, 0)
    driven = [point(place, step) for step, place in enumerate(way.places(), start=1)]
    return whole(driven, [], start, Rules()).total_km


def test_the_radius_holds_two_thirds_of_the_errors() -> None:
    noise = GpsNoise(5, random.Random(1))
    errors = [distance_km(MONAS, noise.seen(MONAS, step * 10 * NOISE_SECONDS)) * 1000 for step in range(4000)]
    assert sum(error <= 5 for error in errors) / len(errors) == pytest.approx(0.68, abs=0.03)


def test_an_error_is_almost_the_same_a_second_later_and_forgotten_after_minutes() -> None:
    soon, late = [], []
    for seed in range(400):
        noise = GpsNoise(5, random.Random(seed))
        first = noise.seen(MONAS, 0).latitude - MONAS.latitude
        soon.append((first, noise.seen(MONAS, 1).latitude - MONAS.latitude))
        late.append((first, noise.seen(MONAS, 1 + 10 * NOISE_SECONDS).latitude - MONAS.latitude))
    assert _correlation(soon) > 0.95
    assert abs(_correlation(late)) < 0.2


def _correlation(pairs: list[tuple[float, float]]) -> float:
    return sum(a * b for a, b in pairs) / math.sqrt(sum(a * a for a, _ in pairs) * sum(b * b for _, b in pairs))


def test_a_phone_without_noise_is_where_it_is() -> None:
    assert GpsNoise(0, random.Random(1)).seen(MONAS, 1.0) == MONAS


# -- the clock


@given(st.floats(1, 720), st.floats(0, LONGEST_RUN_SECONDS))
def test_the_simulated_clock_is_never_in_the_future(speed: float, elapsed: float) -> None:
    timer, wall = Timer(), Timer(1_700_000_000.0)
    clock = SimulatedClock(speed, real=timer, wall=wall)
    first = clock.now()
    timer.now += elapsed
    wall.now += elapsed
    assert clock.now() - first == pytest.approx(elapsed * speed, rel=1e-6, abs=1e-3)
    assert clock.now() <= wall.now + 1
    assert first <= 1_700_000_000 - 6 * 3600


def test_a_run_that_has_caught_up_with_the_present_ends() -> None:
    timer = Timer()
    clock = SimulatedClock(60, real=timer)
    timer.now += LONGEST_RUN_SECONDS + 1
    with pytest.raises(NebengJekError, match="six hours"):
        clock.now()


def test_moments_are_written_in_utc() -> None:
    assert iso(1384790400.25) == "2013-11-18T16:00:00.250Z"
