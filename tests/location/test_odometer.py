"""The odometer: whatever happens to the points on their way, nobody pays for more than was driven."""

import itertools
import math
import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nebengjek.contracts.geo import Point, distance_km
from nebengjek.location.odometer import Fold, Rules, begin, differ, whole

START = datetime(2025, 3, 4, 5, 0, tzinfo=UTC)
RULES = Rules()
KM = 1 / 111.195
"""Degrees of latitude in a kilometre."""


def at(seconds: float, north_m: float = 0.0, east_m: float = 0.0, accuracy: float | None = None) -> Point:
    return Point(
        latitude=north_m / 1000 * KM,
        longitude=106.8 + east_m / 1000 * KM,
        timestamp=START + timedelta(seconds=seconds),
        accuracy=accuracy,
    )


def driven(way: list[Point]) -> float:
    return sum(distance_km(a, b) for a, b in itertools.pairwise(way))


def km(driver: list[Point], passenger: list[Point] | None = None, start: Point | None = None) -> float:
    return whole(driver, passenger or [], start or at(0), RULES).total_km


# -- examples


def test_a_straight_kilometre_is_a_kilometre() -> None:
    assert km([at(second, second * 10) for second in range(1, 101)]) == pytest.approx(1.0, abs=1e-6)


def test_a_ride_without_points_is_zero() -> None:
    assert km([]) == 0.0


def test_short_moves_are_kept_back_and_count_when_they_add_up() -> None:
    assert km([at(1, 9.9)]) == 0.0
    assert km([at(second, second * 3) for second in range(1, 5)]) == pytest.approx(0.012, abs=1e-6)


def test_a_phone_that_stands_still_and_trembles_drives_nowhere() -> None:
    assert km([at(second, (-1) ** second * 4) for second in range(1, 500)]) == 0.0


def test_a_move_below_the_points_own_accuracy_is_kept_back() -> None:
    assert km([at(5, 40, accuracy=50)]) == 0.0
    assert km([at(5, 40, accuracy=50), at(10, 60, accuracy=50)]) == pytest.approx(0.060, abs=1e-6)
    assert km([at(5, 40, accuracy=30)]) == pytest.approx(0.040, abs=1e-6)


def test_the_way_to_the_pick_up_does_not_count() -> None:
    assert km([at(-60, -900), at(-30, -400), at(0, 0), at(20, 200)]) == pytest.approx(0.2, abs=1e-6)


def test_a_point_at_the_start_points_own_moment_does_not_count() -> None:
    assert km([at(0, 50)]) == 0.0


def test_a_jump_is_never_billed_and_the_way_after_it_is() -> None:
    path = [at(10, 100), at(20, 9_000), at(30, 9_100)]
    assert km(path) == pytest.approx(0.2, abs=1e-6)


def test_a_jump_after_a_long_stop_is_not_billed_either() -> None:
    # Measured from the place where the stop began it would be a leisurely drive.
    stop = [at(second, 0.0) for second in range(10, 3600, 10)]
    assert km([*stop, at(3610, 50_000)]) == 0.0


def test_the_passenger_fills_the_drivers_silence_and_only_that() -> None:
    # Round three sides of a square: without the passenger only the fourth side would be known.
    driver = [at(10, 100), at(200, 100, 1000), at(210, 100, 1100)]
    passenger = [at(5, 700), at(50, 600), at(100, 600, 1000), at(205, 800, 1000)]
    round_ = driven([at(0), at(10, 100), at(50, 600), at(100, 600, 1000), at(200, 100, 1000), at(210, 100, 1100)])
    assert km(driver, passenger) == pytest.approx(round_, rel=1e-9)


def test_a_silence_of_a_minute_is_not_one_yet() -> None:
    assert km([at(60, 600)], [at(30, 300, 300)]) == pytest.approx(0.6, abs=1e-6)
    assert km([at(61, 600)], [at(30, 300, 300)]) > 0.8


def test_a_driver_who_falls_silent_for_good_is_followed_by_his_passenger() -> None:
    assert km([at(10, 100)], [at(40, 400), at(71, 710)]) == pytest.approx(0.71, abs=1e-6)
    assert km([], [at(30, 300), at(61, 610)]) == pytest.approx(0.61, abs=1e-6)
    assert km([at(10, 100)], [at(40, 400), at(70, 700)]) == pytest.approx(0.1, abs=1e-6)


def test_nobody_is_billed_faster_than_a_vehicle_drives() -> None:
    # Twenty points a second, each 50 m from the one before: it would be 3,600 km/h.
    path = [at(tick / 20, 50 * (tick % 2)) for tick in range(1, 201)]
    assert km(path) <= 200 * 10 / 3600


def test_phones_that_disagree_by_more_than_a_fifth_are_noticed() -> None:
    way = [at(second, second * 10) for second in range(10, 110, 10)]
    assert not differ(way, way, at(0), RULES)
    assert not differ(way, way[:-1], at(0), RULES)
    assert differ(way, way[:7], at(0), RULES)
    assert differ(way[:7], way, at(0), RULES)


