"""What users say: who exists, who drives, who is there, who looks for whom."""

from datetime import datetime
from typing import ClassVar, Literal

from msgspec import Struct

from nebengjek.contracts.geo import Location
from nebengjek.contracts.message import Event, Query

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
    avatar_url: str | None = None


class PassengerCard(Struct, frozen=True, kw_only=True):
    name: str


class UserEvent(Event, frozen=True, kw_only=True):
    """``version`` counts the changes of the user's row: an older one that arrives later is ignored."""

    user_id: str
    version: int
    key: ClassVar[str] = "user_id"


class UserCreated(UserEvent, frozen=True, kw_only=True, tag="user.created"):
    """A number logged in for the first time. ``msisdn_suffix``: its last six digits, for those who look for him.

    Name and e-mail where they are known: of a login by phone neither is.
    """

    role: Role
    created_at: datetime
    msisdn_suffix: str = ""
    full_name: str | None = None
    email: str | None = None
    sensitive: ClassVar[bool] = True


class UserUpdated(UserEvent, frozen=True, kw_only=True, tag="user.updated"):
    """Name or e-mail changed (``changed`` names them), or the account was anonymised (``deleted``)."""

    full_name: str | None
    email: str | None
    role: Role
    deleted: bool = False
    changed: tuple[str, ...] = ()
    sensitive: ClassVar[bool] = True


class UserDriverRegistered(UserEvent, frozen=True, kw_only=True, tag="user.driver.registered"):
    """A passenger became a driver. ``email``: his, as in ``user.updated``, which may come later than this."""

    full_name: str
    email: str | None = None
    vehicle: Vehicle
    sensitive: ClassVar[bool] = True


class UserAvatarUploaded(UserEvent, frozen=True, kw_only=True, tag="user.avatar.uploaded"):
    """A user has a new picture, or none any more (``avatar_url`` null). ``version`` counts his pictures.

    ``file_key``: of the picture in the object store of whoever keeps it.
    """

    avatar_url: str | None
    file_key: str


class UserBeacon(UserEvent, frozen=True, kw_only=True, tag="user.beacon"):
    """A driver is ready for passengers, or no longer. ``avatar_version``: of the picture on his card."""

    is_active: bool
    driver: DriverCard
    location: Location | None = None
    avatar_version: int = 0


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


class Account(Struct, frozen=True, kw_only=True):
    """A user as he is now: what ``user.created`` and all that followed would say together."""

    user_id: str
    version: int
    role: Role
    created_at: datetime
    msisdn_suffix: str
    full_name: str | None
    email: str | None
    vehicle: Vehicle | None


class AccountList(Struct, frozen=True, kw_only=True):
    """``total``: of all accounts, when it was asked for the first ones."""

    items: list[Account]
    total: int | None


class AccountsAfter(Query[AccountList], frozen=True, kw_only=True, tag="users.accounts"):
    """The accounts that are there, by id: for whoever builds anew what he had learnt from events."""

    after: str = ""
    limit: int = 500


class AccountsOf(Query[AccountList], frozen=True, kw_only=True, tag="users.accounts_of"):
    """These accounts, as far as they are there, at most 500: for whoever missed what was said of them."""

    user_ids: tuple[str, ...]
