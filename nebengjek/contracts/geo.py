"""Where things are: coordinates in degrees (WGS 84), distances in great-circle kilometres."""

import math
from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct

EARTH_RADIUS_KM = 6371.0088
"""Mean radius of the earth, (2a + b) / 3 of WGS 84 (IUGG)."""
DETOUR = 1.4
"""How much longer a street is than the great circle; docs/domain.md."""
CITY_SPEED_KMH = 20.0

Latitude = Annotated[float, Meta(ge=-90, le=90)]
Longitude = Annotated[float, Meta(ge=-180, le=180)]


class Location(Struct, frozen=True, kw_only=True):
    latitude: Latitude
    longitude: Longitude


class Point(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A location at a moment of the phone's own clock; accuracy in metres, speed in km/h, heading in degrees."""

    latitude: Latitude
    longitude: Longitude
    timestamp: Annotated[datetime, Meta(tz=True)]
    accuracy: Annotated[float, Meta(ge=0)] | None = None
    speed: Annotated[float, Meta(ge=0)] | None = None
    heading: Annotated[float, Meta(ge=0, le=360)] | None = None


def distance_km(a: Location | Point, b: Location | Point) -> float:
    """Great-circle kilometres between two places (haversine formula, R = EARTH_RADIUS_KM)."""
    lat_a, lat_b = math.radians(a.latitude), math.radians(b.latitude)
    half_lat = math.sin((lat_b - lat_a) / 2)
    half_lon = math.sin(math.radians(b.longitude - a.longitude) / 2)
    h = half_lat * half_lat + math.cos(lat_a) * math.cos(lat_b) * half_lon * half_lon
    return 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(1.0, h)))


def eta_minutes(distance: float) -> int:
    """Whole minutes, rounded up, at least 1, to drive ``distance`` great-circle kilometres through a city."""
    return max(1, math.ceil(distance * DETOUR / CITY_SPEED_KMH * 60))


_BASE32 = "0123456789bcdefghjkmnpqrstuvwxyz"
_PAIRS = [a + b for a in _BASE32 for b in _BASE32]
_SPREAD = [sum((n >> bit & 1) << 2 * bit for bit in range(10)) for n in range(1024)]
"""Ten bits with a zero between each: two of them interleave with a shift and an or."""


def geohash(place: Location | Point, length: int = 7) -> str:
    """The geohash of a place (G. Niemeyer, 2008; public domain), 1 to 12 characters: longitude and latitude in turn.

    Made of table look-ups, because every point of every phone gets one.
    """
    lat_bits = length * 5 // 2
    lon_bits = length * 5 - lat_bits
    lon = min(int((place.longitude + 180) / 360 * (1 << lon_bits)), (1 << lon_bits) - 1)
    lat = min(int((place.latitude + 90) / 180 * (1 << lat_bits)), (1 << lat_bits) - 1)
    even = _SPREAD[lon & 1023] | _SPREAD[lon >> 10 & 1023] << 20 | _SPREAD[lon >> 20] << 40
    odd = _SPREAD[lat & 1023] | _SPREAD[lat >> 10 & 1023] << 20 | _SPREAD[lat >> 20] << 40
    value = even | odd << 1 if length % 2 else even << 1 | odd
    text = _BASE32[value & 31] if length % 2 else ""
    value >>= 5 * (length % 2)
    for _ in range(length // 2):
        text = _PAIRS[value & 1023] + text
        value >>= 10
    return text