def test_a_silent_phone_and_a_very_short_ride_are_no_disagreement() -> None:
    way = [at(second, second * 10) for second in range(10, 110, 10)]
    assert not differ(way, [], at(0), RULES)
    assert not differ([], way, at(0), RULES)
    assert not differ([at(10, 90)], [at(10, 20)], at(0), RULES)


# -- properties


@st.composite
def ways(draw: st.DrawFn) -> list[Point]:
    """The true way of a vehicle: a place each second to minute, turning at will, at up to 120 km/h."""
    way, seconds, north, east = [at(0)], 0.0, 0.0, 0.0
    for _ in range(draw(st.integers(1, 25))):
        step = draw(st.sampled_from([1.0, 2.0, 5.0, 20.0, 45.0]))
        speed = draw(st.floats(0, 33))
        angle = draw(st.floats(0, 2 * math.pi))
        seconds += step
        north += speed * step * math.cos(angle)
        east += speed * step * math.sin(angle)
        way.append(at(seconds, north, east, draw(st.sampled_from([None, 5.0, 25.0]))))
    return way


@st.composite
def reported(draw: st.DrawFn) -> tuple[list[Point], list[Point], list[Point]]:
    """A way, and what of it the driver's and the passenger's phones reported: some lost, some twice, in any order."""
    way = draw(ways())
    phones = []
    for _ in range(2):
        kept = [point for point in way[1:] if draw(st.integers(0, 3))]
        kept += [point for point in kept if not draw(st.integers(0, 4))]
        phones.append(draw(st.permutations(kept)))
    return way, phones[0], phones[1]


@settings(max_examples=60, deadline=None)
@given(reported())
def test_nobody_pays_for_more_than_was_driven(case: tuple[list[Point], list[Point], list[Point]]) -> None:
    way, driver, passenger = case
    assert whole(driver, passenger, way[0], RULES).total_km <= driven(way) + 1e-9


@settings(max_examples=80, deadline=None)
@given(reported(), st.randoms(use_true_random=False))
def test_neither_order_nor_duplicates_matter(
    case: tuple[list[Point], list[Point], list[Point]], random_: random.Random
) -> None:
    way, driver, passenger = case
    total = whole(driver, passenger, way[0], RULES)
    again_driver, again_passenger = driver * 2, passenger + passenger[:3]
    random_.shuffle(again_driver)
    random_.shuffle(again_passenger)
    assert whole(again_driver, again_passenger, way[0], RULES) == total


@settings(max_examples=60, deadline=None)
@given(reported())
def test_counting_as_points_come_is_counting_the_whole(case: tuple[list[Point], list[Point], list[Point]]) -> None:
    way, driver, passenger = case
    told = sorted([(point.timestamp, 0, point) for point in driver] + [(p.timestamp, 1, p) for p in passenger])
    fold = begin(way[0])
    for number, (moment, phone, point) in enumerate(told):
        before = fold.total_km
        (fold.driver if phone == 0 else fold.passenger)(point, RULES)
        assert fold.total_km >= before
        if number + 1 == len(told) or told[number + 1][0] > moment:
            so_far = [(p, point) for _, p, point in told[: number + 1]]
            half = whole([q for p, q in so_far if p == 0], [q for p, q in so_far if p == 1], way[0], RULES)
            assert fold.total_km == half.total_km


@settings(max_examples=80, deadline=None)
@given(reported())
def test_late_points_change_no_progress(case: tuple[list[Point], list[Point], list[Point]]) -> None:
    way, driver, passenger = case
    fold = whole(driver, passenger, way[0], RULES)
    before: Fold = Fold(**{name: getattr(fold, name) for name in fold.__struct_fields__})
    for point in (*driver, *passenger):
        if point.timestamp <= fold.heard:
            fold.driver(point, RULES)
            fold.passenger(point, RULES)
    assert fold == before


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.floats(12, 30), st.floats(0, 2 * math.pi))
def test_on_a_straight_way_nothing_is_lost_but_the_last_moves_kept_back(count: int, speed: float, angle: float) -> None:
    way = [at(n, speed * n * math.cos(angle), speed * n * math.sin(angle)) for n in range(count + 1)]
    assert km(way[1:]) == pytest.approx(driven(way), rel=1e-4)


@settings(max_examples=60, deadline=None)
@given(reported())
def test_a_ride_that_goes_on_from_a_checkpoint_is_not_longer_than_it_was(
    case: tuple[list[Point], list[Point], list[Point]],
) -> None:
    """What was counted up to a point, plus what is counted from there on, stays within the way."""
    way, driver, passenger = case
    for cut in driver:
        before = whole(
            [p for p in driver if p.timestamp <= cut.timestamp],
            [p for p in passenger if p.timestamp <= cut.timestamp],
            way[0],
            RULES,
        )
        after = whole(driver, passenger, before.anchor, RULES)
        assert before.total_km + after.total_km <= driven(way) + 1e-9
