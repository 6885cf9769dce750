"""What users say: who exists, who drives, who is there, who looks for whom."""

from datetime import datetime
from typing import ClassVar, Literal

from msgspec import Struct

from nebengjek.contracts.geo import Location
from nebengjek.contracts.message import Event

Role = Literal["passenger", "driver"]
VehicleType = Literal["motorcycle", "car", "van"]


class Vehicle(Struct, frozen=True, kw_only=True):
    vehicle_type: VehicleType
    vehicle_plate: str


class DriverCard(Struct, frozen=True, kw_only=True):
    """What a passenger may know of a driver before both have accepted."""

    name: str
    vehicle_type: VehicleType
    vehicle_plate: str


class PassengerCard(Struct, frozen=True, kw_only=True):
    name: str


class UserEvent(Event, frozen=True, kw_only=True):
    """``version`` counts the changes of the user's row: an older one that arrives later is ignored."""

    user_id: str
    version: int
    key: ClassVar[str] = "user_id"


class UserCreated(UserEvent, frozen=True, kw_only=True, tag="user.created"):
    """A number logged in for the first time."""

    role: Role
    created_at: datetime


class UserUpdated(UserEvent, frozen=True, kw_only=True, tag="user.updated"):
    """Name or e-mail changed, or the account was anonymised (``deleted``)."""

    full_name: str | None
    email: str | None
    role: Role
    deleted: bool = False
    sensitive: ClassVar[bool] = True


class UserDriverRegistered(UserEvent, frozen=True, kw_only=True, tag="user.driver.registered"):
    """A passenger became a driver."""

    full_name: str
    vehicle: Vehicle
    sensitive: ClassVar[bool] = True


class UserBeacon(UserEvent, frozen=True, kw_only=True, tag="user.beacon"):
    """A driver is ready for passengers, or no longer."""

    is_active: bool
    driver: DriverCard
    location: Location | None = None


class UserFinder(UserEvent, frozen=True, kw_only=True, tag="user.finder"):
    """A passenger looks for a driver, or no longer.

    ``began``: the version with which he began to. One that is sent again, without having been switched off, goes on.
    """

    is_active: bool
    passenger: PassengerCard
    location: Location | None = None
    target_location: Location | None = None
    vehicle_type: VehicleType | None = None
    began: int = 0


class UserPresence(UserEvent, frozen=True, kw_only=True, tag="user.presence"):
    """A phone came, or has been gone for longer than the grace period."""

    online: bool


class UserSessionEnded(Event, frozen=True, kw_only=True, tag="user.session.ended"):
    """A login is over (logout, or the account is gone): every pod closes its sockets."""

    user_id: str
    session_id: str
    key: ClassVar[str] = "user_id"
    number: ClassVar[str | None] = "session_id"
