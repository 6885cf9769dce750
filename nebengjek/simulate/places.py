"""Where the demo rides: landmarks of Jakarta.

Coordinates (WGS 84, degrees) are facts as given in the Wikipedia articles and OpenStreetMap nodes of these places,
rounded to four decimals (11 m); those with a bus stop were compared with the stops of TransJakarta's timetable
(GTFS) and lie within 1 km of it.
"""

from msgspec import Struct

from nebengjek.contracts.geo import Location


class Place(Struct, frozen=True):
    name: str
    location: Location


def _place(name: str, latitude: float, longitude: float) -> Place:
    return Place(name, Location(latitude=latitude, longitude=longitude))


LANDMARKS: tuple[Place, ...] = (
    _place("Monas", -6.1754, 106.8272),
    _place("Bundaran HI", -6.1950, 106.8231),
    _place("Gambir station", -6.1767, 106.8306),
    _place("Istiqlal mosque", -6.1699, 106.8310),
    _place("Jakarta Cathedral", -6.1692, 106.8331),
    _place("National Museum", -6.1764, 106.8217),
    _place("Sarinah", -6.1875, 106.8240),
    _place("Grand Indonesia", -6.1953, 106.8204),
    _place("Tanah Abang market", -6.1886, 106.8114),
    _place("Taman Suropati", -6.1993, 106.8324),
    _place("Taman Ismail Marzuki", -6.1901, 106.8389),
    _place("Pasar Senen station", -6.1745, 106.8446),
    _place("Manggarai station", -6.2099, 106.8502),
    _place("Sudirman station", -6.2024, 106.8233),
    _place("Semanggi", -6.2194, 106.8144),
    _place("Gelora Bung Karno", -6.2186, 106.8022),
    _place("Pacific Place", -6.2244, 106.8098),
    _place("Mal Ambasador", -6.2240, 106.8268),
    _place("Blok M", -6.2443, 106.8000),
    _place("Kota Tua, Fatahillah square", -6.1349, 106.8133),
    _place("Harmoni", -6.1660, 106.8205),
    _place("Taman Anggrek", -6.1787, 106.7925),
)
