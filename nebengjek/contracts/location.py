"""What location hears and says: points of phones, and how far a ride has come."""

from datetime import datetime
from typing import ClassVar

from msgspec import Struct

from nebengjek.contracts.geo import Location, Point
from nebengjek.contracts.message import Event, Query


class FrameRef(Struct, frozen=True, kw_only=True):
    """The frame of a phone that an event answers."""

    connection_id: str
    id: str | None = None


class LocationUpdate(Event, frozen=True, kw_only=True, tag="location.update"):
    """A phone says where it is. Without a phone time the point has the time at which it was received."""

    user_id: str
    point: Point
    received_at: datetime
    frame: FrameRef | None = None
    key: ClassVar[str] = "user_id"
    number: ClassVar[str | None] = None


class LocationStored(Event, frozen=True, kw_only=True, tag="location.stored", omit_defaults=True):
    """The point was accepted. While a ride is open: which one, who the other party is, how far away it is."""

    user_id: str
    location: Location
    geohash: str
    frame: FrameRef | None = None
    ride_id: str | None = None
    other_id: str | None = None
    eta_minutes: int | None = None
    key: ClassVar[str] = "user_id"
    number: ClassVar[str | None] = None


class LocationRefused(Event, frozen=True, kw_only=True, tag="location.refused"):
    """The point was not accepted: ``reason`` is ``future`` or ``teleport``, ``message`` says it in words."""

    user_id: str
    reason: str
    message: str
    frame: FrameRef | None = None
    key: ClassVar[str] = "user_id"
    number: ClassVar[str | None] = None


class LocationAggregate(Event, frozen=True, kw_only=True, tag="location.aggregate"):
    """A ride came further: kilometres since the previous aggregate, and in total."""

    ride_id: str
    sequence: int
    distance_km: float
    total_km: float
    key: ClassVar[str] = "ride_id"
    number: ClassVar[str | None] = "sequence"


class LatestPoints(Struct, frozen=True, kw_only=True):
    points: dict[str, Point]
    """By user id; who has no point within the ttl is not in it."""


class LatestLocations(Query[LatestPoints], frozen=True, kw_only=True, tag="location.latest"):
    """Where are these users?"""

    user_ids: list[str]


class RideDistance(Struct, frozen=True, kw_only=True):
    """``sequence``: of the last aggregate; ``review``: the paths of the two phones differ by more than 20 %."""

    total_km: float
    sequence: int
    review: bool


class CloseRide(Query[RideDistance], frozen=True, kw_only=True, tag="location.close"):
    """The ride has arrived: how long was it? Waits until every point published before has been counted.

    Points received later do not count; asked again it answers the same.
    """

    ride_id: str
    driver_id: str
    passenger_id: str
    start: Point
