"""Geohashes: the published examples, and bit for bit what halving the world says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebengjek.contracts.geo import Location, geohash


def by_halving(latitude: float, longitude: float) -> str:
    """The definition: halve the longitudes, then the latitudes, in turn."""
    spans = [[-180.0, 180.0, longitude], [-90.0, 90.0, latitude]]
    bits = ""
    for index in range(35):
        span = spans[index % 2]
        middle = (span[0] + span[1]) / 2
        above = span[2] >= middle
        span[0 if above else 1] = middle
        bits += "1" if above else "0"
    alphabet = "0123456789bcdefghjkmnpqrstuvwxyz"
    return "".join(alphabet[int(bits[start : start + 5], 2)] for start in range(0, len(bits), 5))


@pytest.mark.parametrize(
    ("latitude", "longitude", "expected"),
    [(42.605, -5.603, "ezs42"), (57.64911, 10.40744, "u4pruyd"), (0.0, 0.0, "s000000"), (90.0, 180.0, "zzzzzzz")],
)
def test_published_examples(latitude: float, longitude: float, expected: str) -> None:
    assert geohash(Location(latitude=latitude, longitude=longitude)).startswith(expected)


@given(st.integers(-89_999, 89_999), st.integers(-179_999, 179_999))
def test_it_is_what_halving_says(latitude: int, longitude: int) -> None:
    # Odd thousandths plus a bit: never exactly on a border, where the last digit of a float would decide.
    place = Location(latitude=latitude / 1000 + 0.000_123_4, longitude=longitude / 1000 + 0.000_123_4)
    assert geohash(place) == by_halving(place.latitude, place.longitude)
