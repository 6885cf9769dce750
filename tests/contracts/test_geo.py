"""Distances and times on the ground."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebengjek.contracts.geo import EARTH_RADIUS_KM, Location, Point, distance_km, eta_minutes

places = st.builds(Location, latitude=st.floats(-90, 90), longitude=st.floats(-180, 180))


def at(latitude: float, longitude: float) -> Location:
    return Location(latitude=latitude, longitude=longitude)


@pytest.mark.parametrize(
    ("a", "b", "km"),
    [
        (at(0, 0), at(0, 0), 0.0),
        (at(0, 0), at(0, 180), math.pi * EARTH_RADIUS_KM),
        (at(90, 0), at(-90, 77), math.pi * EARTH_RADIUS_KM),
        (at(0, 0), at(0, 1), math.pi * EARTH_RADIUS_KM / 180),
        (at(0, 0), at(1, 0), math.pi * EARTH_RADIUS_KM / 180),
        # Across the date line it is no way round the world.
        (at(0, 179.5), at(0, -179.5), math.pi * EARTH_RADIUS_KM / 180),
        # At 60 degrees a degree of longitude is half as long (a chord over the pole's side: a little less).
        (at(60, 0), at(60, 1), 55.5968),
        # Nashville airport to Los Angeles airport, the well-known example of the formula (there with R = 6372.8).
        (at(36.12, -86.67), at(33.94, -118.40), 2887.2599506 * EARTH_RADIUS_KM / 6372.8),
        # Monas to Bundaran HI: 2.2 km along Jalan Thamrin.
        (at(-6.1754, 106.8272), at(-6.1950, 106.8230), 2.2283),
    ],
)
def test_known_distances(a: Location, b: Location, km: float) -> None:
    assert distance_km(a, b) == pytest.approx(km, rel=1e-4, abs=1e-9)


@given(places, places, places)
def test_distance_is_a_metric(a: Location, b: Location, c: Location) -> None:
    there = distance_km(a, b)
    assert 0 <= there <= math.pi * EARTH_RADIUS_KM + 1e-6
    assert there == pytest.approx(distance_km(b, a), abs=1e-6)
    assert distance_km(a, a) == 0
    # The haversine of nearly opposite places is a difference of nearly equal numbers: metres there, not millimetres.
    assert distance_km(a, c) <= there + distance_km(b, c) + 0.001


@pytest.mark.parametrize(
    ("km", "minutes"), [(0.0, 1), (0.001, 1), (0.23, 1), (0.24, 2), (1.0, 5), (2.0, 9), (10 / 1.4 / 3, 10), (5.0, 21)]
)
def test_eta_is_whole_minutes_rounded_up_and_at_least_one(km: float, minutes: int) -> None:
    assert eta_minutes(km) == minutes


@pytest.mark.parametrize(
    "text",
    [
        '{"latitude":90.1,"longitude":0}',
        '{"latitude":-91,"longitude":0}',
        '{"latitude":0,"longitude":180.5}',
        '{"latitude":"6","longitude":0}',
        '{"latitude":NaN,"longitude":0}',
        '{"latitude":1e999,"longitude":0}',
        '{"latitude":null,"longitude":0}',
        '{"longitude":0}',
    ],
)
def test_no_place_of_this_earth(text: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(text, type=Location)


@pytest.mark.parametrize(
    "extra",
    [
        '"accuracy":-1',
        '"speed":-0.1',
        '"heading":361',
        '"heading":-1',
        '"timestamp":"yesterday"',
        '"timestamp":"2026-03-01T07:30:00"',
    ],
)
def test_no_point_of_a_phone(extra: str) -> None:
    good = '{"timestamp":"2026-03-01T07:30:00Z","latitude":0,"longitude":0'
    assert msgspec.json.decode(good + "}", type=Point).accuracy is None
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(f"{good},{extra}}}", type=Point)
