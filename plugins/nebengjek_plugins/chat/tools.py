"""What an assistant may look up and do, for the one user who asks and for nobody else.

A tool takes what its Struct says and answers with values, so that rules use them as functions and models by their
JSON schemas. Other modules are asked over the bus.
"""

from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta, Struct

from nebengjek.bus.errors import BusError
from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import Clock
from nebengjek.contracts.geo import Location, distance_km, eta_minutes
from nebengjek.contracts.location import LatestLocations
from nebengjek.contracts.match import MatchesOf, OngoingMatches
from nebengjek.contracts.message import is_id, uuid7
from nebengjek.contracts.rides import OngoingRide, RecentRides, Ride, RideDetails, RideDetailsOf, RideOfUser
from nebengjek.database import Database
from nebengjek.errors import NotFound, Rejected, Unavailable
from nebengjek_plugins.chat import store
from nebengjek_plugins.chat.contracts import storable

TIMEOUT = 3.0


class OtherParty(Struct, frozen=True, kw_only=True):
    """Where the other phone of the present ride was last seen. ``eta_minutes``: from there to us, or to the pick-up."""

    seen: bool
    age_seconds: int | None = None
    distance_km: float | None = None
    eta_minutes: int | None = None


class PresentState(Struct, frozen=True, kw_only=True):
    """What is going on for the user: his ride (or one he still owes for), his match, proposals that wait for him."""

    ride: Ride | None
    payment_due: bool
    search: OngoingMatches


class Tools(Protocol):
    user_id: str

    async def present(self) -> PresentState:
        """Raises Unavailable where another module does not answer, as all of these do."""
        ...

    async def other_party(self) -> OtherParty | None:
        """None: the user has no ride under way."""
        ...

    async def recent_rides(self, limit: int = 5) -> list[Ride]:
        """The user's, newest first."""
        ...

    async def ride(self, ride_id: str) -> RideDetails | None:
        """With its ledger; None: it is not one of the user's."""
        ...

    async def hand_over(self, reason: str) -> bool:
        """A person will answer; False: the session waits for one already."""
        ...


class UserTools:
    """``Tools`` of one question."""

    def __init__(
        self, bus: MessageBus, database: Database, clock: Clock, *, user_id: str, session_id: str, message_id: str
    ) -> None:
        self.user_id = user_id
        self._bus = bus
        self._database = database
        self._clock = clock
        self._session_id = session_id
        self._message_id = message_id

    async def present(self) -> PresentState:
        ongoing: OngoingRide = await self._bus.request(RideOfUser(user_id=self.user_id), TIMEOUT)
        search = await self._bus.request(MatchesOf(user_id=self.user_id), TIMEOUT)
        return PresentState(ride=ongoing.ride, payment_due=ongoing.payment_due, search=search)

    async def other_party(self) -> OtherParty | None:
        ride = (await self._bus.request(RideOfUser(user_id=self.user_id), TIMEOUT)).ride
        if ride is None or ride.status not in ("PICKUP", "ONGOING"):
            return None
        other_id = ride.driver_id if self.user_id == ride.passenger_id else ride.passenger_id
        points = (await self._bus.request(LatestLocations(user_ids=[other_id, self.user_id]), TIMEOUT)).points
        other = points.get(other_id)
        if other is None:
            return OtherParty(seen=False)
        own = points.get(self.user_id)
        here = ride.location if own is None else Location(latitude=own.latitude, longitude=own.longitude)
        distance = distance_km(other, here)
        return OtherParty(
            seen=True,
            age_seconds=max(0, int((self._clock.now() - other.timestamp).total_seconds())),
            distance_km=round(distance, 2),
            eta_minutes=eta_minutes(distance),
        )

    async def recent_rides(self, limit: int = 5) -> list[Ride]:
        return (await self._bus.request(RecentRides(user_id=self.user_id, limit=limit), TIMEOUT)).rides

    async def ride(self, ride_id: str) -> RideDetails | None:
        if not is_id(ride_id):
            return None
        try:
            return await self._bus.request(RideDetailsOf(ride_id=ride_id, user_id=self.user_id), TIMEOUT)
        except NotFound:
            return None

    async def hand_over(self, reason: str) -> bool:
        async with self._database.begin() as tx:
            return await store.hand_over(
                tx,
                store.Handover(
                    handover_id=uuid7(),
                    session_id=self._session_id,
                    message_id=self._message_id,
                    user_id=self.user_id,
                    reason=" ".join(storable(reason).split())[:200] or "asked for a person",
                    created_at=self._clock.now(),
                ),
            )


# -- for models: tools by name, with the schemas of their arguments


class Nothing(Struct, frozen=True, forbid_unknown_fields=False):
    pass


class RecentRidesArguments(Struct, frozen=True, kw_only=True):
    limit: Annotated[int, Meta(ge=1, le=10)] = 5


class RideArguments(Struct, frozen=True, kw_only=True):
    ride_id: str


class HandOverArguments(Struct, frozen=True, kw_only=True):
    reason: Annotated[str, Meta(max_length=200)]


_KINDS: dict[str, tuple[str, type[Struct]]] = {
    "present_state": ("What is going on for the user now: ride, payment due, search, proposals.", Nothing),
    "other_party": ("Where the other party of the present ride is, and when it will be there.", Nothing),
    "recent_rides": ("The user's latest rides, newest first. Money is whole rupiah.", RecentRidesArguments),
    "ride": ("One ride of the user with its ledger of kilometres and costs.", RideArguments),
    "hand_over": ("Put the user's question into the queue of the people who can help.", HandOverArguments),
}


def schemas() -> list[tuple[str, str, dict[str, Any]]]:
    """(name, description, JSON schema of the arguments) of each tool."""
    made = []
    for name, (description, kind) in _KINDS.items():
        schema = msgspec.json.schema(kind)
        made.append((name, description, schema["$defs"][kind.__name__]))
    return made


async def use(tools: Tools, name: str, arguments: bytes) -> str:
    """What a model asked for, as JSON; a refusal too, so that it can do better."""
    if name not in _KINDS:
        return '{"error":"there is no such tool"}'
    try:
        given: Any = msgspec.json.decode(arguments or b"{}", type=_KINDS[name][1])
        match name:
            case "present_state":
                found: Any = await tools.present()
            case "other_party":
                found = await tools.other_party()
            case "recent_rides":
                found = await tools.recent_rides(given.limit)
            case "ride":
                found = await tools.ride(given.ride_id)
            case _:
                found = {"handed_over": await tools.hand_over(given.reason)}
    except (msgspec.DecodeError, Rejected, Unavailable, BusError) as error:
        found = {"error": str(error)}
    return msgspec.json.encode(found).decode()
