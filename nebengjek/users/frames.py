"""What a phone may say on its socket, and the frames that answer it; see contract in docs/protocol.md."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Union

import msgspec
from msgspec import Meta, Struct

from nebengjek.contracts.geo import Latitude, Location, Longitude
from nebengjek.contracts.match import Match
from nebengjek.contracts.rides import AdjustmentFactor, Ride
from nebengjek.contracts.users import Role, VehicleType

FrameId = Annotated[str, Meta(min_length=1, max_length=128)]
Id = Annotated[str, Meta(min_length=1, max_length=64)]
NO_CONTROL = r"^[^\x00-\x1f\x7f]*$(?!\n)"
"""What people write in one line: no control character (PostgreSQL has no NUL, a log no line break).

In Python ``$`` alone would let a line break follow.
"""
Reason = Annotated[str, Meta(max_length=200, pattern=NO_CONTROL)]


class Frame(Struct, frozen=True, kw_only=True):
    """What every frame of a phone has; its ``data`` has the shape that ``SAYS`` gives for its event."""

    event: str
    id: FrameId | None = None


class PhonePoint(Struct, frozen=True, kw_only=True):
    """``timestamp``: the phone's clock, with its offset; accuracy in metres, speed in km/h, heading in degrees."""

    latitude: Latitude
    longitude: Longitude
    timestamp: Annotated[datetime, Meta(tz=True)] | None = None
    accuracy: Annotated[float, Meta(ge=0)] | None = None
    speed: Annotated[float, Meta(ge=0)] | None = None
    heading: Annotated[float, Meta(ge=0, le=360)] | None = None


class BeaconData(Struct, frozen=True, kw_only=True):
    is_active: bool
    location: PhonePoint | None = None


class FinderData(Struct, frozen=True, kw_only=True):
    is_active: bool
    location: PhonePoint | None = None
    target_location: Location | None = None
    vehicle_type: VehicleType | None = None


class LocationData(Struct, frozen=True, kw_only=True):
    location: PhonePoint


class MatchAnswerData(Struct, frozen=True, kw_only=True):
    match_id: Id
    reason: Reason | None = None


class RideData(Struct, frozen=True, kw_only=True):
    ride_id: Id


class ArriveData(Struct, frozen=True, kw_only=True):
    ride_id: Id
    adjustment_factor: AdjustmentFactor = 1.0


class PayData(Struct, frozen=True, kw_only=True):
    ride_id: Id
    amount: Annotated[int, Meta(ge=0)]
    method: Annotated[str, Meta(min_length=1, max_length=32, pattern=NO_CONTROL)] = "simulated"


class CancelData(Struct, frozen=True, kw_only=True):
    ride_id: Id
    reason: Reason | None = None


class SessionAckData(Struct, frozen=True, kw_only=True):
    seq: Annotated[int, Meta(ge=0)]


class Active(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``user.beacon`` and ``user.finder`` to their owner; ``reason`` when the system switched it off."""

    is_active: bool
    reason: str | None = None


class FinderState(Struct, frozen=True, kw_only=True, omit_defaults=True):
    is_active: bool
    location: Location | None = None
    target_location: Location | None = None
    vehicle_type: VehicleType | None = None


class SessionReady(Struct, frozen=True, kw_only=True):
    """The first frame: who you are, what can be replayed, what is going on right now."""

    user_id: str
    role: Role
    connection_id: str
    pod_id: str
    epoch: str
    last_seq: int
    replay: str
    beacon: Active | None
    finder: FinderState | None
    proposals: list[Match]
    match: Match | None
    ride: Ride | None
    missing: list[str]


class ErrorData(Struct, frozen=True, kw_only=True, omit_defaults=True):
    code: str
    message: str
    id: str | None = None
    retry_after: float | None = None


class Stored(Struct, frozen=True, kw_only=True):
    location: Location
    geohash: str


class Tracking(Struct, frozen=True, kw_only=True):
    ride_id: str
    user_id: str
    location: Location
    eta_minutes: int | None


class Unavailable(Struct, frozen=True, kw_only=True):
    reason: str


SAYS: dict[str, type[Any]] = {
    "user.beacon": BeaconData,
    "user.finder": FinderData,
    "location.update": LocationData,
    "match.accept": MatchAnswerData,
    "match.reject": MatchAnswerData,
    "ride.start": RideData,
    "ride.arrive": ArriveData,
    "ride.pay": PayData,
    "ride.cancel": CancelData,
    "session.ack": SessionAckData,
}
"""What a phone may say: the event and the shape of its data."""


def _frame(event: str, shape: type[Any]) -> type[Struct]:
    """The frame of one event: told from the others by ``event``, so that a frame is read in one pass."""
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = [("data", shape), ("id", FrameId | None, None)]
    name = "".join(part.title() for part in event.split(".")) + "Frame"
    return msgspec.defstruct(name, fields, frozen=True, kw_only=True, tag_field="event", tag=event)


def frames_of(says: Mapping[str, type[Any]]) -> Any:
    """The type of any of these frames."""
    return Union[tuple(_frame(event, shape) for event, shape in says.items())]  # noqa: UP007 - made of a tuple
