"""Real trips from a CSV file: who wanted to go from where to where, and when."""

import csv
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct

from nebengjek.contracts.geo import Location, distance_km
from nebengjek.errors import Misconfigured

COLUMNS = ("trip_id", "pickup_time", "pickup_lat", "pickup_lon", "dropoff_lat", "dropoff_lon")
SHORTEST_KM = 0.2
LONGEST_KM = 60.0
LONGEST_GAP_SECONDS = 20.0
"""A file may cover years; what nobody rides in is skipped, but never more tightly than this."""


class Trip(Struct, frozen=True, kw_only=True):
    """One wish. ``pickup_time``: unix time, a file without zones read as UTC (only differences matter)."""

    trip_id: str
    pickup_time: float
    start: Location
    end: Location
    kilometres: float


class TripFile(Struct, frozen=True, kw_only=True):
    """The usable trips in order of time, and how many rows were left out for which reason."""

    trips: list[Trip]
    rows: int
    skipped: dict[str, int]

    def first(self, limit: int) -> list[Trip]:
        """The earliest ``limit`` trips; 0 = all."""
        return self.trips[:limit] if limit else self.trips


class _Unusable(Exception):
    """A row that is no trip; the text says why."""


def read_trips(path: Path) -> TripFile:
    """Read all of ``path``. Raises Misconfigured: no such file, a column is missing, or no row is usable."""
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            return _read(csv.DictReader(lines), path)
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"--trips {path}: cannot be read ({error})") from error


def _read(rows: "csv.DictReader[str]", path: Path) -> TripFile:
    missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
    if missing:
        raise Misconfigured(f"--trips {path}: no column {', '.join(missing)}; expected {', '.join(COLUMNS)}")
    trips: list[Trip] = []
    skipped: dict[str, int] = {}
    seen: set[str] = set()
    for row in rows:
        try:
            trip = _trip(row)
            if trip.trip_id in seen:
                raise _Unusable("trip_id twice")
        except _Unusable as reason:
            skipped[str(reason)] = skipped.get(str(reason), 0) + 1
            continue
        seen.add(trip.trip_id)
        trips.append(trip)
    count = len(trips) + sum(skipped.values())
    if not trips:
        raise Misconfigured(f"--trips {path}: none of {count} rows is a usable trip {skipped or ''}".rstrip())
    trips.sort(key=lambda trip: trip.pickup_time)
    return TripFile(trips=trips, rows=count, skipped=skipped)


def _trip(row: dict[str, str | None]) -> Trip:
    if not row["trip_id"]:
        raise _Unusable("no trip_id")
    start = _place(row["pickup_lat"], row["pickup_lon"])
    end = _place(row["dropoff_lat"], row["dropoff_lon"])
    kilometres = distance_km(start, end)
    if kilometres < SHORTEST_KM:
        raise _Unusable("shorter than 200 m")
    if kilometres > LONGEST_KM:
        raise _Unusable("longer than 60 km")
    return Trip(
        trip_id=row["trip_id"], pickup_time=_moment(row["pickup_time"]), start=start, end=end, kilometres=kilometres
    )


def _moment(text: str | None) -> float:
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        raise _Unusable("no pickup_time") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _place(latitude: str | None, longitude: str | None) -> Location:
    try:
        place = Location(latitude=float(latitude or ""), longitude=float(longitude or ""))
    except ValueError:
        raise _Unusable("no coordinates") from None
    if place.latitude == 0 or place.longitude == 0:
        raise _Unusable("coordinate zero")
    if not (-90 <= place.latitude <= 90 and -180 <= place.longitude <= 180):
        raise _Unusable("outside the earth")
    return place


def departures(trips: list[Trip]) -> list[float]:
    """Simulated seconds from the start of the run to each trip's wish, long gaps shortened."""
    offsets: list[float] = []
    previous = trips[0].pickup_time if trips else 0.0
    offset = 0.0
    for trip in trips:
        offset += min(trip.pickup_time - previous, LONGEST_GAP_SECONDS)
        previous = trip.pickup_time
        offsets.append(offset)
    return offsets
