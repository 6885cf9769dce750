"""match: owns the pool of free drivers; searches, proposals, and the lock on who is bound."""

from collections.abc import Callable
from typing import Any

from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import Clock
from nebengjek.contracts.location import LatestLocations, LocationUpdate
from nebengjek.contracts.match import (
    AcceptMatch,
    AcquaintanceOf,
    MatchAccepted,
    MatchesOf,
    MatchFound,
    MatchRejected,
    MatchUnavailable,
    RejectMatch,
)
from nebengjek.contracts.rides import RideCancelled, RideCompleted, RideOfMatch, RidePickup
from nebengjek.contracts.users import UserAvatarUploaded, UserBeacon, UserFinder, UserPresence
from nebengjek.database import Database
from nebengjek.match.pool import Pool
from nebengjek.match.routes import MatchController
from nebengjek.match.service import MatchService
from nebengjek.module import Module, answer, every, on, on_batch


def match(
    bus: MessageBus,
    database: Database,
    pool: Pool,
    clock: Clock,
    fare: Callable[[float], int],
    count: Callable[[str], None],
    **values: Any,
) -> Module:
    """``values``: the settings that ``MatchService`` names."""
    service = MatchService(bus, database, pool, clock, fare, count, **values)
    return Module(
        name="match",
        routes=[type("Match", (MatchController,), {"service": service})],
        says=[MatchFound, MatchAccepted, MatchRejected, MatchUnavailable],
        hears=[
            on(UserBeacon, service.beacon, ordered_by="user_id"),
            on(UserFinder, service.finder, ordered_by="user_id"),
            on(UserPresence, service.presence, ordered_by="user_id"),
            on(UserAvatarUploaded, service.avatar),
            on_batch(LocationUpdate, service.points),
            on(RidePickup, service.pickup),
            on(RideCompleted, service.ended),
            on(RideCancelled, service.ended),
        ],
        asks=[LatestLocations, RideOfMatch],
        answers=[
            answer(AcceptMatch, service.accept),
            answer(RejectMatch, service.reject),
            answer(MatchesOf, service.of_user),
            answer(AcquaintanceOf, service.acquaintance),
        ],
        sweeps=[every(1.0, service.sweep)],
    )
