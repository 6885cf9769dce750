"""What match says: who is proposed to whom, and what they answered."""

from datetime import datetime
from typing import ClassVar, Literal

from msgspec import Struct

from nebengjek.contracts.geo import Location
from nebengjek.contracts.message import Event, Query
from nebengjek.contracts.users import DriverCard, PassengerCard

MatchState = Literal[
    "PENDING",
    "DRIVER_CONFIRMED",
    "PASSENGER_CONFIRMED",
    "ACCEPTED",
    "REJECTED",
    "EXPIRED",
    "CLOSED",
    "FAILED",
]
EndReason = Literal["rejected", "expired", "taken", "cancelled", "failed"]


class Match(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A driver proposed to a passenger, as both phones see it. ``distance_km``: from driver to passenger."""

    match_id: str
    passenger_id: str
    driver_id: str
    location: Location
    driver_location: Location
    target_location: Location
    distance_km: float
    eta_minutes: int
    estimated_fare: int
    driver: DriverCard
    passenger: PassengerCard
    match_status: MatchState
    expires_at: datetime
    reason: EndReason | None = None


class MatchEvent(Event, frozen=True, kw_only=True):
    match_id: str
    version: int
    match: Match
    key: ClassVar[str] = "match_id"


class MatchFound(MatchEvent, frozen=True, kw_only=True, tag="match.found"):
    """A driver and a passenger are proposed to each other; said again when one of them accepts."""


class MatchAccepted(MatchEvent, frozen=True, kw_only=True, tag="match.accepted"):
    """Both accepted. rides opens a ride before ``open_before`` or never."""

    open_before: datetime


class MatchRejected(MatchEvent, frozen=True, kw_only=True, tag="match.rejected"):
    """The proposal ended without a ride; ``match.reason`` says why."""


class MatchUnavailable(Event, frozen=True, kw_only=True, tag="match.unavailable"):
    """Nobody is near (``no_drivers``, the search goes on), or the search is over (``search_ended``).

    ``engaged``: there is none, because its passenger is bound by a match; ``search_id`` names what was not opened.
    """

    passenger_id: str
    search_id: str
    finder_version: int
    reason: Literal["no_drivers", "search_ended", "engaged"]
    key: ClassVar[str] = "passenger_id"
    number: ClassVar[str | None] = None


class MatchStatus(Struct, frozen=True, kw_only=True):
    match_id: str
    match_status: MatchState


class AcceptMatch(Query[MatchStatus], frozen=True, kw_only=True, tag="match.accept"):
    match_id: str
    user_id: str


class RejectMatch(Query[MatchStatus], frozen=True, kw_only=True, tag="match.reject"):
    match_id: str
    user_id: str
    reason: str | None = None


class OngoingMatches(Struct, frozen=True, kw_only=True):
    """``proposals``: the open ones; ``match``: the accepted one whose ride has not ended."""

    proposals: list[Match]
    match: Match | None = None


class MatchesOf(Query[OngoingMatches], frozen=True, kw_only=True, tag="match.of_user"):
    """What is going on for this user?"""

    user_id: str


class Acquaintance(Struct, frozen=True, kw_only=True):
    """``shared``: they have or had a match; ``phone``: an accepted one whose ride has not ended."""

    shared: bool
    phone: bool


class AcquaintanceOf(Query[Acquaintance], frozen=True, kw_only=True, tag="match.acquaintance"):
    """May ``user_id`` read ``other_id``?"""

    user_id: str
    other_id: str
