"""location: owns points; judges and confirms them, and measures rides."""

from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import Clock
from nebengjek.contracts.location import (
    CloseRide,
    LatestLocations,
    LocationAggregate,
    LocationRefused,
    LocationStored,
    LocationUpdate,
)
from nebengjek.contracts.rides import RideArrived, RideCancelled, RideCompleted, RidePickup, RideStarted
from nebengjek.database import Database
from nebengjek.location.journeys import Journeys
from nebengjek.location.odometer import Rules
from nebengjek.location.routes import Guard, admin_routes
from nebengjek.location.service import LocationService
from nebengjek.location.store import Points
from nebengjek.module import Module, answer, every, on, on_batch


def location(
    bus: MessageBus,
    database: Database,
    points: Points,
    clock: Clock,
    rules: Rules,
    *,
    max_clock_skew: float = 60.0,
    ttl: float = 1800.0,
    ledger_step_km: float = 1.0,
    arrival_wait: float = 5.0,
    path_ttl: float = 86400.0,
    admin_guard: Guard | None = None,
) -> Module:
    """Times in seconds. Without ``admin_guard`` the operators' routes are not served."""
    journeys = Journeys(
        bus,
        database,
        points,
        clock,
        rules,
        ledger_step_km=ledger_step_km,
        arrival_wait=arrival_wait,
        path_ttl=path_ttl,
    )
    service = LocationService(
        bus,
        database,
        points,
        journeys,
        clock,
        max_clock_skew=max_clock_skew,
        max_speed_kmh=rules.max_speed_kmh,
        ttl=ttl,
    )
    return Module(
        name="location",
        routes=[admin_routes(database, admin_guard)] if admin_guard is not None else [],
        says=[LocationStored, LocationRefused, LocationAggregate],
        hears=[
            on_batch(LocationUpdate, service.update),
            on(RidePickup, journeys.pickup),
            on(RideStarted, journeys.started),
            on(RideArrived, journeys.ended),
            on(RideCompleted, journeys.ended),
            on(RideCancelled, journeys.ended),
        ],
        answers=[answer(LatestLocations, service.latest), answer(CloseRide, journeys.close)],
        sweeps=[every(5.0, journeys.restore)],
        start=journeys.restore,
    )
