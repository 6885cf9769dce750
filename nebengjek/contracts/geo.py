"""Where things are: coordinates in degrees (WGS 84), distances in great-circle kilometres."""

import math
from datetime import datetime
from functools import lru_cache
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


Place = Location | Point


def distance_km(a: Place, b: Place) -> float:
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
_SPREAD = [sum((n >> bit & 1) << 2 * bit for bit in range(10)) for n in range(1024)]
"""Ten bits with a zero between each: two of them interleave with a shift and an or."""


def geohash(place: Place) -> str:
    """The geohash of a place (G. Niemeyer, 2008; public domain): 7 characters, a cell of about 153 m x 153 m.

    Longitude takes 18 of its 35 bits, latitude 17, in turn. A city has some ten thousand cells, so what a cell is
    called is worked out once.
    """
    return _cell_name(int((place.longitude + 180) / 360 * 262_144), int((place.latitude + 90) / 180 * 131_072))


@lru_cache(maxsize=65_536)
def _cell_name(lon: int, lat: int) -> str:
    # The far edges of the world belong to the last cells.
    lon, lat = min(lon, 262_143), min(lat, 131_071)
    even = _SPREAD[lon & 1023] | _SPREAD[lon >> 10] << 20
    odd = _SPREAD[lat & 1023] | _SPREAD[lat >> 10] << 20
    value = even | odd << 1
    return "".join(_BASE32[value >> shift & 31] for shift in range(30, -1, -5))
